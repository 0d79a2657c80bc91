"""Requests that are changed so that caches hit: each change is told, can be left out, and never costs a request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.harness import eventually
from tests.gateway.gateway_harness import Answer, Gate, Recorder, built_gateway, gateway_to, serving
from tests.gateway.scripted import STREAM, TEXT, messages_stream, vendor

from kvstet.context.arranging.optimiser import Arranged, Change
from kvstet.dialects.dialect import DialectName
from kvstet.errors import InvalidRequest
from kvstet.gateway.app import Gateway
from kvstet.gateway.changing.arranger import Arranger
from kvstet.gateway.changing.asking import Asking
from kvstet.gateway.changing.changes import known_changes
from kvstet.gateway.changing.preparer import Preparations, Preparer
from kvstet.gateway.changing.translation import Translation
from kvstet.gateway.passage import Body
from kvstet.providers.provider import provider_at, provider_named

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
BODY = (
    b'{ "model":"m",\n "messages": [{"role":"user","content":"\\u00fc \xc3\xbc \\ud83d"}], "n": 1e2 , "x": 1'
    + b"0" * 30
    + b"}"
)


@dataclass(slots=True)
class FakeArranger:
    """Sets fields of the body; each is a change of the same name. An exception is raised."""

    fields: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...] = ()
    error: Exception | None = None

    def arrange(
        self,
        body: Body,
        dialect: DialectName,
        *,
        owner: str = "",
        session: str | None = None,
        without: Iterable[str] = (),
    ) -> Arranged:
        if self.error is not None:
            raise self.error
        wanted = {name: value for name, value in self.fields.items() if name not in frozenset(without)}
        changes = tuple(Change(name, None, "for a test") for name in wanted)
        return Arranged({**body, **wanted}, changes, self.headers)


@contextmanager
def arranged_by(arranger: Arranger, **options: Any) -> Iterator[tuple[Recorder, Gate]]:
    def made(upstream: Any, server: Any, observer: Any) -> Gateway:
        wanted = Preparations(arranger=arranger, **options)
        translation = Translation(upstream, provider_at("http://127.0.0.1"))
        preparer = Preparer(upstream, translation, wanted, observer.metrics.observe_failure)
        return Gateway(upstream, server, observer, preparer)

    recorder = Recorder(plan=vendor("chat"))
    with serving(recorder) as url, gateway_to(url, made) as gate:
        yield recorder, gate


def test_changes_are_made_and_told(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with arranged_by(FakeArranger({"prompt_cache_key": "k", "extra": 1}, (("X-Affinity", "a"),))) as (recorder, gate):
        answer = gate.post(CHAT, BODY)
        (row,) = gate.rows()
    body = json.loads(recorder.last.body)
    assert body == {**json.loads(BODY), "prompt_cache_key": "k", "extra": 1}
    assert dict(recorder.last.fields)[b"x-affinity"] == b"a"
    assert answer.headers["x-kvstet-changes"] == "prompt_cache_key, extra, cache-key"
    assert [change["name"] for change in row["changes"]] == ["prompt_cache_key", "extra", "cache-key"]
    assert "changed: prompt_cache_key, extra, cache-key" in caplog.text
    assert 'kvstet_gateway_changes_total{name="extra"} 1.0' in gate.observer.metrics.exposition().decode()


def test_a_request_that_needs_no_change_passes_byte_for_byte():
    with arranged_by(FakeArranger({})) as (recorder, gate):
        answer = gate.post(CHAT, BODY)
    assert recorder.last.body == BODY
    assert "x-kvstet-changes" not in answer.headers


def test_one_change_can_be_left_out_of_one_request():
    with arranged_by(FakeArranger({"a": 1, "b": 2}), without=frozenset({"c"})) as (recorder, gate):
        answer = gate.post(CHAT, BODY, headers={"x-kvstet-without": "A , other"})
        assert (json.loads(recorder.last.body).get("a"), json.loads(recorder.last.body)["b"]) == (None, 2)
        assert answer.headers["x-kvstet-changes"] == "b"
        assert b"x-kvstet-without" not in dict(recorder.last.fields)
        gate.post(CHAT, BODY, headers={"x-kvstet-without": "a,b"})
        assert recorder.last.body == BODY


@pytest.mark.parametrize("error", [RuntimeError("SECRET"), RecursionError(), KeyError("SECRET")])
def test_an_arrangement_that_fails_passes_the_request_byte_for_byte(error: Exception, caplog: pytest.LogCaptureFixture):
    with arranged_by(FakeArranger({}, error=error)) as (recorder, gate):
        assert gate.post(CHAT, BODY).status_code == 200
    assert recorder.last.body == BODY
    assert "passes as it came" in caplog.text
    assert "SECRET" not in caplog.text
    assert 'observation_failures_total{what="arrangement"} 1.0' in gate.observer.metrics.exposition().decode()


@pytest.mark.parametrize("body", [b"", b"not JSON", b"[1]", b'{"a": \xff}', b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_not_understood_passes_byte_for_byte(body: bytes):
    recorder = Recorder()
    with serving(recorder) as url:
        for provider, paths in (("anthropic", [MESSAGES]), ("openai", [CHAT, "/v1/responses"])):
            with built_gateway(url, provider=provider, optimises=True) as gate:
                for path in paths:
                    gate.post(path, body)
    assert [request.body for request in recorder.requests] == [body] * 3


@pytest.mark.parametrize("number", [b"1e400", b"NaN", b"-Infinity"])
def test_a_number_that_nobody_can_hold_passes_byte_for_byte(number: bytes):
    body = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "b": ' + number + b"}"
    with arranged_by(FakeArranger({"a": 1})) as (recorder, gate):
        gate.post(CHAT, body)
    assert recorder.last.body == body


def test_a_body_that_is_too_large_to_be_changed_passes_while_it_comes():
    with arranged_by(FakeArranger({"a": 1}), max_bytes=1000) as (recorder, gate):
        recorder.plan = None
        body = b'{"messages": "' + b"x" * 500_000 + b'"}'
        gate.post(CHAT, body)
    assert recorder.last.body == body


def test_a_chunked_request_that_is_changed_has_a_length():
    with arranged_by(FakeArranger({"a": 1})) as (recorder, gate), gate.http() as client:
        client.post(CHAT, content=iter([BODY[:10], BODY[10:]]))
    fields = dict(recorder.last.fields)
    assert fields[b"content-length"] == str(len(recorder.last.body)).encode()
    assert b"transfer-encoding" not in fields


def test_the_real_optimiser_marks_what_anthropic_caches():
    content = {"model": "claude-sonnet-5", "max_tokens": 9, "system": "S" * 9000, "stream": True}
    body = json.dumps({**content, "messages": [{"role": "user", "content": "Hi " * 3000}]}).encode()
    recorder = Recorder(answer=Answer(200, STREAM, (messages_stream(),)))
    with serving(recorder) as url, built_gateway(url, provider="anthropic", optimises=True) as gate:
        answer = gate.post(MESSAGES, body)
        assert b'"cache_control"' in recorder.last.body
        assert "breakpoints" in answer.headers["x-kvstet-changes"]
        gate.post(MESSAGES, body, headers={"x-kvstet-without": "breakpoints, ask-why"})
        assert recorder.last.body == body
        row = gate.rows()[-1]
    assert "breakpoints" in [change["name"] for change in row["changes"]]


@pytest.mark.parametrize(("num_context_tokens", "is_kept"), [(100_000, True), (10, False), (None, False)])
def test_what_the_client_drops_stays_only_where_the_models_context_is_known(
    num_context_tokens: int | None, is_kept: bool
):
    call = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    turn = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    recorder = Recorder(plan=vendor("chat"))
    options: dict[str, Any] = {"optimises": True, "num_context_tokens": num_context_tokens}
    with serving(recorder) as url, built_gateway(url, **options) as gate:
        for output in ("So it stands. " * 9, "[Old tool result content cleared]"):
            messages = [*turn, {"role": "tool", "tool_call_id": "c", "content": output}]
            gate.post(CHAT, json.dumps({"model": "nobody-knows-it", "messages": messages}).encode())
    assert (b"So it stands." in recorder.last.body) == is_kept


def test_what_caches_nothing_in_its_own_dialect_is_asked_in_one_that_does():
    """Anthropic's layer for OpenAI's clients does not cache."""
    recorder = Recorder(
        plan=lambda request: vendor("messages" if request.target == b"/v1/messages" else "chat")(request)
    )
    content = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi " * 3000}]}
    body = json.dumps(content).encode()
    with serving(recorder) as url:
        with built_gateway(url, provider="anthropic") as gate:
            gate.post(CHAT, body)
            assert (recorder.last.target, recorder.last.body) == (b"/v1/chat/completions", body)
        with built_gateway(url, provider="anthropic", optimises=True) as gate:
            answer = gate.post(CHAT, body)
    assert recorder.last.target == b"/v1/messages"
    assert b'"cache_control"' in recorder.last.body
    assert answer.json()["choices"][0]["message"]["content"] == TEXT


def test_the_vendor_is_asked_why_its_cache_missed():
    """Anthropic is told the reply before, and on the first turn that one wants to know."""
    recorder = Recorder(plan=lambda _: Answer(200, STREAM, (messages_stream(id=f"msg_{len(recorder.requests)}"),)))
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    with serving(recorder) as url, built_gateway(url, provider="anthropic", asks_why=True) as gate:
        for number in range(3):
            body = {"model": "m", "max_tokens": 9, "messages": messages, "stream": True}
            answer = gate.post(MESSAGES, json.dumps(body).encode())
            assert answer.headers["x-kvstet-changes"] == "ask-why"
            asked = json.loads(recorder.last.body)["diagnostics"]
            assert asked == {"previous_message_id": f"msg_{number}" if number else None}
            messages = [*messages, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "More"}]
            assert eventually(lambda: gate.observer.num_waiting == 0)
            gate.rows()


def test_openai_is_asked_only_where_there_is_something_to_compare_with():
    asking = Asking(provider_named("openai").diagnostics)
    assert asking.asking({"input": "x"}, "responses", "t") is None
    asking.heard("t", "resp_1")
    assert asking.asking({"input": "x"}, "chat", "t") is None
    options = {"mode": "explicit"}
    asked = asking.asking({"input": "x", "prompt_cache_options": options}, "responses", "t")
    assert asked is not None
    assert asked["prompt_cache_options"] == {"mode": "explicit", "comparison_response_id": "resp_1"}
    assert options == {"mode": "explicit"}
    own = {"prompt_cache_options": {"comparison_response_id": "resp_0"}}
    assert asking.asking(own, "responses", "t") is None


def test_only_the_model_is_another_where_only_that_is_wanted():
    recorder = Recorder(plan=vendor("chat"))
    with serving(recorder) as url, built_gateway(url, models={"m": "their-model"}) as gate:
        answer = gate.post(CHAT, BODY)
        assert json.loads(recorder.last.body) == {**json.loads(BODY), "model": "their-model"}
        assert answer.headers["x-kvstet-changes"] == "model"


def test_an_unknown_change_is_named():
    assert known_changes(["breakpoints", "model"]) == {"breakpoints", "model"}
    with pytest.raises(InvalidRequest, match="no change 'breakpoint'"):
        known_changes(["breakpoint"])
