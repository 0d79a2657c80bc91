"""Replays the recorded session against a server, once as it is and once with every prompt computed anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx2

from kvstet.demo.session import RecordedRequest

NUM_REPLY_TOKENS = 12
NUM_ALTERNATIVES = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply: what it cost, and how sure the model was of each token."""

    num_prompt_tokens: int
    num_reused_tokens: int
    num_loaded_tokens: int
    num_computed_tokens: int
    prompt_seconds: float
    """Until the first token: waiting, loading and computing."""
    verdict: str
    tokens: tuple[str, ...]
    alternatives: tuple[dict[str, float], ...]
    """Per token: the likeliest ones and their log-probabilities, in nats."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The same request with the cache and without."""

    request: RecordedRequest
    warm: Answer
    cold: Answer

    @property
    def agrees(self) -> bool:
        """Whether the greedy replies are the same."""
        return self.warm.tokens == self.cold.tokens

    @property
    def drift(self) -> float:
        """Largest difference of a log-probability, in nats, up to the first token on which the replies differ."""
        return drift(self.warm, self.cold)


@dataclass(frozen=True, slots=True)
class Replay:
    """Asks one server, at a URL such as ``http://127.0.0.1:8080``."""

    url: str

    async def warm(self, request: RecordedRequest) -> Answer:
        """One request, against the cache."""
        return await self._ask(request, cache_prompt=True)

    async def cold(self, request: RecordedRequest) -> Answer:
        """One request, computed from nothing."""
        return await self._ask(request, cache_prompt=False)

    async def _ask(self, request: RecordedRequest, *, cache_prompt: bool) -> Answer:
        body = {
            **request.body,
            "stream": False,
            "stream_options": None,
            "temperature": 0,
            "max_tokens": NUM_REPLY_TOKENS,
            "ignore_eos": True,
            "logprobs": True,
            "top_logprobs": NUM_ALTERNATIVES,
            "cache_prompt": cache_prompt,
        }
        async with httpx2.AsyncClient(base_url=self.url, timeout=None, trust_env=False) as client:
            response = await client.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        return answer_of(response.json())


def answer_of(reply: dict[str, Any]) -> Answer:
    """Read a chat completion with kvstet's own fields."""
    own = reply["kvstet"]
    content = reply["choices"][0]["logprobs"]["content"]
    return Answer(
        num_prompt_tokens=reply["usage"]["prompt_tokens"],
        num_reused_tokens=own["reused"],
        num_loaded_tokens=own["loaded"],
        num_computed_tokens=own["computed"],
        prompt_seconds=own["queue_seconds"] + own["load_seconds"] + own["compute_seconds"],
        verdict=own["verdict"],
        tokens=tuple(token["token"] for token in content),
        alternatives=tuple({top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in content),
    )


def drift(a: Answer, b: Answer) -> float:
    """Largest difference of a log-probability, in nats, over tokens that both had the same text before."""
    largest = 0.0
    for i, (first, second) in enumerate(zip(a.alternatives, b.alternatives, strict=False)):
        largest = max([largest, *(abs(first[token] - second[token]) for token in first.keys() & second.keys())])
        if a.tokens[i] != b.tokens[i]:
            break
    return largest
