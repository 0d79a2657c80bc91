"""What requests would have taken as their clients wrote them: simulated beside what was sent instead, by the provider's
rule.

A simulated cache knows only what has passed here, and vendors forget sooner than they say. So nothing is claimed where
the report is not what the rule makes of the request that was sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from kvstet.config import MIB
from kvstet.errors import InvalidRequest
from kvstet.gateway.changing.arranger import Body
from kvstet.gateway.headers import texts_of
from kvstet.gateway.passage import Passage, Rearranged
from kvstet.providers.provider import CacheRule, Provider
from kvstet.providers.simulator import Simulator
from kvstet.types import Usage

MAX_REQUESTS = 2_000
MAX_BYTES = 128 * MIB
"""Of prompts that are held; beyond either, all are forgotten, and conversations are known again from their next
request on."""

_CLOSE_SHARE = 0.2
"""How far the tokens that were read may be from those of the simulation, as part of the prompt."""
_CLOSE_TOKENS = 256


@dataclass(frozen=True, slots=True)
class _Caches:
    """Of one rule: all requests as they were written, and as they were sent."""

    written: Simulator
    sent: Simulator

    @property
    def num_held_bytes(self) -> int:
        return self.written.num_held_bytes + self.sent.num_held_bytes


class Comparison:
    """Of all requests to one provider, in their order. For one thread."""

    def __init__(self, provider: Provider, *, max_requests: int = MAX_REQUESTS, max_bytes: int = MAX_BYTES) -> None:
        self._provider = provider
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._caches: dict[CacheRule, _Caches] = {}
        self._num_requests = 0

    def __repr__(self) -> str:
        return f"Comparison({self._provider.name}, {self._num_requests} requests, {self._num_held_bytes:,} bytes)"

    @property
    def _num_held_bytes(self) -> int:
        return sum(caches.num_held_bytes for caches in self._caches.values())

    def unoptimised(self, passage: Passage, usage: Usage) -> Usage | None:
        """What an answered request would have taken; ``usage`` is what it took. None: that is not known, or nothing
        arranges requests."""
        if passage.rearranged is None:
            return None
        if self._num_requests >= self._max_requests or self._num_held_bytes > self._max_bytes:
            self._caches.clear()
            self._num_requests = 0
        self._num_requests += 1
        written, sent = self._simulated(passage, passage.rearranged)
        return _compared(written, sent, usage) if written is not None and sent is not None else None

    def _simulated(self, passage: Passage, request: Rearranged) -> tuple[Usage | None, Usage | None]:
        """As it was written, and as it was sent. Both caches see each request, whatever becomes of it in the other."""
        assert passage.spoken is not None, "only requests of a dialect are arranged"
        dialect, model = passage.spoken.name, str(request.after.get("model", ""))
        rule = self._provider.rule_for(model, dialect)
        if rule not in self._caches:
            self._caches[rule] = _Caches(Simulator(rule), Simulator(rule))
        caches, call = self._caches[rule], passage.call
        fields = texts_of(call.fields)

        def usage(cache: Simulator, body: Body, headers: Mapping[str, str]) -> Usage | None:
            """None: the provider would have refused it."""
            with suppress(InvalidRequest):
                at = call.began_at
                return cache.send(body, dialect, at_seconds=at, model=model, owner=call.owner, headers=headers)

        headers = dict(request.headers)
        return usage(caches.written, request.before, fields), usage(caches.sent, request.after, {**fields, **headers})


def _compared(written: Usage, sent: Usage, usage: Usage) -> Usage | None:
    """The simulated usage in the provider's own tokens. None: what it reports is not what was simulated."""
    size, read = usage.num_input_tokens, usage.num_cache_read_tokens
    if not size or read is None or not sent.num_input_tokens:
        return None
    factor = size / sent.num_input_tokens
    num_missing = (sent.num_cache_read_tokens or 0) * factor - read
    close = max(_CLOSE_TOKENS, _CLOSE_SHARE * size)
    if num_missing < -close:
        # It was written before this began, or was forgotten here.
        return None
    if written == sent:
        return usage
    return _scaled(written, usage, factor) if num_missing <= close else None


def _scaled(simulated: Usage, told: Usage, factor: float) -> Usage:
    """What is not reported of the one is not counted for the other, either."""

    def tokens(name: str) -> int | None:
        return None if getattr(told, name) is None else round((getattr(simulated, name) or 0) * factor)

    names = ("num_input_tokens", "num_cache_read_tokens", "num_cache_write_tokens", "num_long_cache_write_tokens")
    return Usage(**{name: tokens(name) for name in names})
