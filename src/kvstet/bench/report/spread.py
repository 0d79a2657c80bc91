"""The same thing measured several times: its median, and how far it spreads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """At least one value; in the order of repetitions."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Of those that are known; None if none is."""
        known = tuple(value for value in values if value is not None)
        return cls(known) if known else None


def paired_ratio(above: Mapping[int, float], below: Mapping[int, float]) -> Spread | None:
    """Of values by repetition: the ratio within each pair, where both are known and the lower one is not 0."""
    return Spread.of(above[each] / below[each] for each in sorted(above) if below.get(each))
