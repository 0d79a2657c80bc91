"""Neutral requests and replies for tests, and strategies that draw them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    ReasoningDelta,
    ReasoningSeal,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.request import ANTHROPIC_FORMAT, OPENAI_FORMAT, Message, Reasoning, Request, Terms, ToolChoice
from kvstet.types import Usage

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SIGNED = {"type": "reasoning.text", "signature": "c2lnbmVk", "format": ANTHROPIC_FORMAT}
ENCRYPTED = {"type": "reasoning.encrypted", "data": "Z0FBQUE=", "id": "rs_1", "format": OPENAI_FORMAT}

USAGE = Usage(
    num_input_tokens=100,
    num_cache_read_tokens=60,
    num_cache_write_tokens=30,
    num_output_tokens=20,
    num_reasoning_tokens=5,
)

TOOL = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "Reads a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {**TOOL, "function": {**TOOL["function"], "name": name}, **more}


def call(id: str, name: str = "read", arguments: str = '{"path":"a"}') -> Message:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str = "", *calls: Message, **more: Any) -> Message:
    return {"role": "assistant", "content": content, **more, **({"tool_calls": list(calls)} if calls else {})}


def result(id: str, content: Any, **more: Any) -> Message:
    return {"role": "tool", "content": content, "tool_call_id": id, **more}


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def request(*messages: Message, model: str = "some-model", tools: Sequence[Any] = (), **terms: Any) -> Request:
    return Request(model=model, messages=messages, tools=tuple(tools), terms=Terms(**terms))


SESSION = request(
    system("You are an agent."),
    user(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        ]
    ),
    assistant("I look.", call("call_1"), call("call_2", "read", '{"path":"b"}')),
    result("call_1", "one"),
    result("call_2", "two"),
    user("Go on."),
    tools=[TOOL],
    max_output_tokens=4000,
    is_streamed=True,
)
"""Says only what every dialect can say."""

# What may stand in any text: no surrogates, which are not UTF-8.
texts = st.text(st.characters(codec="utf-8"), max_size=20)
words = st.text('abcdefghij ÄÖ\n"\\{}🙂', min_size=1, max_size=12).filter(lambda text: bool(text.strip()))
names = st.text("abcdefghijklmnop_-", min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(names, json_values, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
)
images = st.sampled_from([f"data:image/png;base64,{PIXEL}", "https://example.org/a.png"]).map(
    lambda url: {"type": "image_url", "image_url": {"url": url}}
)
text_parts = words.map(lambda text: {"type": "text", "text": text})
contents = words | st.lists(text_parts | images, min_size=2, max_size=3)


@st.composite
def conversations(draw: st.DrawFn, *, detail: dict[str, Any] | None = None) -> list[Message]:
    """System, then turns of a user and an assistant who calls; sealed reasoning where a ``detail`` is given."""
    messages: list[Message] = [system(draw(words))] if draw(st.booleans()) else []
    num_calls = 0
    for _ in range(draw(st.integers(1, 3))):
        messages.append(user(draw(contents)))
        calls = [
            call(f"call_{num_calls + index}", draw(names), draw(arguments)) for index in range(draw(st.integers(0, 3)))
        ]
        num_calls += len(calls)
        said = draw(words) if not calls or draw(st.booleans()) else ""
        thoughts = draw(words) if detail is not None and draw(st.booleans()) else ""
        messages.append(assistant(said, *calls, **(_sealed(detail, thoughts) if detail and thoughts else {})))
        messages += [result(called["id"], draw(words)) for called in calls]
    return [*messages, user(draw(words))]


def _sealed(detail: dict[str, Any], thoughts: str) -> dict[str, Any]:
    key = "text" if detail["type"] == "reasoning.text" else "summary"
    return {"reasoning_content": thoughts, "reasoning_details": [{**detail, key: thoughts}]}


terms = st.builds(
    Terms,
    max_output_tokens=st.integers(1025, 60_000),
    tool_choice=st.none() | st.sampled_from([ToolChoice("auto"), ToolChoice("none"), ToolChoice("required")]),
    allows_parallel_calls=st.none() | st.just(False),
    reasoning=st.none() | st.sampled_from(["none", "low", "medium", "high", "xhigh", "max"]).map(Reasoning),
    response_format=st.none()
    | st.just({"type": "json_schema", "json_schema": {"name": "reply", "schema": {"type": "object"}}}),
    is_streamed=st.booleans(),
    user=st.none() | st.just("somebody"),
)


@st.composite
def requests(draw: st.DrawFn, *, detail: dict[str, Any] | None = None, model: str = "some-model") -> Request:
    tools = [tool(name) for name in draw(st.lists(names, min_size=1, max_size=4, unique=True))]
    messages = draw(conversations(detail=detail))
    return Request(model=model, messages=tuple(messages), tools=tuple(tools), terms=draw(terms))


@st.composite
def replies(draw: st.DrawFn, *, detail: dict[str, Any] | None = None) -> list[Delta]:
    """The deltas of one reply, its texts in pieces."""
    deltas: list[Delta] = [ReplyBegin("some-model", "id_1")]
    if draw(st.booleans()):
        deltas += [ReasoningDelta(piece) for piece in draw(st.lists(words, min_size=1, max_size=3))]
        deltas += [ReasoningSeal(detail)] if detail else []
    if draw(st.booleans()):
        deltas += [TextDelta(piece) for piece in draw(st.lists(words, min_size=1, max_size=3))]
    num_calls = draw(st.integers(0, 3))
    for index in range(num_calls):
        said = draw(arguments)
        cut = draw(st.integers(0, len(said)))
        pieces = [piece for piece in (said[:cut], said[cut:]) if piece]
        deltas += [CallBegin(index, f"call_{index}", draw(names)), *(ArgumentsDelta(index, piece) for piece in pieces)]
        deltas.append(CallEnd(index))
    reason = draw(st.sampled_from(["length", "content_filter"]) | st.just("tool_calls" if num_calls else "stop"))
    return [*deltas, UsageNews(USAGE), ReplyEnd(reason)]
