"""Whether to shorten a conversation pays: what it costs now against what each later request saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kvstet.providers.prices import Price
from kvstet.providers.provider import CacheRule, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a token costs, in any unit: money of a hosted model, seconds of a local one. One is a fresh input token."""

    read: float = 0.1
    """One that the cache holds: a tenth is the median over the vendors of the table."""
    write: float = 1.25
    """One that it does not hold yet, and will."""
    output: float = 5.0

    @staticmethod
    def of(provider: Provider, rule: CacheRule, price: Price | None = None) -> Rates:
        """By a model's price, or else by its rule.

        What neither tells is taken to be as usual. That is the likeliest, and no other guess is on the safe side: were
        a read dearer, shortening a conversation would pay sooner, but riding on it for a summary would not.
        """
        if provider.is_local:
            return LOCAL
        read, write, output = rule.read_factor, rule.write_factor, None
        if price is not None:
            read, write, output = map(price.factor, (price.cache_read, price.cache_write, price.output))
        usual = Rates()
        return Rates(
            read=usual.read if read is None else read,
            write=1.0 if write is None else write,
            output=usual.output if output is None else output,
        )


LOCAL = Rates(read=0.0, write=1.0, output=4.0)
"""Of a model on this machine, in the time of a computed token: reuse costs nothing worth counting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payback:
    """Of one change of a conversation; costs are in the unit of the `Rates`."""

    cost_now: float
    """What has to be computed or written again, and what a summary costs, beyond what goes on unchanged would cost."""
    saved_per_request: float
    num_expected_requests: int
    """That will still be sent in this conversation."""

    @property
    def pays(self) -> bool:
        return self.saved_per_request * self.num_expected_requests > self.cost_now

    @property
    def num_requests_to_pay(self) -> float:
        """After so many it has paid; infinite where it never does."""
        return self.cost_now / self.saved_per_request if self.saved_per_request > 0 else math.inf


def payback(
    *,
    num_removed_tokens: int,
    num_rewritten_tokens: int,
    rates: Rates,
    num_expected_requests: int,
    num_summarised_tokens: int = 0,
    num_summary_tokens: int = 0,
) -> Payback:
    """Of taking tokens out: those behind the place are written anew instead of read; a summary is read for (the live
    prefix), generated, and then written where the rest stood."""
    rewriting = num_rewritten_tokens * (rates.write - rates.read)
    summary = num_summarised_tokens * rates.read + num_summary_tokens * (rates.output + rates.write)
    saved = (num_removed_tokens - num_summary_tokens) * rates.read
    return Payback(cost_now=rewriting + summary, saved_per_request=saved, num_expected_requests=num_expected_requests)
