"""What the gateway tells of requests that it passed on unchanged."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from tests.gateway.gateway_harness import Answer, Gate, Recorder, Wire, built_gateway, replying, serving
from tests.gateway.scripted import (
    JSON,
    STREAM,
    TEXT,
    chat_reply,
    chat_stream,
    chat_usage,
    messages_stream,
    messages_usage,
    responses_stream,
    vendor,
)

from kvstet.api.sessions import VERDICTS

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages?beta=true", "/v1/responses"
SYSTEM = "You are a careful agent. " * 40
QUESTION = {"role": "user", "content": "Find the bug in the parser, and say where it is. " * 10}


def chat_body(*more: dict[str, Any], system: str = SYSTEM, **fields: Any) -> bytes:
    messages = [{"role": "system", "content": system}, QUESTION, *more]
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


REPLY = {"role": "assistant", "content": TEXT, "reasoning_content": "Let me see."}


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Recorder, Gate]]:
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url) as gate:
        yield recorder, gate


@pytest.fixture
def recorder(shared: tuple[Recorder, Gate]) -> Recorder:
    recorder, gate = shared
    gate.rows()
    gate.observer.requests._rows.clear()
    recorder.requests.clear()
    recorder.answer, recorder.plan = Answer(), None
    return recorder


@pytest.fixture
def gate(shared: tuple[Recorder, Gate], recorder: Recorder) -> Gate:
    return shared[1]


def rows(gate: Gate) -> list[dict[str, Any]]:
    """The oldest first."""
    return gate.rows()[::-1]


@pytest.mark.parametrize(
    ("path", "stream"), [(CHAT, chat_stream()), (MESSAGES, messages_stream()), (RESPONSES, responses_stream())]
)
def test_usage_of_a_stream_is_told_in_any_dialect(recorder: Recorder, gate: Gate, path: str, stream: bytes):
    recorder.answer = Answer(200, STREAM, tuple(stream[i : i + 11] for i in range(0, len(stream), 11)))
    content = {"model": "m", "messages": [QUESTION], "input": [QUESTION], "max_tokens": 5, "stream": True}
    gate.post(path, json.dumps(content).encode())
    (row,) = rows(gate)
    assert row["usage"] == {"input": 100, "cache_read": 80, "cache_write": row["usage"]["cache_write"], "output": 5} | {
        "reasoning": row["usage"]["reasoning"]
    }
    assert row["hit_rate"] == 0.8
    assert row["is_complete"]
    assert row["end"] == "stop"
    assert row["status"] == 200
    assert row["unread"] == []


def test_what_is_not_reported_is_not_known(recorder: Recorder, gate: Gate):
    reply = chat_reply(usage=chat_usage(1000, None))
    recorder.answer = Answer(200, JSON, (json.dumps(reply).encode(),))
    gate.post(CHAT, chat_body())
    (row,) = rows(gate)
    assert row["usage"]["input"] == 1000
    assert row["usage"]["cache_read"] is None
    assert row["hit_rate"] is None
    assert row["is_estimated"]
    exposition = gate.observer.metrics.exposition().decode()
    assert 'kvstet_gateway_unreported_requests_total{kind="cache_read"}' in exposition


def test_an_appended_message_is_told_as_one(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(200, STREAM, (chat_stream(usage=chat_usage(400, 0)),))
    gate.post(CHAT, chat_body(system=SYSTEM[::-1]))
    recorder.answer = Answer(200, STREAM, (chat_stream(usage=chat_usage(440, 384)),))
    gate.post(CHAT, chat_body(REPLY, {"role": "user", "content": "And now fix it. " * 8}, system=SYSTEM[::-1]))
    first, second = rows(gate)
    assert first["verdict"].startswith("New conversation")
    assert second["verdict"].startswith("Appended: computed 56 of 440 tokens, new from message 3 (user) on")
    assert first["conversation"] == second["conversation"]
    assert second["hit_rate"] == pytest.approx(384 / 440)


def test_a_changed_system_prompt_is_blamed(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(200, STREAM, (chat_stream(usage=chat_usage(400, 0)),))
    for day in ("Friday", "Saturday"):
        system = f"Today is {day}.\n{SYSTEM}"
        more = () if day == "Friday" else (REPLY, {"role": "user", "content": "Go on."})
        gate.post(CHAT, chat_body(*more, system=system), headers={"x-session-id": "one"})
    row = rows(gate)[-1]
    assert "the system prompt changed" in row["verdict"]
    assert row["edits"][0]["kind"] == "system_changed"
    assert row["session"] == rows(gate)[0]["session"] != "one"


def test_a_cache_that_forgot_is_told_apart_from_an_edit(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(200, STREAM, (chat_stream(usage=chat_usage(4000, 0)),))
    gate.post(CHAT, chat_body(system="Forgotten. " * 200))
    gate.post(CHAT, chat_body(REPLY, {"role": "user", "content": "Go on."}, system="Forgotten. " * 200))
    assert "had been evicted or could not be resumed" in rows(gate)[-1]["verdict"]


def test_the_vendors_own_reason_stands_beside_the_verdict(recorder: Recorder, gate: Gate):
    reason = {"cache_miss_reason": {"type": "system_changed", "cache_missed_input_tokens": 77}}
    recorder.answer = Answer(200, STREAM, (messages_stream(diagnostics=reason),))
    gate.post(MESSAGES, json.dumps({"model": "m", "max_tokens": 9, "messages": [QUESTION], "stream": True}).encode())
    (row,) = rows(gate)
    assert json.loads(row["vendor_reason"]) == reason["cache_miss_reason"]
    assert recorder.last.body.count(b"diagnostics") == 0


def test_a_reason_that_is_nested_deeply_or_has_lines_is_told_in_one(recorder: Recorder, gate: Gate):
    body = json.dumps({"model": "m", "max_tokens": 9, "messages": [QUESTION], "stream": True}).encode()
    deep = b'data: {"a":' + b'{"a":' * 900 + b'{"cache_miss_reason": "First.\\nSecond."}' + b"}" * 901 + b"\n\n"
    deeper = b'data: {"cache_miss_reason":' + b"[" * 100_000 + b"\n\n"
    recorder.answer = Answer(200, STREAM, (messages_stream(), deep, deeper))
    gate.post(MESSAGES, body)
    (row,) = rows(gate)
    assert row["vendor_reason"] == "First. Second."
    assert row["usage"]["input"] is not None


def test_more_rows_than_there_can_be_are_refused(gate: Gate):
    with gate.http() as client:
        for path in ("requests", "sessions"):
            for limit in ("0", "1001", "9" * 5000, "x"):
                assert client.get(f"/v1/kvstet/{path}?limit={limit}").status_code == 400, limit[:9]


def test_a_compressed_exchange_is_read(recorder: Recorder, gate: Gate):
    reply = gzip.compress(json.dumps(chat_reply()).encode())
    recorder.answer = Answer(200, [*JSON, (b"content-encoding", b"gzip")], (reply,))
    gate.post(CHAT, gzip.compress(chat_body()), headers={"content-encoding": "gzip"})
    (row,) = rows(gate)
    assert row["usage"]["input"] == 100
    assert row["verdict"]


@pytest.mark.parametrize(
    ("sent", "answer", "reason"),
    [
        (b"not JSON", Answer(200, JSON, (json.dumps(chat_reply()).encode(),)), "request"),
        (chat_body(), Answer(200, [*JSON, (b"content-encoding", b"br")], (b"\x00\x01",)), "response: content-encoding"),
        (chat_body(), Answer(200, [*JSON, (b"content-encoding", b"gzip")], (b"\x00\x01",)), "response: damaged gzip"),
        (chat_body(), Answer(200, JSON, (b"[1, 2",)), "response"),
        (b"[" * 10_000, Answer(200, STREAM, (b"data: " + b"[" * 10_000 + b"\n\n",)), "request"),
    ],
)
def test_what_cannot_be_read_passes_and_is_told(
    recorder: Recorder, gate: Gate, sent: bytes, answer: Answer, reason: str
):
    recorder.answer = answer
    with gate.http() as client, client.stream("POST", CHAT, content=sent) as response:
        assert b"".join(response.iter_raw()) == b"".join(answer.pieces)
    assert recorder.last.body == sent
    (row,) = rows(gate)
    assert any(each.startswith(reason) for each in row["unread"])


def test_an_error_of_the_observer_breaks_no_request(
    recorder: Recorder, gate: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    secret = "-".join(("SECRET", "PROMPT"))

    def fails(*_: Any) -> None:
        raise RuntimeError(secret)

    recorder.answer = Answer(200, JSON, (json.dumps(chat_reply()).encode(),))
    before = failures(gate)
    monkeypatch.setattr("kvstet.gateway.observing.observer.asked_of", fails)
    assert gate.post(CHAT, chat_body()).json() == chat_reply()
    assert rows(gate) == []
    assert failures(gate) == before + 1
    assert "could not be observed: RuntimeError" in caplog.text
    assert "SECRET-PROMPT" not in caplog.text


def failures(gate: Gate) -> float:
    lines = gate.observer.metrics.exposition().decode().splitlines()
    found = [line for line in lines if line.startswith('kvstet_gateway_observation_failures_total{what="observation"}')]
    return float(found[0].split()[-1]) if found else 0.0


def test_a_stream_that_broke_off_is_told_as_broken():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 100000\r\n\r\n"
    with Wire(replying(head + chat_stream()[:300])).running() as wire, built_gateway(wire.url) as gate:
        gate.asked(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % CHAT.encode())
        (row,) = gate.rows()
    assert not row["is_complete"]
    assert row["end"] is None


def test_errors_of_the_upstream_are_no_conversations(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(529, JSON, (b'{"type": "error", "error": {"type": "overloaded_error", "message": "x"}}',))
    gate.post(MESSAGES, json.dumps({"model": "m", "max_tokens": 9, "messages": [QUESTION]}).encode())
    (row,) = rows(gate)
    assert (row["status"], row["conversation"], row["verdict"], row["cost"]) == (529, None, None, None)


def test_other_paths_are_not_observed(recorder: Recorder, gate: Gate):
    for path in ("/v1/embeddings", "/v1/messages/count_tokens", "/v1/models"):
        gate.post(path, b'{"model": "m"}')
    assert rows(gate) == []


def test_each_key_sees_its_own(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(200, JSON, (json.dumps(chat_reply()).encode(),))
    gate.post(CHAT, chat_body(), headers={"authorization": "Bearer sk-mine"})
    gate.post(CHAT, chat_body(), headers={"x-api-key": "sk-theirs"})
    mine, also_mine, theirs = (
        gate.rows(x_api_key="sk-mine"),
        gate.rows(authorization="bearer sk-mine"),
        gate.rows(x_api_key="sk-theirs"),
    )
    assert len(mine) == len(theirs) == 1
    assert mine == also_mine != theirs
    # And no conversation of one is taken for that of the other.
    assert [row["edits"][0]["kind"] for row in (*mine, *theirs)] == ["new_conversation"] * 2
    with gate.http() as client:
        sessions = client.get("/v1/kvstet/sessions", headers={"x-api-key": "sk-theirs"}).json()["data"]
    assert [len(session["requests"]) for session in sessions] == [1]


def test_explain_reads_a_gateway(recorder: Recorder, gate: Gate):
    from kvstet.cli.explain import fetched, told

    recorder.answer = Answer(200, JSON, (json.dumps(chat_reply()).encode(),))
    gate.post(CHAT, chat_body(), headers={"authorization": "Bearer sk-explained"})
    gate.rows()
    (conversation,) = fetched(gate.url, 5, "sk-explained")
    head = told(conversation["requests"][0]).head
    assert "reused 80, computed 20" in head


def test_a_line_is_logged_for_each_request(recorder: Recorder, gate: Gate, caplog: pytest.LogCaptureFixture):
    recorder.answer = Answer(200, STREAM, (messages_stream(usage=messages_usage(2000, 1500, 100)),))
    body = {"model": "m", "max_tokens": 9, "messages": [QUESTION], "stream": True}
    with caplog.at_level(logging.INFO, VERDICTS):
        gate.post(MESSAGES, json.dumps(body).encode())
        rows(gate)
    line = caplog.messages[-1]
    assert "2,000 tokens in, 75.0% from the cache" in line
    assert "omputed 500 of 2,000 tokens" in line
    assert QUESTION["content"] not in caplog.text


def test_prompts_are_logged_for_who_asks_for_it(caplog: pytest.LogCaptureFixture):
    recorder = Recorder(plan=vendor("chat"))
    with (
        caplog.at_level(logging.INFO, VERDICTS),
        serving(recorder) as url,
        built_gateway(url, logs_prompts=True) as gate,
    ):
        gate.post(CHAT, chat_body())
        gate.rows()
    assert QUESTION["content"] in caplog.text
