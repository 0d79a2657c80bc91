"""What one request cost, by class of token; and sums in which what is not known is counted, not taken for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvstet.providers.prices import Price
from kvstet.types import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """In US dollars. None: not known."""

    usage: Usage
    price: Price | None
    cost: float | None
    """Of prompt and reply."""
    cost_without_cache: float | None
    """Had every token of the prompt been a fresh one."""
    saved: float | None
    """By the optimiser: what the request would have cost as the client wrote it, less what it cost; 0 where it
    changed nothing. None where that is not known."""


def bill_of(usage: Usage, price: Price | None, *, unoptimised: Usage | None = None) -> Bill:
    """``unoptimised`` is what the request would have taken as the client wrote it, as far as it is known."""
    cost = _sum(_input_cost(usage, price), _cost(usage.num_output_tokens, price and price.output))
    fresh = _cost(usage.num_input_tokens, price and price.input)
    saved = None
    if unoptimised is not None:
        saved = _difference(_input_cost(unoptimised, price), _input_cost(usage, price))
    return Bill(
        usage=usage,
        price=price,
        cost=cost,
        cost_without_cache=_sum(fresh, _cost(usage.num_output_tokens, price and price.output)),
        saved=saved,
    )


def _input_cost(usage: Usage, price: Price | None) -> float | None:
    """Who does not report writes does not charge for them; who does not report reads leaves the cost unknown."""
    if price is None:
        return None
    num_long = usage.num_long_cache_write_tokens or 0
    return _sum(
        _cost(usage.num_fresh_tokens, price.input),
        _cost(usage.num_cache_read_tokens, price.cache_read),
        _cost((usage.num_cache_write_tokens or 0) - num_long, price.cache_write),
        _cost(num_long, price.long_cache_write),
    )


def _cost(num_tokens: int | None, price: float | None) -> float | None:
    """No tokens cost nothing at any price."""
    if num_tokens == 0:
        return 0.0
    return num_tokens * price if num_tokens is not None and price is not None else None


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _difference(one: float | None, other: float | None) -> float | None:
    return one - other if one is not None and other is not None else None


@dataclass(frozen=True, slots=True)
class Total:
    """A sum of which some parts may not be known."""

    known: float = 0
    num_unknown: int = 0
    """Parts that are not in it."""

    @property
    def is_whole(self) -> bool:
        return self.num_unknown == 0


def total_of(parts: Iterable[float | None]) -> Total:
    """Of tokens or dollars."""
    values = list(parts)
    known = [value for value in values if value is not None]
    return Total(sum(known), len(values) - len(known))
