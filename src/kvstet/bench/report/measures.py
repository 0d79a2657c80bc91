"""What was measured besides the requests: rates, bytes, seconds, each with its spread on every server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from kvstet.bench.report.spread import Spread, paired_ratio
from kvstet.bench.results import Results, Scenario


class Better(StrEnum):
    """Which of two values one would rather have."""

    MORE = "more"
    LESS = "less"
    NEITHER = "neither"


@dataclass(frozen=True, slots=True)
class Quantity:
    """What the name of a value says of it: `Run.values` are named with their unit."""

    title: str
    unit: str
    better: Better


@dataclass(frozen=True, slots=True)
class Reading:
    """A quantity on one server."""

    server: str
    spread: Spread | None
    times: Spread | None
    """To the first server's in the same pair; None for itself."""


@dataclass(frozen=True, slots=True)
class Measured:
    scenario: Scenario
    quantity: Quantity
    readings: list[Reading]

    @property
    def highest(self) -> float:
        """Of all servers: what the pictures scale to."""
        return max((reading.spread.high for reading in self.readings if reading.spread is not None), default=0.0)


_UNITS = (
    (re.compile(r"_?tokens_per_second$"), "tokens/s", Better.MORE),
    (re.compile(r"_per_second$"), "per second", Better.MORE),
    (re.compile(r"_?bytes$|^bytes(?=_)"), "bytes", Better.LESS),
    (re.compile(r"_?seconds$"), "seconds", Better.LESS),
)


def quantity_of(name: str) -> Quantity:
    """``8_streams_tokens_per_second`` is "8 streams", in tokens/s, the more the better."""
    for pattern, unit, better in _UNITS:
        if pattern.search(name):
            return Quantity(_words(pattern.sub("", name)), unit, better)
    return Quantity(_words(name.removeprefix("num_")), "", Better.NEITHER)


def measured(results: Results) -> list[Measured]:
    """Every value of every scenario, in the order in which they were first told."""
    servers = [server.name for server in results.servers]
    return [
        Measured(scenario, quantity_of(name), [_reading(scenario, name, server, servers[0]) for server in servers])
        for scenario in results.scenarios
        for name in dict.fromkeys(name for run in scenario.runs for name in run.values)
    ]


def _reading(scenario: Scenario, name: str, server: str, first: str) -> Reading:
    mine = _values(scenario, name, server)
    times = None if server == first else paired_ratio(mine, _values(scenario, name, first))
    return Reading(server, Spread.of(mine.values()), times)


def _values(scenario: Scenario, name: str, server: str) -> dict[int, float]:
    return {run.repetition: run.values[name] for run in scenario.runs if run.server == server and name in run.values}


def _words(name: str) -> str:
    return name.strip("_").replace("_", " ")
