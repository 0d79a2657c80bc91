"""What a gateway records of what passes: the client's side of it, byte for byte, and the reply that was read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.api.anthropic_harness import calling, thinking
from tests.api.harness import reply
from tests.api.responses_harness import running_responses
from tests.gateway.gateway_harness import Answer, Gate, Recorder, built_gateway, serving
from tests.traces.test_serving_recorded import BODIES

from kvstet.engine.fake_client import ScriptedEngine
from kvstet.traces.reading import Exchange, read_trace
from kvstet.traces.recorder import Recorder as TraceRecorder

SECRET = "sk-ant-REDACTME-0123456789"


@contextmanager
def recorded(path: Path, upstream: str, **options: Any) -> Iterator[Gate]:
    recorder = TraceRecorder(path, "record")
    try:
        with built_gateway(upstream, recorder=recorder, **options) as gate:
            yield gate
    finally:
        recorder.close()


def only(path: Path) -> Exchange:
    (exchange,) = read_trace(path)
    return exchange


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_requests_and_replies_are_recorded_in_every_dialect(path: str, is_streamed: bool, tmp_path: Path):
    file, engine = tmp_path / "a.jsonl", ScriptedEngine(reply(thinking("I look.") + "Here:" + calling("ls", "{}")))
    body = json.dumps({**BODIES[path], "stream": is_streamed}, indent=1)
    with running_responses(engine) as site, recorded(file, site.url) as gate:
        answer = gate.post(path, body.encode(), headers={"authorization": f"Bearer {SECRET}"})
        assert answer.status_code == 200
    exchange = only(file)
    assert exchange.request.body_raw == body
    assert exchange.response is not None and exchange.plan is not None
    assert (exchange.plan.reasoning, exchange.plan.text) == ("I look.", "Here:")
    assert [(call.name, call.args_raw) for call in exchange.plan.calls] == [("ls", "{}")]
    assert exchange.plan.calls[0].id in answer.text
    assert exchange.response.kvstet is not None and exchange.response.tokens is None
    assert 0 < (exchange.response.first_seconds or 0) <= exchange.response.t
    assert SECRET not in file.read_text()


def test_packed_bodies_are_unpacked(tmp_path: Path):
    said = {"id": "a", "model": "big", "choices": [{"message": {"role": "assistant", "content": "Hello."}}]}
    fields = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
    upstream = Recorder(Answer(fields=fields, pieces=(gzip.compress(json.dumps(said).encode()),)))
    body = json.dumps(BODIES["/v1/chat/completions"]).encode()
    with serving(upstream) as url, recorded(tmp_path / "a.jsonl", url) as gate:
        headers = {"content-encoding": "gzip"}
        assert gate.post("/v1/chat/completions", gzip.compress(body), headers=headers).json() == said
    exchange = only(tmp_path / "a.jsonl")
    assert exchange.request.body_raw.encode() == body
    assert exchange.plan is not None and exchange.plan.text == "Hello."
    assert exchange.response is not None and exchange.response.model == "big"


def test_an_upstream_that_is_not_there_is_recorded_as_an_error(tmp_path: Path):
    with recorded(tmp_path / "a.jsonl", "http://127.0.0.1:9") as gate:
        answer = gate.post("/v1/messages", json.dumps(BODIES["/v1/messages"]).encode())
    response = only(tmp_path / "a.jsonl").response
    assert response is not None and response.status == 502
    assert json.loads(response.error_raw or "") == answer.json()


def test_what_asks_no_model_passes_without_a_trace(tmp_path: Path):
    with serving(Recorder()) as url, recorded(tmp_path / "a.jsonl", url) as gate, gate.http() as client:
        assert client.get("/v1/models").status_code == 200
    assert list(read_trace(tmp_path / "a.jsonl")) == []
