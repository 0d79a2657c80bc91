"""A reply that its client sees only as a whole may be begun anew after a crash; nothing of the first try is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.api.harness import END, Site, tokens_of

from kvstet.engine.messages import Event, Finished, Generate, Started, Token, TokenLogprobs
from kvstet.types import Reuse

USER = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True, slots=True)
class Rerun:
    """Says ``first``, crashes, and says ``again``; what the supervisor lets through."""

    first: str
    again: str
    pause_seconds: float

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        for text, ends in ((self.first, False), (self.again, True)):
            yield Started(request.id, Reuse(0, 0, 0, len(request.tokens), 0), 0.001, 0.002)
            await asyncio.sleep(self.pause_seconds)
            tokens = [*tokens_of(text), END] if ends else tokens_of(text)
            for token in tokens:
                yield Token(request.id, token, None if request.num_logprobs is None else TokenLogprobs(-1.0, ()))
            await asyncio.sleep(self.pause_seconds)
        yield Finished(request.id, "stop", len(self.again) + 1, 0.5, 0.25)


@pytest.fixture(params=[0.0, 0.02], ids=["at once", "later"])
def site_of_reruns(site: Site, request: pytest.FixtureRequest) -> Site:
    site.engine.script = Rerun("Wrong H", "ello.", request.param)
    return site


def ask(site: Site, path: str, **fields: Any) -> dict[str, Any]:
    response = site.post(path, fields)
    assert response.status_code == 200, response.text
    return response.json()


def test_only_the_second_try_is_told(site_of_reruns: Site):
    answer = ask(site_of_reruns, "/v1/chat/completions", messages=USER, n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["ello."] * 2
    assert answer["usage"]["completion_tokens"] == 2 * 6


def test_log_probabilities_are_those_of_the_second_try(site_of_reruns: Site):
    answer = ask(site_of_reruns, "/v1/chat/completions", messages=USER, logprobs=True)
    assert [entry["token"] for entry in answer["choices"][0]["logprobs"]["content"]] == list("ello.")


def test_the_echo_stays(site_of_reruns: Site):
    answer = ask(site_of_reruns, "/v1/completions", prompt="Once", echo=True)
    assert answer["choices"][0]["text"] == "Onceello."


def test_a_stop_string_does_not_reach_from_one_try_into_the_next(site_of_reruns: Site):
    answer = ask(site_of_reruns, "/v1/chat/completions", messages=USER, stop=["Hel", "o."])
    assert answer["choices"][0]["message"]["content"] == "ell"


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_is_told_whether_the_reply_is_seen_as_it_comes(site: Site, stream: bool):
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": stream})
    assert response.status_code == 200
    assert site.engine.requests[-1].is_streamed is stream
