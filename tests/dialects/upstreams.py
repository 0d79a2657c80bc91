"""What the three vendors send: one reply, with reasoning, text and two calls, as a stream and whole.

Written down from their documentation and SDK types, and not with the code that is tested.
"""

from __future__ import annotations

import json
from typing import Any

REASONING, TEXT = "Let me see.", "I read both 🙂."
ARGUMENTS = ('{"path": "a.py"}', '{"path": "b.py"}')


def _sse(*events: dict[str, Any], named: bool) -> bytes:
    lines = (f"event: {event['type']}\n" if named else "" for event in events)
    return "".join(f"{line}data: {json.dumps(event)}\n\n" for line, event in zip(lines, events, strict=True)).encode()


def _chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m-1", "choices": choices}


def _fragment(index: int, arguments: str, id: str | None = None) -> dict[str, Any]:
    named = {"id": id, "type": "function"} if id else {}
    function = {"arguments": arguments, **({"name": "read"} if id else {})}
    return _chunk({"tool_calls": [{"index": index, **named, "function": function}]})


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
}
CHAT_STREAM = (
    _sse(
        _chunk({"role": "assistant", "content": ""}),
        _chunk({"reasoning_content": "Let me "}),
        _chunk({"reasoning_content": "see."}),
        _chunk({"content": "I read "}),
        _chunk({"content": "both 🙂."}),
        _fragment(0, "", "call_1"),
        _fragment(1, "", "call_2"),
        _fragment(0, '{"path": '),
        _fragment(1, '{"path": '),
        _fragment(0, '"a.py"}'),
        _fragment(1, '"b.py"}'),
        _chunk({}, "tool_calls"),
        {**_chunk({}), "choices": [], "usage": CHAT_USAGE},
        named=False,
    )
    + b"data: [DONE]\n\n"
)
CHAT_WHOLE: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m-1",
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": TEXT,
                "reasoning_content": REASONING,
                "tool_calls": [
                    {"id": f"call_{number}", "type": "function", "function": {"name": "read", "arguments": said}}
                    for number, said in enumerate(ARGUMENTS, 1)
                ],
            },
        }
    ],
    "usage": CHAT_USAGE,
}

MESSAGES_USAGE = {"input_tokens": 10, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 60}


def _block(index: int, block: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def _call(index: int, id: str, *pieces: str) -> list[dict[str, Any]]:
    deltas = ({"type": "input_json_delta", "partial_json": piece} for piece in ("", *pieces))
    return _block(index, {"type": "tool_use", "id": id, "name": "read", "input": {}}, *deltas)


_MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m-1", "stop_sequence": None}
MESSAGES_STREAM = _sse(
    {
        "type": "message_start",
        "message": {**_MESSAGE, "content": [], "stop_reason": None, "usage": {**MESSAGES_USAGE, "output_tokens": 1}},
    },
    {"type": "ping"},
    *_block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Let me "},
        {"type": "thinking_delta", "thinking": "see."},
        {"type": "signature_delta", "signature": "c2lnbmVk"},
    ),
    *_block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": "I read "},
        {"type": "text_delta", "text": "both 🙂."},
    ),
    *_call(2, "call_1", '{"path": ', '"a.py"}'),
    *_call(3, "call_2", '{"path": ', '"b.py"}'),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 20},
    },
    {"type": "message_stop"},
    named=True,
)
MESSAGES_WHOLE: dict[str, Any] = {
    **_MESSAGE,
    "content": [
        {"type": "thinking", "thinking": REASONING, "signature": "c2lnbmVk"},
        {"type": "text", "text": TEXT},
        {"type": "tool_use", "id": "call_1", "name": "read", "input": {"path": "a.py"}},
        {"type": "tool_use", "id": "call_2", "name": "read", "input": {"path": "b.py"}},
    ],
    "stop_reason": "tool_use",
    "usage": {**MESSAGES_USAGE, "output_tokens": 20},
}

_REASONING_ITEM = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": REASONING}]}
_MESSAGE_ITEM = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}],
}


def _call_item(number: int) -> dict[str, Any]:
    item = {"id": f"fc_{number}", "type": "function_call", "call_id": f"call_{number}", "name": "read"}
    return {**item, "arguments": ARGUMENTS[number - 1], "status": "completed"}


RESPONSES_WHOLE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "model": "m-1",
    "output": [{**_REASONING_ITEM, "encrypted_content": "Z0FBQUE="}, _MESSAGE_ITEM, _call_item(1), _call_item(2)],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 60},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 120,
    },
}


def _numbered(*events: dict[str, Any]) -> bytes:
    return _sse(*({"sequence_number": number, **event} for number, event in enumerate(events)), named=True)


def _item(index: int, item: dict[str, Any], kind: str, *pieces: str) -> list[dict[str, Any]]:
    place = {"output_index": index, "item_id": item["id"]}
    empty = {**item, **{key: type(item[key])() for key in ("summary", "content", "arguments") if key in item}}
    empty.pop("encrypted_content", None)
    part = {"summary_index": 0} if "summary" in kind else {"content_index": 0}
    return [
        {"type": "response.output_item.added", "output_index": index, "item": {**empty, "status": "in_progress"}},
        *({"type": f"response.{kind}.delta", **place, **part, "delta": piece} for piece in pieces),
        {"type": "response.output_item.done", "output_index": index, "item": item},
    ]


_CREATED = {**RESPONSES_WHOLE, "status": "in_progress", "output": [], "usage": None}
RESPONSES_STREAM = _numbered(
    {"type": "response.created", "response": _CREATED},
    {"type": "response.in_progress", "response": _CREATED},
    *_item(0, RESPONSES_WHOLE["output"][0], "reasoning_summary_text", "Let me ", "see."),
    *_item(1, _MESSAGE_ITEM, "output_text", "I read ", "both 🙂."),
    *_item(2, _call_item(1), "function_call_arguments", '{"path": ', '"a.py"}'),
    *_item(3, _call_item(2), "function_call_arguments", '{"path": ', '"b.py"}'),
    {"type": "response.completed", "response": RESPONSES_WHOLE},
)

STREAMS = {"chat": CHAT_STREAM, "messages": MESSAGES_STREAM, "responses": RESPONSES_STREAM}
WHOLES = {"chat": CHAT_WHOLE, "messages": MESSAGES_WHOLE, "responses": RESPONSES_WHOLE}

REFUSALS = {
    "chat": _sse(_chunk({"refusal": "I will not."}), _chunk({}, "stop"), named=False) + b"data: [DONE]\n\n",
    "messages": _sse(
        {
            "type": "message_start",
            "message": {
                **_MESSAGE,
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        },
        {
            "type": "message_delta",
            "delta": {
                "stop_reason": "refusal",
                "stop_sequence": None,
                "stop_details": {"type": "refusal", "category": None, "explanation": "I will not."},
            },
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
        named=True,
    ),
    "responses": _numbered(
        {"type": "response.created", "response": _CREATED},
        *_item(
            0,
            {**_MESSAGE_ITEM, "content": [{"type": "refusal", "refusal": "I will not."}]},
            "refusal",
            "I will ",
            "not.",
        ),
        {"type": "response.completed", "response": {**RESPONSES_WHOLE, "output": []}},
    ),
}
"""What says no, in each vendor's way."""

_ERROR = {"message": "The engine is on fire.", "type": "server_error", "code": "server_error", "param": None}
ERRORS = {
    "chat": _sse(_chunk({"content": "I "}), {"error": _ERROR}, named=False),
    "messages": _sse(
        {
            "type": "message_start",
            "message": {
                **_MESSAGE,
                "content": [],
                "stop_reason": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        },
        {"type": "error", "error": {"type": "api_error", "message": "The engine is on fire."}},
        named=True,
    ),
    "responses": _numbered(
        {"type": "response.created", "response": _CREATED},
        {"type": "error", "code": "server_error", "message": "The engine is on fire.", "param": None},
    ),
}
"""A reply that fails in its middle, in each vendor's way."""
