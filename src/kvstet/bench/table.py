"""What was found, for a terminal: a line for each scenario and peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from rich.console import Console
from rich.table import Table

from kvstet.bench.results import Results, Scenario
from kvstet.replay.results import Run

UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Pairs:
    """One measure of both sides, from the runs that came to their end on both."""

    mine: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratio(self) -> str:
        """How many times as much the peer's is: the median of the pairs, and their range where there are several."""
        ratios = [theirs / mine for mine, theirs in zip(self.mine, self.theirs, strict=False) if mine > 0]
        if not ratios:
            return UNKNOWN
        middle = f"{median(ratios):.2f}"
        return middle if len(ratios) == 1 else f"{middle} ({min(ratios):.2f} to {max(ratios):.2f})"


Measure = Callable[[Run], float | None]


def show(console: Console, results: Results) -> None:
    """Two tables for each peer, of requests and of everything else, and what went wrong."""
    first, *peers = [server.name for server in results.servers]
    for peer in peers or [first]:
        for table in (_requests(results, first, peer), _values(results, first, peer)):
            if table.row_count:
                console.print(table)
    for line in failures(results):
        console.print(line, style="yellow", highlight=False)


def failures(results: Results) -> Iterator[str]:
    """Runs that did not come to their end, and why."""
    for scenario in results.scenarios:
        for run in scenario.runs:
            if run.failure is not None:
                yield f"{scenario.name}, {run.server}, repetition {run.repetition + 1}: {run.failure}"


def _requests(results: Results, first: str, peer: str) -> Table:
    table = _table("Tokens computed, and seconds until all first tokens", "scenario")
    for name in ("needed", first, _short(peer), f"{first}, s", f"{_short(peer)}, s", "times"):
        table.add_column(name, justify="right")
    for scenario in results.scenarios:
        if scenario.kind in ("session", "growth"):
            table.add_row(scenario.name, *_request_cells(scenario, first, peer))
    return table


def _request_cells(scenario: Scenario, first: str, peer: str) -> list[str]:
    needed = pairs(scenario, first, peer, lambda run: run.num_bound_tokens)
    computed = pairs(scenario, first, peer, lambda run: run.num_computed_tokens)
    waited = pairs(scenario, first, peer, waited_seconds)
    counts = (needed.mine, computed.mine, computed.theirs)
    return [
        *(f"{median(side):,.0f}" if side else UNKNOWN for side in counts),
        *(f"{median(side):.2f}" if side else UNKNOWN for side in (waited.mine, waited.theirs)),
        waited.ratio,
    ]


def _values(results: Results, first: str, peer: str) -> Table:
    table = _table("Rates, memory, starts", "scenario", "value")
    for name in (first, _short(peer), "times"):
        table.add_column(name, justify="right")
    for scenario in results.scenarios:
        for name in dict.fromkeys(name for run in scenario.runs for name in run.values):
            found = pairs(scenario, first, peer, lambda run, name=name: run.values.get(name))
            sides = (f"{median(side):,.1f}" if side else UNKNOWN for side in (found.mine, found.theirs))
            table.add_row(scenario.name, name.replace("_", " "), *sides, found.ratio)
    return table


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _short(name: str) -> str:
    return name.removeprefix("http://")


def waited_seconds(run: Run) -> float | None:
    """Until the first token, of all requests together."""
    seconds = [asked.first_token_seconds for asked in run.asked if asked.first_token_seconds is not None]
    return sum(seconds) if seconds and len(seconds) == len(run.asked) else None


def pairs(scenario: Scenario, first: str, peer: str, measure: Measure) -> Pairs:
    """Repetition by repetition, where both sides came to the end and are known; what only one side has stands alone."""
    mine, theirs = (_by_repetition(scenario, name, measure) for name in (first, peer))
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return Pairs(tuple(mine.values()), () if mine else tuple(theirs.values()))
    return Pairs(tuple(mine[each] for each in both), tuple(theirs[each] for each in both))


def _by_repetition(scenario: Scenario, server: str, measure: Measure) -> dict[int, float]:
    found = {run.repetition: measure(run) for run in scenario.runs if run.server == server and run.failure is None}
    return {repetition: value for repetition, value in found.items() if value is not None}
