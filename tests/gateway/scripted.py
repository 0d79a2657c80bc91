"""Upstreams that answer as each vendor's API does: events as they go over the wire, written down by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tests.gateway.gateway_harness import Answer, Recorded

STREAM = [(b"content-type", b"text/event-stream")]
JSON = [(b"content-type", b"application/json")]

CALL = {"id": "call_1", "name": "read", "arguments": '{"path": "a.txt"}'}
THOUGHT, TEXT = "Let me see.", "Hello, wörld."


def chat_usage(given: int, read: int | None, made: int = 5) -> dict[str, Any]:
    details = {} if read is None else {"prompt_tokens_details": {"cached_tokens": read}}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made, **details}


def messages_usage(given: int, read: int, write: int = 0, made: int = 5) -> dict[str, Any]:
    return {
        "input_tokens": given - read - write,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": write,
        "output_tokens": made,
    }


def responses_usage(given: int, read: int, made: int = 5) -> dict[str, Any]:
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": read},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }


def data(events: Iterable[Mapping[str, Any] | str]) -> bytes:
    texts = (event if isinstance(event, str) else json.dumps(event, ensure_ascii=False) for event in events)
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def named(events: Iterable[Mapping[str, Any]]) -> bytes:
    texts = (f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)
    return "".join(texts).encode()


def chat_reply(*, calls: bool = False, usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": TEXT, "reasoning_content": THOUGHT}
    if calls:
        function = {"name": CALL["name"], "arguments": CALL["arguments"]}
        message["tool_calls"] = [{"id": CALL["id"], "type": "function", "function": function}]
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "up-model"}
    return {**head, "choices": [choice], "usage": usage or chat_usage(100, 80)}


def chat_stream(*, calls: bool = False, usage: Mapping[str, Any] | None = None) -> bytes:
    def chunk(delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**head, "choices": [choice]}

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "up-model"}
    events = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": THOUGHT}),
        chunk({"content": TEXT[:5]}),
        chunk({"content": TEXT[5:]}),
    ]
    if calls:
        half = len(CALL["arguments"]) // 2
        function = {"name": CALL["name"], "arguments": CALL["arguments"][:half]}
        events.append(chunk({"tool_calls": [{"index": 0, "id": CALL["id"], "type": "function", "function": function}]}))
        events.append(chunk({"tool_calls": [{"index": 0, "function": {"arguments": CALL["arguments"][half:]}}]}))
    events += [
        chunk({}, "tool_calls" if calls else "stop"),
        {**head, "choices": [], "usage": usage or chat_usage(100, 80)},
    ]
    return data([*events, "[DONE]"])


def messages_reply(
    *, calls: bool = False, usage: Mapping[str, Any] | None = None, diagnostics: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"type": "thinking", "thinking": THOUGHT, "signature": "c2ln"},
        {"type": "text", "text": TEXT},
    ]
    if calls:
        content.append(
            {"type": "tool_use", "id": CALL["id"], "name": CALL["name"], "input": json.loads(CALL["arguments"])}
        )
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "up-model",
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": usage or messages_usage(100, 80),
        **({"diagnostics": diagnostics} if diagnostics else {}),
    }


def messages_stream(
    *,
    calls: bool = False,
    usage: Mapping[str, Any] | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    id: str = "msg_1",
) -> bytes:
    reply = messages_reply(calls=calls, usage=usage, diagnostics=diagnostics)
    start = {**reply, "id": id, "content": [], "stop_reason": None, "usage": {**reply["usage"], "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]

    def block(index: int, begin: Mapping[str, Any], *deltas: Mapping[str, Any]) -> None:
        events.append({"type": "content_block_start", "index": index, "content_block": begin})
        events.extend({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        events.append({"type": "content_block_stop", "index": index})

    block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": THOUGHT},
        {"type": "signature_delta", "signature": "c2ln"},
    )
    block(
        1,
        {"type": "text", "text": ""},
        {"type": "text_delta", "text": TEXT[:5]},
        {"type": "text_delta", "text": TEXT[5:]},
    )
    if calls:
        half = len(CALL["arguments"]) // 2
        block(
            2,
            {"type": "tool_use", "id": CALL["id"], "name": CALL["name"], "input": {}},
            {"type": "input_json_delta", "partial_json": CALL["arguments"][:half]},
            {"type": "input_json_delta", "partial_json": CALL["arguments"][half:]},
        )
    end = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 5}})
    return named([*events, {"type": "message_stop"}])


def _items(calls: bool) -> list[dict[str, Any]]:
    text = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": []}
    summary = [{"type": "summary_text", "text": THOUGHT}]
    items: list[dict[str, Any]] = [
        {"id": "rs_1", "type": "reasoning", "summary": summary, "encrypted_content": "c2VhbA=="},
        {"id": "m_1", "type": "message", "role": "assistant", "status": "completed", "content": [text]},
    ]
    if calls:
        call = {"call_id": CALL["id"], "name": CALL["name"], "arguments": CALL["arguments"], "status": "completed"}
        items.append({"id": "fc_1", "type": "function_call", **call})
    return items


def responses_reply(*, calls: bool = False, usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": "up-model",
        "output": _items(calls),
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": usage or responses_usage(100, 80),
    }


def responses_stream(*, calls: bool = False, usage: Mapping[str, Any] | None = None) -> bytes:
    whole = responses_reply(calls=calls, usage=usage)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(_items(calls)):
        place = {"output_index": index, "item_id": item["id"]}
        empty = {**item, **{name: [] for name in ("content", "summary") if name in item}}
        if "arguments" in item:
            empty["arguments"] = ""
        events.append({"type": "response.output_item.added", "output_index": index, "item": empty})
        match item["type"]:
            case "reasoning":
                part = {"type": "summary_text", "text": ""}
                events += [
                    {"type": "response.reasoning_summary_part.added", "summary_index": 0, "part": part, **place},
                    {"type": "response.reasoning_summary_text.delta", "summary_index": 0, "delta": THOUGHT, **place},
                    {"type": "response.reasoning_summary_text.done", "summary_index": 0, "text": THOUGHT, **place},
                ]
            case "message":
                part = {"type": "output_text", "text": "", "annotations": []}
                at = {**place, "content_index": 0}
                events += [
                    {"type": "response.content_part.added", "part": part, **at},
                    {"type": "response.output_text.delta", "delta": TEXT[:5], "logprobs": [], **at},
                    {"type": "response.output_text.delta", "delta": TEXT[5:], "logprobs": [], **at},
                    {"type": "response.output_text.done", "text": TEXT, "logprobs": [], **at},
                    {"type": "response.content_part.done", "part": item["content"][0], **at},
                ]
            case _:
                half = len(CALL["arguments"]) // 2
                kind = "response.function_call_arguments"
                events += [
                    {"type": f"{kind}.delta", "delta": CALL["arguments"][:half], **place},
                    {"type": f"{kind}.delta", "delta": CALL["arguments"][half:], **place},
                    {"type": f"{kind}.done", "arguments": CALL["arguments"], "name": CALL["name"], **place},
                ]
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": whole})
    return named({**event, "sequence_number": number} for number, event in enumerate(events))


WHOLE = {"chat": chat_reply, "messages": messages_reply, "responses": responses_reply}
STREAMED = {"chat": chat_stream, "messages": messages_stream, "responses": responses_stream}


def vendor(dialect: str, *, calls: bool = False) -> Any:
    """What an upstream of this dialect says to a request, streamed or not, as it is asked; in many small pieces."""

    def plan(request: Recorded) -> Answer:
        if json.loads(request.body).get("stream"):
            content = STREAMED[dialect](calls=calls)
            return Answer(200, STREAM, tuple(content[i : i + 37] for i in range(0, len(content), 37)))
        return Answer(200, JSON, (json.dumps(WHOLE[dialect](calls=calls)).encode(),))

    return plan
