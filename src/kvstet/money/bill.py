"""What one request cost, by class of token; and sums in which what is not known is counted, not taken for nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kvstet.providers.cost import input_cost, sum_of, tokens_cost
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
    if price is None:
        return Bill(usage=usage, price=None, cost=None, cost_without_cache=None, saved=None)
    prompt, reply = input_cost(usage, price), tokens_cost(usage.num_output_tokens, price.output)
    unsaved = None if unoptimised is None else input_cost(unoptimised, price)
    return Bill(
        usage=usage,
        price=price,
        cost=sum_of([prompt, reply]),
        cost_without_cache=sum_of([tokens_cost(usage.num_input_tokens, price.input), reply]),
        saved=unsaved - prompt if unsaved is not None and prompt is not None else None,
    )


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


def read_share(usages: Iterable[Usage]) -> float | None:
    """The part of the prompt tokens that a cache had, 0 to 1, over the requests that tell both; None: none does."""
    pairs = [(usage.num_cache_read_tokens, usage.num_input_tokens) for usage in usages]
    told = [(read, whole) for read, whole in pairs if read is not None and whole is not None]
    num_tokens = sum(whole for _, whole in told)
    return sum(read for read, _ in told) / num_tokens if num_tokens else None
