"""Where the first server did worse than another: told as plainly as where it did better."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstet.bench.report import wording
from kvstet.bench.report.comparison import Compared
from kvstet.bench.report.measures import Better, Measured
from kvstet.bench.report.spread import Spread

SLIGHT = 0.02


@dataclass(frozen=True, slots=True)
class Loss:
    scenario: str
    what: str
    mine: str
    server: str
    theirs: str
    times: Spread
    """Theirs to mine."""

    @property
    def is_within_spread(self) -> bool:
        """Whether some pair was the other way round."""
        return self.times.low <= 1 <= self.times.high and len(self.times.values) > 1

    @property
    def is_slight(self) -> bool:
        return abs(self.times.median - 1) < SLIGHT


def losses(compared: list[Compared], measured: list[Measured]) -> list[Loss]:
    """By medians of the ratios within pairs; however small they are."""
    candidates = [*_of_requests(compared), *_of_measures(measured)]
    return [loss for loss, better in candidates if _is_worse(loss.times.median, better)]


def _of_requests(compared: list[Compared]) -> Iterator[tuple[Loss, Better]]:
    for each in compared:
        mine, *others = each.scores
        title = each.scenario.title
        for score in others:
            if score.times_computed is not None:
                pair = [wording.count(_median(one.computed)) for one in (mine, score)]
                yield Loss(title, "computed tokens", pair[0], score.server, pair[1], score.times_computed), Better.LESS
            if score.times_first_token is not None:
                pair = [wording.seconds(_median(one.first_token)) for one in (mine, score)]
                yield Loss(title, "first token", pair[0], score.server, pair[1], score.times_first_token), Better.LESS


def _of_measures(measured: list[Measured]) -> Iterator[tuple[Loss, Better]]:
    for each in measured:
        mine, *others = each.readings
        quantity = each.quantity
        for reading in others:
            if reading.times is not None:
                pair = [wording.in_unit(_median(one.spread), quantity.unit) for one in (mine, reading)]
                loss = Loss(each.scenario.title, quantity.title, pair[0], reading.server, pair[1], reading.times)
                yield loss, quantity.better


def _is_worse(times: float, better: Better) -> bool:
    """Whether the first server is, where another one has that many times its value."""
    return times < 1 if better is Better.LESS else times > 1 if better is Better.MORE else False


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread is not None else None
