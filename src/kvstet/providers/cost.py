"""What prompts cost: in dollars, or in parts of what they would cost without a cache."""

from __future__ import annotations

from collections.abc import Iterable

from kvstet.providers.prices import Price
from kvstet.providers.provider import CacheRule
from kvstet.types import Usage


def cost_of(usage: Usage | Iterable[Usage], prices: CacheRule | Price) -> float | None:
    """Of one request, or of several together; 1 is every token at the price of a fresh one. None: some of it is not
    known, or there are no tokens."""
    usages = [usage] if isinstance(usage, Usage) else list(usage)
    relative = _relative(prices)
    cost = sum_of([input_cost(each, relative) for each in usages])
    num_tokens = sum(each.num_input_tokens or 0 for each in usages)
    return cost / num_tokens if num_tokens and cost is not None else None


def input_cost(usage: Usage, price: Price) -> float | None:
    """Of a prompt. Who does not report writes does not charge for them; who does not report reads leaves it unknown."""
    num_long = usage.num_long_cache_write_tokens or 0
    return sum_of(
        [
            tokens_cost(usage.num_fresh_tokens, price.input),
            tokens_cost(usage.num_cache_read_tokens, price.cache_read),
            tokens_cost((usage.num_cache_write_tokens or 0) - num_long, price.cache_write),
            tokens_cost(num_long, price.long_cache_write),
        ]
    )


def tokens_cost(num_tokens: int | None, price: float | None) -> float | None:
    """No tokens cost nothing at any price."""
    if num_tokens == 0:
        return 0.0
    return num_tokens * price if num_tokens is not None and price is not None else None


def sum_of(parts: Iterable[float | None]) -> float | None:
    """None where one of them is not known."""
    total = 0.0
    for part in parts:
        if part is None:
            return None
        total += part
    return total


def _relative(prices: CacheRule | Price) -> Price:
    """A fresh token costs 1."""
    if isinstance(prices, CacheRule):
        read, write, long_write = prices.read_factor, prices.write_factor, prices.long_write_factor
    else:
        read, write, long_write = map(prices.factor, (prices.cache_read, prices.cache_write, prices.long_cache_write))
    return Price(
        input=1.0, cache_read=read, cache_write=write, long_cache_write=long_write, output=None, source=prices.source
    )
