from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.api.harness import Site, eventually, reply, running, tokens_of

from kvstet.engine.fake_client import Hang, Refuse, Say, ScriptedEngine
from kvstet.errors import EngineCrashed, QueueFull
from kvstet.types import Reuse

USER = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def fresh_site() -> Iterator[Site]:
    """A server that nobody has asked anything."""
    with running(ScriptedEngine(reply("Hello."))) as site:
        yield site


def sample(site: Site, name: str, **labels: str) -> float | None:
    response = site.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for family in text_string_to_metric_families(response.text):
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return found.value
    return None


def requests(site: Site, route: str, outcome: str) -> float | None:
    return sample(site, "kvstet_requests_total", route=route, outcome=outcome)


def test_prompt_tokens_are_counted_by_source(fresh_site: Site):
    fresh_site.engine.script = reply("Hello.", reuse=Reuse(5, 4, 3, 9, 12))
    fresh_site.post(CHAT, {"messages": USER})
    sources = ("reused", "loaded", "shifted", "computed")
    assert [sample(fresh_site, "kvstet_prompt_tokens_total", source=source) for source in sources] == [5, 4, 3, 9]
    assert sample(fresh_site, "kvstet_generated_tokens_total") == 7
    assert sample(fresh_site, "kvstet_running_requests") == 0
    assert sample(fresh_site, "kvstet_ready") == 1


def test_requests_are_counted_by_outcome(fresh_site: Site):
    engine = fresh_site.engine
    fresh_site.post(CHAT, {"messages": USER})
    fresh_site.post(CHAT, {"messages": []})
    engine.script = Refuse(QueueFull("Full."))
    fresh_site.post(CHAT, {"messages": USER})
    engine.script = Say(tokens_of("Hel"), error=EngineCrashed("Died."), token_seconds=0.001)
    assert fresh_site.post(CHAT, {"messages": USER, "stream": True}).status_code == 200
    assert requests(fresh_site, CHAT, "ok") == 1
    assert requests(fresh_site, CHAT, "client_error") == 2
    assert requests(fresh_site, CHAT, "server_error") == 1
    assert sample(fresh_site, "kvstet_request_seconds_count", route=CHAT) == 4


def test_hangups_are_counted(fresh_site: Site):
    fresh_site.engine.script = Hang()
    with fresh_site.connect() as connection:
        connection.sendall(b'POST /completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}')
        assert eventually(lambda: bool(fresh_site.engine.requests))
    assert eventually(lambda: requests(fresh_site, "/completions", "disconnected") == 1)


def test_the_time_to_the_first_token_is_observed_once_per_request(fresh_site: Site):
    fresh_site.post(CHAT, {"messages": USER, "n": 2})
    fresh_site.post(CHAT, {"messages": USER, "max_tokens": 0})
    assert sample(fresh_site, "kvstet_first_token_seconds_count") == 1


def test_unknown_paths_share_one_label(fresh_site: Site):
    for number in range(3):
        fresh_site.get(f"/nothing/{number}")
    assert requests(fresh_site, "unknown", "client_error") == 3
