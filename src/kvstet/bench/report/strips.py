"""A session as a strip of bars: a column for each request, and in it a bar for each server, all to one scale.

A bar stands for the prompt: what was reused lies below, what was computed on top. The mark is the lower bound: only
what lies above it had to be computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstet.bench.report import wording
from kvstet.bench.report.comparison import SESSIONS
from kvstet.bench.results import Results, Scenario
from kvstet.replay.results import Asked, Run

PARTS = ("reused", "loaded", "shifted", "computed")
"""From below."""


@dataclass(frozen=True, slots=True)
class Segment:
    part: str
    """One of `PARTS`, or ``unknown``."""
    percent: float
    """Of the strip's height."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One request on one server."""

    server: str
    asked: Asked
    segments: list[Segment]
    bound_percent: float | None
    """Where the mark is."""

    @property
    def numbers(self) -> str:
        """``4,210 tokens: 4,100 reused, 110 computed, lower bound 108, first token 0.12 s``."""
        asked = self.asked
        parts = [f"{wording.count(number)} {part}" for part, number in _parts(asked) if number or part == "computed"]
        if asked.num_bound_tokens is not None:
            parts.append(f"lower bound {wording.count(asked.num_bound_tokens)}")
        if asked.first_token_seconds is not None:
            parts.append(f"first token {wording.seconds(asked.first_token_seconds)}")
        return f"{wording.count(asked.num_prompt_tokens)} tokens: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Column:
    number: int
    """From 1."""
    label: str
    bars: list[Bar | None]
    """In the servers' order; None where a server did not get as far."""


@dataclass(frozen=True, slots=True)
class Strip:
    scenario: Scenario
    repetition: int
    runs: list[Run | None]
    """In the servers' order."""
    columns: list[Column]
    max_tokens: int
    """The longest prompt: what the bars are scaled to."""


def strips(results: Results) -> list[Strip]:
    """One for each session, of the pair in the middle."""
    servers = [server.name for server in results.servers]
    made = (_strip(scenario, servers) for scenario in results.scenarios if scenario.kind in SESSIONS)
    return [strip for strip in made if strip is not None]


def middle_repetition(scenario: Scenario, server: str) -> int | None:
    """That in which the server computed the median of its tokens: of an even number of pairs, the lower one. None if
    nothing was asked. Where none came to its end, or tokens are not known, the first."""
    asked = [run for run in scenario.runs if run.asked]
    ended = [run for run in asked if run.server == server and not run.failure and run.num_computed_tokens is not None]
    if not ended:
        return min((run.repetition for run in asked), default=None)
    ranked = sorted(ended, key=lambda run: (run.num_computed_tokens or 0, run.repetition))
    return ranked[(len(ranked) - 1) // 2].repetition


def _strip(scenario: Scenario, servers: list[str]) -> Strip | None:
    repetition = middle_repetition(scenario, servers[0])
    if repetition is None:
        return None
    of_pair = {run.server: run for run in scenario.runs if run.repetition == repetition}
    runs = [of_pair.get(server) for server in servers]
    max_tokens = max((_length(asked) for run in runs if run is not None for asked in run.asked), default=0)
    return Strip(scenario, repetition, runs, list(_columns(runs, max_tokens)), max_tokens)


def _columns(runs: list[Run | None], max_tokens: int) -> Iterator[Column]:
    for index in range(max(len(run.asked) for run in runs if run is not None)):
        bars = [_bar(run, index, max_tokens) for run in runs]
        label = next(bar.asked.label for bar in bars if bar is not None)
        yield Column(index + 1, label, bars)


def _bar(run: Run | None, index: int, max_tokens: int) -> Bar | None:
    if run is None or index >= len(run.asked):
        return None
    asked = run.asked[index]
    segments = [Segment(part, _percent(number, max_tokens)) for part, number in _drawn(asked) if number]
    if asked.num_bound_tokens is None or asked.num_prompt_tokens is None:
        return Bar(run.server, asked, segments, None)
    return Bar(run.server, asked, segments, _percent(asked.num_prompt_tokens - asked.num_bound_tokens, max_tokens))


def _drawn(asked: Asked) -> Iterator[tuple[str, int]]:
    """Parts from below; what nobody accounts for lies below what was computed."""
    known = [(part, number or 0) for part, number in _parts(asked)]
    *below, computed = known
    yield from below
    yield "unknown", max(_length(asked) - sum(number for _, number in known), 0)
    yield computed


def _parts(asked: Asked) -> list[tuple[str, int | None]]:
    numbers = (asked.num_reused_tokens, asked.num_loaded_tokens, asked.num_shifted_tokens, asked.num_computed_tokens)
    return list(zip(PARTS, numbers, strict=True))


def _length(asked: Asked) -> int:
    known = sum(number or 0 for _, number in _parts(asked))
    return max(asked.num_prompt_tokens or 0, known)


def _percent(number: int, whole: int) -> float:
    return round(100 * number / whole, 2) if whole else 0.0
