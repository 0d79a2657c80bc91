"""Requests in all dialects that are served as they stand: recorded ones, and short ones that use what clients rarely
do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.api.mutations import Sample, shortened
from tests.api.traces import FOLDER, steps

_PER_SESSION = 4
"""The requests of one session are much alike."""

_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 20},
        "places": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "days": {"type": "integer"},
        "tags": {"enum": ["a", 1]},
    },
    "required": ["city"],
}
_FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": _SCHEMA}
_TOOL = {"type": "function", "function": _FUNCTION}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
_USER = {"role": "user", "content": "Hi"}
_CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Rome?"}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
        {"role": "developer", "content": "Be brief."},
        _USER,
    ],
    "tools": [_TOOL],
}
_BLOCKS: dict[str, Any] = {
    "model": "tiny",
    "max_tokens": 100,
    "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {"role": "user", "content": "Rome?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "kvstet1.abc"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_1",
                    "is_error": False,
                    "content": [{"type": "text", "text": "sunny"}, {"type": "tool_reference", "tool_name": "later"}],
                },
                {"type": "text", "text": "Go on."},
            ],
        },
    ],
    "tools": [
        {"name": "weather", "description": "Tells the weather.", "input_schema": _SCHEMA},
        {"name": "later", "input_schema": {"type": "object"}, "defer_loading": True},
    ],
}
_OLLAMA: dict[str, Any] = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Rome?"},
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Rome", "days": 3}}}],
        },
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
        _USER,
    ],
    "tools": [_TOOL],
}

HANDWRITTEN = (
    Sample("/v1/chat/completions", _CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    Sample("/v1/chat/completions", _CHAT | {"tool_choice": "required", "parallel_tool_calls": False}),
    Sample(
        "/v1/chat/completions",
        _CHAT | {"tool_choice": {"type": "function", "function": {"name": "weather"}}, "reasoning_effort": "low"},
    ),
    Sample(
        "/v1/chat/completions",
        {
            "messages": [_USER],
            "n": 2,
            "logprobs": True,
            "top_logprobs": 3,
            "stop": ["x", "END"],
            "seed": 7,
            "temperature": 0.5,
            "logit_bias": {"65": -100},
            "max_completion_tokens": 20,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}},
        },
    ),
    Sample("/v1/chat/completions", {"messages": [_USER], "response_format": {"type": "json_object"}, "stream": True}),
    Sample("/v1/chat/completions", {"messages": [_USER], "chat_template_kwargs": {"enable_thinking": False}}),
    Sample("/v1/completions", {"prompt": "Once", "max_tokens": 5, "logprobs": 2, "stream": True}),
    Sample("/v1/completions", {"prompt": ["Once", [65, 66]], "n": 2, "echo": True, "grammar": 'root ::= "a"'}),
    Sample("/v1/responses", {"input": "Hi", "instructions": "Be kind.", "store": True, "temperature": 0.2}),
    Sample(
        "/v1/responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Rome?"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "encrypted_content": None},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            ],
            "tools": [{"type": "function", **_FUNCTION, "strict": True}],
            "tool_choice": "auto",
            "text": {"format": {"type": "json_schema", "name": "a", "schema": _SCHEMA}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "truncation": "auto",
            "stream": True,
            "max_output_tokens": 50,
        },
    ),
    Sample("/v1/messages", _BLOCKS | {"thinking": {"type": "enabled", "budget_tokens": 1024}, "stream": True}),
    Sample("/v1/messages", _BLOCKS | {"tool_choice": {"type": "auto"}, "stop_sequences": ["x"], "temperature": 1}),
    Sample("/v1/messages", _BLOCKS | {"output_config": {"effort": "low"}, "context_management": {"edits": []}}),
    Sample("/v1/messages/count_tokens", {key: value for key, value in _BLOCKS.items() if key != "max_tokens"}),
    Sample("/api/chat", _OLLAMA),
    Sample("/api/chat", _OLLAMA | {"stream": False, "think": "low", "keep_alive": "5m"}),
    Sample(
        "/api/chat",
        {
            "messages": [_USER],
            "stream": False,
            "format": _SCHEMA,
            "think": True,
            "logprobs": True,
            "top_logprobs": 2,
            "options": {"num_predict": 9, "temperature": 0, "top_k": 3, "stop": ["x"], "seed": 1, "num_ctx": 4096},
        },
    ),
    Sample("/api/generate", {"prompt": "Hi", "system": "Be kind.", "template": "{{ .Prompt }}", "format": "json"}),
    Sample("/api/generate", {"prompt": "Hi", "raw": True, "stream": False, "options": {"repeat_last_n": -1}}),
    Sample("/api/generate", {"model": "tiny", "prompt": "", "suffix": "", "context": [], "images": []}),
    Sample("/api/show", {"model": "tiny", "verbose": True}),
    Sample("/api/embed", {"model": "tiny", "input": ["Hi"]}),
    Sample("/tokenize", {"content": "Hi <|im_end|>", "add_special": True, "with_pieces": True}),
    Sample("/detokenize", {"tokens": [72, 105]}),
    Sample("/apply-template", _CHAT),
)


def recorded() -> Iterator[Sample]:
    """Some requests of every recorded session, their texts cut short."""
    for file in sorted(FOLDER.glob("*.jsonl.xz")):
        name = file.name.partition(".")[0]
        if not name.endswith("-requests"):
            session = [step for step in steps(name) if step.body]
            for step in session[:: max(1, len(session) // _PER_SESSION)]:
                yield Sample(step.path, shortened(json.loads(step.body)))
