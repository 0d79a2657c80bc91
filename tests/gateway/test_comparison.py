"""What arranging saves: told where the provider's report bears the simulation out, and unknown otherwise."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.gateway_harness import Answer, Gate, Recorder, built_gateway, serving
from tests.gateway.scripted import JSON, messages_reply, messages_usage

from kvstet.dialects.dialect import dialect_named
from kvstet.gateway.copy import Copy
from kvstet.gateway.observing.comparison import Comparison
from kvstet.gateway.passage import Call, Passage, Rearranged
from kvstet.money.ledger import Ledger
from kvstet.providers.prices import price_of
from kvstet.providers.provider import provider_named
from kvstet.types import Usage

MODEL = "claude-sonnet-4-5"
ANTHROPIC = provider_named("anthropic")
RULES = "Read before you write, and say what you have seen. " * 600
MARK = {"cache_control": {"type": "ephemeral"}}


def body_at(minute: int, *more: dict[str, Any]) -> dict[str, Any]:
    """Of a client that marks what is to be cached, as Claude Code does, and tells the time at the top."""
    system = f"You are an agent.\nThe time is 10:{minute:02}:07.\n{RULES}"
    question = {"role": "user", "content": "Find the bug."}
    return {"model": MODEL, "max_tokens": 9, "system": [{"type": "text", "text": system, **MARK}]} | {
        "messages": [question, *more]
    }


MORE: list[dict[str, Any]] = [{"role": "assistant", "content": "Where?"}, {"role": "user", "content": "In the parser."}]
FIRST, SECOND = messages_usage(9000, 0, write=8980), messages_usage(9030, 8980)


def asked(gate: Gate, recorder: Recorder, body: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
    """The row's costs."""
    reply = messages_reply(usage=usage) | {"model": MODEL}
    recorder.answer = Answer(200, JSON, (json.dumps(reply).encode(),))
    assert gate.post("/v1/messages", json.dumps(body).encode()).status_code == 200
    return gate.rows()[0]["cost"]


def test_what_a_clock_would_have_cost_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("KVSTET_LEDGER", str(path))
    recorder = Recorder()
    options: dict[str, Any] = {"provider": "anthropic", "optimises": True, "keeps_ledger": True}
    with serving(recorder) as url, built_gateway(url, **options) as gate:
        first = asked(gate, recorder, body_at(1), FIRST)
        second = asked(gate, recorder, body_at(2, *MORE), SECOND)
    assert b"10:01:07" in recorder.last.body
    price = price_of(ANTHROPIC, MODEL)
    assert price is not None
    assert price.cache_write is not None
    assert price.cache_read is not None
    expected = 8980 * (price.cache_write - price.cache_read)
    assert second["usd_saved_by_optimising"] == pytest.approx(expected, rel=0.1)
    noted = [entry.saved for entry in sorted(Ledger(path).entries(), key=lambda entry: entry.time)]
    assert noted == [first["usd_saved_by_optimising"], second["usd_saved_by_optimising"]]


def test_nothing_is_saved_where_nothing_is_arranged():
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url, provider="anthropic") as gate:
        asked(gate, recorder, body_at(1), FIRST)
        assert asked(gate, recorder, body_at(2, *MORE), SECOND)["usd_saved_by_optimising"] is None


def test_a_comparison_that_fails_costs_nothing_but_the_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fail(*_: object) -> None:
        raise RuntimeError("SECRET")

    monkeypatch.setattr(Comparison, "unoptimised", fail)
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url, provider="anthropic", optimises=True) as gate:
        cost = asked(gate, recorder, body_at(1), FIRST)
        assert 'observation_failures_total{what="comparison"} 1.0' in gate.observer.metrics.exposition().decode()
    assert cost["usd_saved_by_optimising"] is None
    assert cost["usd"] > 0
    assert "SECRET" not in caplog.text


def passage(before: dict[str, Any], after: dict[str, Any], owner: str = "me") -> Passage:
    dialect = dialect_named("messages")
    call = Call("id", owner, "POST", dialect.path, dialect.path.encode(), b"", [], dialect, time.time(), 0.0)
    return Passage(call, Copy(0), Copy(0), spoken=dialect, rearranged=Rearranged(before, after))


def told(read: int, write: int, total: int = 9000) -> Usage:
    return Usage(num_input_tokens=total, num_cache_read_tokens=read, num_cache_write_tokens=write)


def test_a_request_that_goes_as_it_came_saves_exactly_nothing():
    comparison = Comparison(ANTHROPIC)
    first, second = told(0, 8980), told(8000, 900)
    assert comparison.unoptimised(passage(body_at(1), body_at(1)), first) == first
    assert comparison.unoptimised(passage(body_at(1, *MORE), body_at(1, *MORE)), second) == second


def test_what_the_client_would_have_written_again_is_counted_in_the_providers_tokens():
    comparison = Comparison(ANTHROPIC)
    comparison.unoptimised(passage(body_at(1), body_at(1)), told(0, 8980))
    unoptimised = comparison.unoptimised(passage(body_at(2), body_at(1)), told(89_800, 0, 90_000))
    assert unoptimised is not None
    assert unoptimised.num_cache_read_tokens == 0
    assert unoptimised.num_input_tokens == pytest.approx(90_000, rel=0.01)
    assert unoptimised.num_cache_write_tokens == pytest.approx(89_800, rel=0.02)


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param(told(0, 8980), id="the provider forgot it early"),
        pytest.param(Usage(num_input_tokens=9000), id="it does not say"),
        pytest.param(Usage(), id="it says nothing"),
    ],
)
def test_what_the_report_does_not_bear_out_is_unknown(usage: Usage):
    comparison = Comparison(ANTHROPIC)
    comparison.unoptimised(passage(body_at(1), body_at(1)), told(0, 8980))
    assert comparison.unoptimised(passage(body_at(2), body_at(1)), usage) is None


def test_a_conversation_that_the_provider_knew_before_is_unknown():
    """And known from its next request on."""
    comparison = Comparison(ANTHROPIC)
    assert comparison.unoptimised(passage(body_at(2), body_at(1)), told(8980, 0)) is None
    assert comparison.unoptimised(passage(body_at(3), body_at(1)), told(8980, 0)) is not None


def test_nobody_elses_cache_counts():
    comparison = Comparison(ANTHROPIC)
    comparison.unoptimised(passage(body_at(1), body_at(1)), told(0, 8980))
    assert comparison.unoptimised(passage(body_at(1), body_at(1), owner="you"), told(8980, 0)) is None


@pytest.mark.parametrize("limits", [{"max_requests": 2}, {"max_bytes": 100}])
def test_simulated_caches_begin_anew_before_they_are_too_large(limits: dict[str, int]):
    comparison = Comparison(ANTHROPIC, **limits)
    for _ in range(2):
        comparison.unoptimised(passage(body_at(1), body_at(1)), told(0, 8980))
    assert comparison.unoptimised(passage(body_at(1), body_at(1)), told(8980, 0)) is None


def test_a_request_that_the_provider_would_have_refused_is_unknown():
    """Five marks, of which the optimiser might leave four."""
    many = body_at(1, *({"role": "user", "content": [{"type": "text", "text": "x", **MARK}]} for _ in range(5)))
    assert Comparison(ANTHROPIC).unoptimised(passage(many, body_at(1)), told(0, 8980)) is None
