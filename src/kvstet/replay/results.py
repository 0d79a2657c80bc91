"""What came of requests that were sent to a server: the numbers that tables and reports are made of."""

from __future__ import annotations

import msgspec


class Asked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One request, and what it cost. None: nobody knows."""

    label: str
    at_seconds: float = 0.0
    """When it was sent, from the beginning of the run."""
    num_prompt_tokens: int | None = None
    num_reused_tokens: int | None = None
    """Live in the server, and taken as they were; of a server that tells only what it had cached, all of that."""
    num_loaded_tokens: int | None = None
    """From RAM or disk."""
    num_shifted_tokens: int | None = None
    """At other positions: fidelity ``approximate``."""
    num_computed_tokens: int | None = None
    """At request time."""
    num_bound_tokens: int | None = None
    """The least that an exact cache of prefixes could have computed: what stands behind all that had been sent, or said
    by this server, before."""
    first_token_seconds: float | None = None
    seconds: float | None = None
    verdict: str | None = None
    dollars: float | None = None
    error: str | None = None
    """Why there is no reply."""


class Run(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One session or measurement on one server."""

    server: str
    repetition: int = 0
    """Runs of the same repetition are a pair: they were made one after the other."""
    asked: list[Asked] = msgspec.field(default_factory=list[Asked])
    values: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """What was measured besides, by name and unit: ``tokens_per_second``, ``peak_bytes``."""
    failure: str | None = None
    """Why the run did not come to its end."""

    @property
    def num_computed_tokens(self) -> int | None:
        """Of all requests; None where one of them is not known."""
        return _sum([asked.num_computed_tokens for asked in self.asked])

    @property
    def num_bound_tokens(self) -> int | None:
        return _sum([asked.num_bound_tokens for asked in self.asked])

    @property
    def num_prompt_tokens(self) -> int | None:
        return _sum([asked.num_prompt_tokens for asked in self.asked])


class Replayed(msgspec.Struct, kw_only=True):
    """What `kvstet replay --json` writes."""

    kvstet_replay: int = 1
    """Version of the format."""
    by: str
    """Who measured: ``kvstet 0.1.0``."""
    trace: str
    gap: str
    """``recorded``, or seconds between a response and the next request."""
    skipped: dict[str, int]
    """Requests of the trace that were not sent, by reason."""
    runs: list[Run]


def _sum(numbers: list[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
