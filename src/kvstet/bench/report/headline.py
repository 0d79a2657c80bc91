"""The main facts, in words and numbers, whichever way they turned out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvstet.bench.report import wording
from kvstet.bench.report.comparison import Compared, Score, Total, Totals
from kvstet.bench.report.spread import Spread


@dataclass(frozen=True, slots=True)
class Fact:
    number: str
    says: str
    """What the number is: it reads on from it."""


def sentence(totals: Totals) -> str:
    """What was computed, on each server."""
    mine = totals.first
    if mine is None:
        return "Nothing that can be compared was measured"
    whole = f"{wording.count(mine.num_computed_tokens)} of {wording.count(mine.num_prompt_tokens)} prompt tokens"
    others = [f"{other.server} {wording.count(other.num_computed_tokens)}" for other in totals.others]
    return ", ".join([f"{mine.server} computed {whole}", *others])


def facts(totals: Totals, compared: list[Compared]) -> list[Fact]:
    """Beside the lower bound, and beside each other server."""
    mine = totals.first
    if mine is None:
        return []
    told = [_to_bound(mine)] if mine.num_bound_tokens else []
    included = [each for each in compared if each.scenario.name in totals.scenarios]
    for other in totals.others:
        told += [fact for fact in (_computed(mine, other, included), _first_token(mine, other, included)) if fact]
    return told


def _to_bound(mine: Total) -> Fact:
    ratio = mine.num_computed_tokens / mine.num_bound_tokens
    bound = f"the exact lower bound, which is {wording.count(mine.num_bound_tokens)} tokens"
    if ratio < 1:
        why = "it stayed below by computing next prompts ahead, while nobody asked, and that is not counted here"
    else:
        why = "no exact cache of prefixes could have computed fewer, except ahead of the request"
    return Fact(wording.factor(ratio), f"{bound}: {why}")


def _computed(mine: Total, other: Total, compared: list[Compared]) -> Fact | None:
    if not mine.num_computed_tokens:
        return None
    spread = _spread(score.times_computed for score in _scores(compared, other))
    ratio = other.num_computed_tokens / mine.num_computed_tokens
    return Fact(wording.factor(ratio), f"as many were computed by {other.server}{_by_scenario(spread)}")


def _first_token(mine: Total, other: Total, compared: list[Compared]) -> Fact | None:
    if not mine.first_token_seconds or not other.first_token_seconds:
        return None
    spread = _spread(score.times_first_token for score in _scores(compared, other))
    ratio = other.first_token_seconds / mine.first_token_seconds
    waits = f"{wording.seconds(mine.first_token_seconds)} instead of {wording.seconds(other.first_token_seconds)}"
    return Fact(
        wording.factor(ratio),
        f"as long until the first token from {other.server}: {mine.server} took {waits} on average"
        + _by_scenario(spread),
    )


def _scores(compared: list[Compared], total: Total) -> Iterator[Score]:
    """Of one server, in all scenarios."""
    return (score for each in compared for score in each.scores if score.server == total.server)


def _spread(ratios: Iterable[Spread | None]) -> Spread | None:
    """Of what is known, by scenario."""
    return Spread.of(ratio.median for ratio in ratios if ratio is not None)


def _by_scenario(spread: Spread | None) -> str:
    if spread is None or len(spread.values) < 2:
        return ""
    return f" ({wording.times(spread.low)} to {wording.times(spread.high)} by scenario)"
