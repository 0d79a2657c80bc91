"""What prompts cost in parts of their price without a cache: 1 is every token at the price of a fresh one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvstet.providers.prices import Price
from kvstet.providers.provider import CacheRule
from kvstet.types import Usage


@dataclass(frozen=True, slots=True)
class _Factors:
    read: float | None
    write: float | None
    long_write: float | None


def cost_of(usage: Usage | Iterable[Usage], prices: CacheRule | Price) -> float | None:
    """Of one request, or of several together. None: some of it is not known, or there are no tokens.

    What is not reported as written was not written: only providers that charge for writes report them.
    """
    usages = [usage] if isinstance(usage, Usage) else list(usage)
    factors = _factors(prices)
    costs = [_cost(each, factors) for each in usages]
    num_tokens = sum(each.num_input_tokens or 0 for each in usages)
    known = [cost for cost in costs if cost is not None]
    return sum(known) / num_tokens if num_tokens and len(known) == len(costs) else None


def _cost(usage: Usage, factors: _Factors) -> float | None:
    """In fresh tokens."""
    if usage.num_fresh_tokens is None:
        return None
    num_long = usage.num_long_cache_write_tokens or 0
    parts = (
        (usage.num_fresh_tokens, 1.0),
        (usage.num_cache_read_tokens or 0, factors.read),
        ((usage.num_cache_write_tokens or 0) - num_long, factors.write),
        (num_long, factors.long_write),
    )
    known = [number * factor for number, factor in parts if number and factor is not None]
    return sum(known) if len(known) == sum(1 for number, _ in parts if number) else None


def _factors(prices: CacheRule | Price) -> _Factors:
    if isinstance(prices, CacheRule):
        return _Factors(prices.read_factor, prices.write_factor, prices.long_write_factor)
    return _Factors(*map(prices.factor, (prices.cache_read, prices.cache_write, prices.long_cache_write)))
