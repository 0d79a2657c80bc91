"""What each scenario cost on each server, and all of them together.

Runs are compared in pairs: those of one repetition were made one after the other. A run is compared only if it came to
its end and every one of its numbers is known; so no server gains by a request that it refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvstet.bench.report.spread import Spread, paired_ratio
from kvstet.bench.results import Kind, Results, Scenario
from kvstet.replay.results import Run

Measure = Callable[[Run], float | None]
SESSIONS: tuple[Kind, ...] = ("session", "growth")
"""Scenarios whose requests are what is measured. Others may have some, on the way to their values."""


@dataclass(frozen=True, slots=True)
class Score:
    """One scenario on one server. None: nobody knows."""

    server: str
    prompt: Spread | None
    computed: Spread | None
    bound: Spread | None
    """Tokens of a whole run, over its repetitions."""
    first_token: Spread | None
    """Seconds; the mean of a run's requests, over its repetitions."""
    times_bound: Spread | None
    """Computed tokens to the lower bound of the same run."""
    times_computed: Spread | None
    """Computed tokens to those of the first server in the same pair; None for itself."""
    times_first_token: Spread | None
    """The same of the mean time to first token."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A session, with a score for each server, in the servers' order."""

    scenario: Scenario
    scores: list[Score]


@dataclass(frozen=True, slots=True)
class Total:
    """Of a server, over all scenarios that every server has numbers of: sums of medians."""

    server: str
    num_prompt_tokens: float
    num_computed_tokens: float
    num_bound_tokens: float
    first_token_seconds: float | None
    """Mean over all requests."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Nothing in it where no scenario can be compared."""

    scenarios: list[str]
    left_out: list[str]
    """Names of scenarios that some server has no numbers of."""
    of: list[Total]

    @property
    def first(self) -> Total | None:
        return self.of[0] if self.of else None

    @property
    def others(self) -> list[Total]:
        return self.of[1:]


def compare(results: Results) -> list[Compared]:
    """Every session."""
    names = [server.name for server in results.servers]
    return [
        Compared(scenario, [_score(scenario, name, names[0]) for name in names])
        for scenario in results.scenarios
        if scenario.kind in SESSIONS
    ]


def by_repetition(scenario: Scenario, server: str, measure: Measure) -> dict[int, float]:
    """What is known of a server's runs that came to their end."""
    runs = (run for run in scenario.runs if run.server == server and run.failure is None and run.asked)
    measured = ((run.repetition, measure(run)) for run in runs)
    return {repetition: value for repetition, value in measured if value is not None}


def mean_first_token_seconds(run: Run) -> float | None:
    known = [asked.first_token_seconds for asked in run.asked if asked.first_token_seconds is not None]
    return sum(known) / len(known) if known and len(known) == len(run.asked) else None


def total(results: Results, compared: list[Compared]) -> Totals:
    """Over the scenarios of which every server has numbers; a server that never tells is not waited for."""
    telling = {score.server for each in compared for score in each.scores if score.computed is not None}
    names = [server.name for server in results.servers if server.name in telling]
    whole = [each for each in compared if all(_is_known(score) for score in each.scores if score.server in telling)]
    if not whole or not names:
        return Totals([], [each.scenario.name for each in compared], [])
    return Totals(
        [each.scenario.name for each in whole],
        [each.scenario.name for each in compared if each not in whole],
        [_total(whole, name) for name in names],
    )


def _score(scenario: Scenario, server: str, first: str) -> Score:
    computed = by_repetition(scenario, server, _num_computed_tokens)
    bound = by_repetition(scenario, server, _num_bound_tokens)
    waited = by_repetition(scenario, server, mean_first_token_seconds)
    is_first = server == first
    return Score(
        server=server,
        prompt=Spread.of(by_repetition(scenario, server, _num_prompt_tokens).values()),
        computed=Spread.of(computed.values()),
        bound=Spread.of(bound.values()),
        first_token=Spread.of(waited.values()),
        times_bound=paired_ratio(computed, bound),
        times_computed=None if is_first else _to_first(scenario, computed, first, _num_computed_tokens),
        times_first_token=None if is_first else _to_first(scenario, waited, first, mean_first_token_seconds),
    )


def _to_first(scenario: Scenario, mine: dict[int, float], first: str, measure: Measure) -> Spread | None:
    return paired_ratio(mine, by_repetition(scenario, first, measure))


def _is_known(score: Score) -> bool:
    return score.prompt is not None and score.computed is not None and score.bound is not None


def _total(whole: list[Compared], server: str) -> Total:
    pairs = [(each, score) for each in whole for score in each.scores if score.server == server]
    scores = [score for _, score in pairs]
    waits = [(_num_requests(each.scenario), score.first_token) for each, score in pairs]
    return Total(
        server,
        sum(score.prompt.median for score in scores if score.prompt),
        sum(score.computed.median for score in scores if score.computed),
        sum(score.bound.median for score in scores if score.bound),
        _weighted_mean(waits),
    )


def _num_requests(scenario: Scenario) -> int:
    return max(len(run.asked) for run in scenario.runs)


def _weighted_mean(waits: list[tuple[int, Spread | None]]) -> float | None:
    known = [(num, wait.median) for num, wait in waits if wait is not None]
    if len(known) < len(waits):
        return None
    return sum(num * wait for num, wait in known) / sum(num for num, _ in known)


def _num_prompt_tokens(run: Run) -> float | None:
    return run.num_prompt_tokens


def _num_computed_tokens(run: Run) -> float | None:
    return run.num_computed_tokens


def _num_bound_tokens(run: Run) -> float | None:
    return run.num_bound_tokens
