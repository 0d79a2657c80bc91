"""What is taken of files of recorded requests, and what is left out and told (`kvstet.cli.traces`)."""

from __future__ import annotations

import json
import lzma
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from kvstet.cli.traces import parse_trace, read_trace
from kvstet.demo.session import load_session
from kvstet.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "Hi"}]


def exchange(path: str, body: object) -> dict[str, Any]:
    return {"seq": 1, "dir": "request", "method": "POST", "path": path, "headers": [], "body_raw": json.dumps(body)}


def lines(*entries: object) -> bytes:
    return b"\n".join(json.dumps(entry).encode() for entry in entries)


def test_the_demo_session_is_taken_whole():
    trace = parse_trace(files("kvstet.demo").joinpath("session.jsonl").read_bytes().splitlines())
    session = load_session()
    assert [request.label for request in trace.requests] == [request.label for request in session.requests]
    assert [request.fields.messages for request in trace.requests] == [
        request.body["messages"] for request in session.requests
    ]
    assert trace.requests[1].fields.tools == session.requests[1].body["tools"]
    assert trace.skipped == ()


def test_of_recorded_exchanges_the_chat_requests_are_taken():
    trace = parse_trace(
        lines(
            exchange("/v1/chat/completions", {"messages": MESSAGES, "tools": [], "reasoning_effort": "low"}),
            {"seq": 1, "dir": "response", "kind": "sse", "status": 200},
            exchange("/v1/messages?beta=true", {"messages": MESSAGES, "system": "You are"}),
            exchange("/v1/messages?beta=true", {"messages": MESSAGES}),
            exchange("/v1/responses", {"input": []}),
            exchange("/v1/chat/completions?x=1", {"messages": MESSAGES}),
        ).splitlines()
    )
    assert [request.label for request in trace.requests] == ["request 1", "request 2"]
    assert trace.requests[0].fields.reasoning_effort == "low"
    assert trace.skipped == (
        ("/v1/messages is not OpenAI's /chat/completions", 2),
        ("/v1/responses is not OpenAI's /chat/completions", 1),
    )


def test_bare_bodies_and_empty_lines_will_do():
    data = b"\n" + lines({"messages": MESSAGES}, {"client": "a header"}, {"messages": MESSAGES}) + b"\n\n"
    trace = parse_trace(data.splitlines())
    assert len(trace.requests) == 2 and trace.skipped == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (lines({"messages": []}), "not a chat request"),
        (lines({"messages": "Hi"}), "not a chat request"),
        (lines({"body": 3}), "not a JSON object"),
        (lines(exchange("/v1/chat/completions", [1])), "not a JSON object"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted(line: bytes, words: str):
    trace = parse_trace((line + b"\n" + lines({"messages": MESSAGES})).splitlines())
    assert len(trace.requests) == 1
    ((reason, count),) = trace.skipped
    assert words in reason and count == 1


def test_a_packed_file_is_read(tmp_path: Path):
    path = tmp_path / "session.jsonl.xz"
    path.write_bytes(lzma.compress(lines({"messages": MESSAGES})))
    assert len(read_trace(path).requests) == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.jsonl", None, "No such file"),
        ("torn.jsonl.xz", b"\xfd7zXZ", "Cannot read"),
        ("empty.jsonl", b"", "it holds no requests"),
        ("claude.jsonl", lines(exchange("/v1/messages", {})), "1 left out: /v1/messages is not"),
    ],
)
def test_a_file_with_nothing_to_replay_is_refused(name: str, data: bytes | None, words: str, tmp_path: Path):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InvalidRequest, match=words):
        read_trace(path)
