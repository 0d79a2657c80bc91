"""OpenAI-style logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.traces_import.real_sessions import bodies, plans, responses, written

from kvstet.traces.format import Call, Plan, Request
from kvstet.traces.importing.importers import import_file
from kvstet.traces.importing.openai_logs import NO_REQUEST

BODY: dict[str, Any] = {"model": "gpt-x", "messages": [{"role": "user", "content": "Weather?"}]}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":  1}'}}
MESSAGE = {"role": "assistant", "content": "Well:", "reasoning_content": "Hm.", "tool_calls": [CALL]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-x-1",
    "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "tool_calls"}],
    "usage": USAGE,
}
PLAN = Plan(reasoning="Hm.", text="Well:", calls=[Call(name="look", args_raw='{"a":  1}', id="c1")])


@pytest.mark.parametrize("texts", [False, True], ids=["objects", "texts"])
def test_pairs_of_request_and_response(texts: bool, tmp_path: Path):
    request, response = (json.dumps(BODY), json.dumps(REPLY)) if texts else (BODY, REPLY)
    entry = {"request": request, "response": response, "timestamp": 1_700_000_000}
    later = {**entry, "timestamp": "2023-11-14T22:13:25Z"}
    lines = list(import_file(written(tmp_path / "log.jsonl", entry, later, {"request": BODY})))
    assert bodies(lines) == [BODY] * 3
    assert plans(lines) == [PLAN, PLAN, None]
    assert [(answer.model, answer.usage, answer.status) for answer in responses(lines)] == [("gpt-x-1", USAGE, 200)] * 2
    assert [line.t for line in lines if isinstance(line, Request)] == [0.0, 5.0, 5.0]
    assert getattr(lines[0], "wall", None) == 1_700_000_000


def test_paths_tell_the_dialect(tmp_path: Path):
    reply = {
        "content": [{"type": "text", "text": "Yes."}],
        "role": "assistant",
        "type": "message",
        "stop_reason": "end_turn",
    }
    asked = {"model": "m", "max_tokens": 5, "messages": BODY["messages"]}
    entries = [
        {"request": asked, "response": reply, "url": "https://api.example.com/v1/messages"},
        {
            "request": {"model": "m", "input": "Hi"},
            "response": {
                "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Ho"}]}]
            },
        },
        {"request": BODY, "path": "/v1/embeddings"},
    ]
    found = import_file(written(tmp_path / "log.jsonl", *entries))
    lines = list(found)
    assert [line.path for line in lines if isinstance(line, Request)] == ["/v1/messages", "/v1/responses"]
    assert [plan and plan.text for plan in plans(lines)] == ["Yes.", "Ho"]
    assert found.passed_over == {NO_REQUEST: 1}


def test_examples_for_fine_tuning_are_a_step_for_each_reply(tmp_path: Path):
    messages = [*BODY["messages"], MESSAGE, {"role": "tool", "tool_call_id": "c1", "content": "Sun."}]
    example = {"messages": [*messages, {"role": "assistant", "content": "Sunny."}], "tools": [{"type": "function"}]}
    lines = list(import_file(written(tmp_path / "train.jsonl", example, {"messages": messages})))
    assert [len(body["messages"]) for body in bodies(lines)] == [1, 3, 1, 3]
    assert plans(lines) == [PLAN, Plan(text="Sunny."), PLAN, None]
    assert bodies(lines)[0]["tools"] == [{"type": "function"}]


@pytest.mark.parametrize("is_behind", [True, False])
def test_batches_are_joined_with_their_output(is_behind: bool, tmp_path: Path):
    asked = [{"custom_id": str(n), "method": "POST", "url": "/v1/chat/completions", "body": BODY} for n in range(3)]
    output = [
        {
            "id": "b1",
            "custom_id": "1",
            "response": {"status_code": 200, "request_id": "r", "body": REPLY},
            "error": None,
        },
        {"id": "b0", "custom_id": "0", "response": {"status_code": 429, "body": {"error": {"message": "Slow down"}}}},
    ]
    entries = [*asked, *output] if is_behind else [*output, *asked]
    found = import_file(written(tmp_path / "batch.jsonl", *entries))
    lines = list(found)
    assert plans(lines) == [None, PLAN, None]
    assert [(answer.seq, answer.status) for answer in responses(lines)] == [(1, 429), (2, 200)]
    assert "Slow down" in (responses(lines)[0].error_raw or "")
    assert not found.passed_over


def test_har_files_streams_included(tmp_path: Path):
    def entry(url: str, answer: str, mime: str = "application/json") -> dict[str, Any]:
        return {
            "startedDateTime": "2023-11-14T22:13:20.000Z",
            "request": {
                "method": "POST",
                "url": url,
                "postData": {"mimeType": "application/json", "text": json.dumps(BODY)},
            },
            "response": {"status": 200, "content": {"mimeType": mime, "text": answer}},
        }

    chunk = {"id": "1", "model": "gpt-x-1", "choices": [{"index": 0, "delta": {"content": "Sun"}}]}
    end = {"id": "1", "model": "gpt-x-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    stream = f"data: {json.dumps(chunk)}\n\ndata: {json.dumps(end)}\n\ndata: [DONE]\n\n"
    entries = [
        entry("https://api.example.com/v1/chat/completions?a=1", json.dumps(REPLY)),
        entry("https://api.example.com/v1/chat/completions", stream, "text/event-stream; charset=utf-8"),
        {"request": {"method": "GET", "url": "https://example.com/"}, "response": {"status": 200}},
    ]
    path = tmp_path / "page.har"
    path.write_text(json.dumps({"log": {"version": "1.2", "entries": entries}}, indent=1))
    found = import_file(path)
    lines = list(found)
    assert plans(lines) == [PLAN, Plan(text="Sun")]
    assert [line.path for line in lines if isinstance(line, Request)] == [
        "/v1/chat/completions?a=1",
        "/v1/chat/completions",
    ]
    assert found.passed_over == {NO_REQUEST: 1}
