from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from tests.dialects.recorded import NAMES, plans, recorded
from tests.dialects.sdk_types import check_body

from kvstet.dialects.dialect import Dialect, DialectName, StreamReader, dialect_named, dialect_of_path
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    ReasoningDelta,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
)
from kvstet.dialects.request import Request
from kvstet.dialects.tools import callable_tools, name_of
from kvstet.dialects.values import body_of
from kvstet.dialects.whole import reply_of

DIALECTS: tuple[DialectName, ...] = ("chat", "messages", "responses")
CLAUDE = "claude-opus-5"


def spoken(path: str) -> Dialect:
    dialect = dialect_of_path(path)
    assert dialect is not None
    return dialect


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_request_means_the_same_after_its_own_dialect(name: str) -> None:
    for path, body in recorded(name):
        dialect = spoken(path)
        # For a Claude: other vendors take neither system turns nor an effort there.
        model = CLAUDE if dialect.name == "messages" else body["model"]
        request = replace(dialect.read_request(body), model=model)
        back = dialect.read_request(dialect.write_request(request).body)
        assert back.messages == request.messages
        assert back.tools == request.tools
        # The API wants a limit, and counting tokens has none; a stream's usage is asked for in any case.
        filled = {
            "max_output_tokens": request.terms.max_output_tokens or back.terms.max_output_tokens,
            "includes_usage": back.terms.includes_usage,
        }
        assert back.terms == replace(request.terms, **filled)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", DIALECTS)
def test_a_recorded_request_is_valid_in_every_dialect(name: str, other: DialectName) -> None:
    for path, body in recorded(name):
        request = spoken(path).read_request(body)
        for model in (CLAUDE, "claude-sonnet-4-5", "gpt-5.6", "local-coder"):
            check_body(other, dialect_named(other).write_request(replace(request, model=model)).body)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", DIALECTS)
def test_what_a_recorded_request_says_survives_in_every_dialect(name: str, other: DialectName) -> None:
    """Every text, every call and every result is there again, and in the same order."""
    for path, body in recorded(name):
        request = replace(spoken(path).read_request(body), model=CLAUDE)
        back = dialect_named(other).read_request(dialect_named(other).write_request(request).body)
        assert said(back, "user", "assistant") == said(request, "user", "assistant")
        assert [*calls(back)] == [*calls(request)]
        there = request.tools if other == "messages" else callable_tools(request.tools, request.messages)
        assert [name_of(tool) for tool in back.tools] == [name_of(tool) for tool in there]


def said(request: Request, *roles: str) -> str:
    """Of a client's texts, all characters but white space: blank texts and the lines between parts may go."""
    contents = [message["content"] for message in request.messages if message["role"] in roles]
    texts = [text for content in contents for text in texts_in(content)]
    return "".join("".join(texts).split()).replace("Goon.", "")


def texts_in(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def calls(request: Request) -> list[Any]:
    called = [call for message in request.messages for call in message.get("tool_calls", ())]
    results = {message["tool_call_id"] for message in request.messages if message["role"] == "tool"}
    functions = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in called]
    return [*functions, sorted(results)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("client", DIALECTS)
def test_a_recorded_reply_arrives_whole_through_each_dialect(name: str, client: DialectName) -> None:
    for plan in plans(name):
        deltas = deltas_of(plan)
        writer = dialect_named(client).reply_writer(Request(model="m"))
        reader = StreamReader(dialect_named(client))
        back = reply_of([*reader.feed(b"".join(map(writer.feed, deltas))), *reader.finish()])
        assert back.text.strip() == (plan.get("text") or "").strip()
        assert back.reasoning == (plan.get("reasoning") or "")
        sent = [(call["id"], call["args_raw"]) for call in plan.get("calls") or ()]
        assert [(call.id, call.arguments) for call in back.calls] == sent
        assert back.end == ReplyEnd("tool_calls" if sent else "stop")


def deltas_of(plan: dict[str, Any]) -> list[Delta]:
    deltas: list[Delta] = [ReplyBegin("m")]
    deltas += [ReasoningDelta(plan["reasoning"])] if plan.get("reasoning") else []
    deltas += [TextDelta(plan["text"])] if plan.get("text") else []
    for index, call in enumerate(plan.get("calls") or ()):
        name = call["name"].replace(".", "__")
        deltas += [CallBegin(index, call["id"], name), ArgumentsDelta(index, call["args_raw"]), CallEnd(index)]
    return [*deltas, ReplyEnd("tool_calls" if plan.get("calls") else "stop")]


def test_the_billing_header_of_claude_code_goes_to_no_other_vendor() -> None:
    path, body = next(iter(recorded("claude")))
    request = spoken(path).read_request(body)
    assert "x-anthropic-billing-header" in json.dumps(body)
    assert "system.x-anthropic-billing-header" in request.dropped
    assert "x-anthropic-billing-header" not in json.dumps(dialect_named("chat").write_request(request).body)


def test_namespaces_of_codex_are_there_again() -> None:
    path, body = next(iter(recorded("codex")))
    request = spoken(path).read_request(body)
    names = [tool["function"]["name"] for tool in request.tools]
    assert "multi_agent_v1__spawn_agent" in names
    written = dialect_named("responses").write_request(request).body["tools"]
    assert [tool for tool in body["tools"] if tool["type"] == "namespace"] == [
        tool for tool in written if tool["type"] == "namespace"
    ]


def test_a_body_of_200_kilobytes_is_read_and_written_in_a_few_milliseconds() -> None:
    path, body = max(recorded("opencode-prune"), key=lambda entry: len(json.dumps(entry[1])))
    data = json.dumps(body).encode()
    assert len(data) > 200_000
    best = min(_seconds(path, data) for _ in range(5))
    assert best < 0.05, f"{best * 1000:.1f} ms"  # 2 ms where nothing else runs


def _seconds(path: str, data: bytes) -> float:
    start = time.perf_counter()
    dialect_named("messages").write_request(spoken(path).read_request(body_of(data)))
    return time.perf_counter() - start
