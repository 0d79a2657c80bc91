"""Keys: whose passes, who may come in, and that neither they nor prompts are ever written down."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.gateway_harness import Answer, Recorder, built_gateway, serving
from tests.gateway.scripted import JSON, chat_reply, vendor

from kvstet.config import ApiKey, ServerOptions
from kvstet.errors import InvalidRequest
from kvstet.gateway.building import GatewayOptions, build
from kvstet.gateway.headers import Credential

CHAT = "/v1/chat/completions"
OWN, MINE, PROMPT = "sk-own-SECRET1", "sk-mine-SECRET2", "my-SECRET3-prompt"
BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}]}).encode()
KEYED: dict[str, Any] = {"api_keys": (ApiKey("alice", MINE), ApiKey("bob", "sk-bob", requests_per_minute=1))}


def keys_of(recorder: Recorder) -> list[tuple[bytes, bytes]]:
    names = {b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"}
    return [field for field in recorder.last.fields if field[0] in names]


def test_the_clients_key_passes():
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url) as gate:
        gate.post(CHAT, BODY, headers={"authorization": f"Bearer {MINE}", "x-api-key": "x"})
        assert keys_of(recorder) == [(b"authorization", f"Bearer {MINE}".encode()), (b"x-api-key", b"x")]


@pytest.mark.parametrize(
    ("dialect", "field"), [("chat", (b"authorization", f"Bearer {OWN}")), ("messages", (b"x-api-key", OWN))]
)
def test_the_gateways_key_takes_the_place_of_the_clients(dialect: str, field: tuple[bytes, str]):
    recorder = Recorder()
    path = {"chat": CHAT, "messages": "/v1/messages"}[dialect]
    with serving(recorder) as url, built_gateway(url, key=OWN, dialects=(dialect,), serving=KEYED) as gate:
        for sent in ({"authorization": f"Bearer {MINE}"}, {"x-api-key": MINE}, {"x-api-key": MINE, "api-key": "x"}):
            gate.post(path, BODY, headers=sent)
            assert keys_of(recorder) == [(field[0], field[1].encode())]


def test_with_a_key_of_its_own_the_gateway_asks_for_one():
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url, key=OWN, serving=KEYED) as gate:
        for path in (CHAT, "/v1/messages", "/v1/models", "/metrics", "/v1/kvstet/requests", "/%2f", "/health/"):
            assert gate.post(path, BODY).status_code == 401, path
            assert gate.post(path, BODY, headers={"x-api-key": OWN}).status_code == 401, path
        assert recorder.requests == []
        assert gate.post(CHAT, BODY, headers={"x-api-key": "sk-bob"}).status_code == 200
        assert gate.post(CHAT, BODY, headers={"x-api-key": "sk-bob"}).status_code == 429
        assert len(recorder.requests) == 1


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_open_paths_never_reach_the_upstream(path: str, method: str):
    """They need no key, and would have the gateway's there."""
    recorder = Recorder()
    with serving(recorder) as url, built_gateway(url, key=OWN, serving=KEYED) as gate, gate.http() as client:
        client.request(method, path)
    assert recorder.requests == []


def test_a_gateway_with_a_key_and_open_to_all_is_not_built():
    with pytest.raises(InvalidRequest, match="--api-key"):
        build(GatewayOptions(upstream="openai", key=OWN), ServerOptions())
    with pytest.raises(InvalidRequest, match="--key-env"):
        build(GatewayOptions(upstream="openai"), ServerOptions(**KEYED))


def test_keys_are_in_no_representation():
    options = GatewayOptions(upstream="openai", key=OWN)
    assert OWN not in repr(options)
    assert OWN not in repr(Credential(b"authorization", OWN.encode()))


@pytest.mark.parametrize("is_optimised", [False, True])
def test_neither_keys_nor_prompts_are_written_anywhere(
    is_optimised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("KVSTET_LEDGER", str(tmp_path / "usage" / "ledger.sqlite"))
    caplog.set_level(logging.DEBUG)
    recorder = Recorder(plan=vendor("chat", calls=True))
    with (
        serving(recorder) as url,
        built_gateway(url, key=OWN, serving=KEYED, keeps_ledger=True, optimises=is_optimised) as gate,
    ):
        headers = {"authorization": f"Bearer {MINE}", "x-session-id": "SECRET4", "cookie": "SECRET5"}
        told = [gate.post(CHAT, BODY, headers=headers).headers]
        gate.post(CHAT, b'{"model": "m", "messages": [{"role": "user", "content": "SECRET6', headers=headers)
        gate.post("/v1/responses", json.dumps({"model": "m", "input": "SECRET7"}).encode(), headers=headers)
        odd = {"model": "m", "messages": [{"role": "SECRET10", "content": "SECRET11"}]}
        gate.post(CHAT, json.dumps(odd).encode(), headers=headers)
        recorder.plan = lambda _: Answer(400, JSON, (b'{"error": {"message": "SECRET8"}}',))
        gate.post(CHAT, BODY, headers=headers)
        gate.post(CHAT, BODY, headers={"x-bad": "SECRET9\x01", "x-api-key": MINE})
        _unreachable(headers)
        told += [gate.rows(x_api_key=MINE), gate.observer.metrics.exposition(), repr(gate.gateway), repr(gate.observer)]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    written = b"".join(path.read_bytes() for path in files) + caplog.text.encode() + repr(told).encode()
    assert b"alice" in written
    for number in range(1, 12):
        assert f"SECRET{number}".encode() not in written, number
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def _unreachable(headers: dict[str, str]) -> None:
    with built_gateway("http://127.0.0.1:9") as gate:
        assert gate.post(CHAT, BODY, headers=headers).status_code == 502


def test_what_requests_cost_is_written_into_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from kvstet.money.ledger import Ledger

    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("KVSTET_LEDGER", str(path))
    recorder = Recorder(answer=Answer(200, JSON, (json.dumps({**chat_reply(), "model": "gpt-4o"}).encode(),)))
    with serving(recorder) as url, built_gateway(url, provider="openai", keeps_ledger=True) as gate:
        gate.post(CHAT, BODY)
        (row,) = gate.rows()
    (entry,) = Ledger(path).entries()
    assert (entry.source, entry.provider, entry.model) == ("gateway", "openai", "gpt-4o")
    assert (entry.usage.num_input_tokens, entry.usage.num_cache_read_tokens) == (100, 80)
    assert entry.session == row["session"]
    assert entry.cost == row["cost"]["usd"]
    # 20 fresh, 80 read at half of their price, 5 of the reply at four times of it.
    assert entry.cost == pytest.approx(2.5e-6 * (20 + 40 + 20))
    assert entry.cost_without_cache == pytest.approx(2.5e-6 * (100 + 20))
    assert entry.verdict


def test_an_unknown_price_stays_unknown():
    recorder = Recorder(plan=vendor("chat"))
    with serving(recorder) as url, built_gateway(url, provider="openai") as gate:
        gate.post(CHAT, BODY)
        (row,) = gate.rows()
        assert row["cost"]["usd"] is None
        assert "kvstet_gateway_unpriced_requests_total 1.0" in gate.observer.metrics.exposition().decode()
