"""What a token costs, in US dollars, by the `genai-prices` package: its data lie in the wheel, nothing is fetched.

The package takes about half a second to import (it builds thousands of validated objects), so it is imported when the
first price is asked for, and prices are kept. Where it has no price for reading from a cache or writing into one, the
factors of the provider's rule stand in, and the price says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from kvstet.providers.provider import CacheRule, Provider

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

_PER = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Of one token of each class, in US dollars. None: not known."""

    input: float | None
    """Of a fresh one."""
    cache_read: float | None
    cache_write: float | None
    """Into an entry that is kept as long as usual."""
    long_cache_write: float | None
    """Into one that is kept longer."""
    output: float | None
    source: str
    estimated: tuple[str, ...] = ()
    """Names of the classes whose price is the input's times the rule's factor."""
    above_num_tokens: int | None = None
    """It holds for prompts longer than this; None: there is no such step below."""

    def factor(self, price: float | None) -> float | None:
        """Of the price of a fresh token."""
        return price / self.input if price is not None and self.input else None


FREE = Price(
    input=0.0, cache_read=0.0, cache_write=0.0, long_cache_write=0.0, output=0.0, source="it runs on your own machine"
)


def price_of(provider: Provider, model: str, *, num_input_tokens: int = 0, at: datetime | None = None) -> Price | None:
    """What a request with a prompt of so many tokens is billed by. None: nobody knows this model's price."""
    if provider.is_local:
        return FREE
    if provider.prices_as is None:
        return None
    moment = (at or datetime.now(UTC)).astimezone(UTC).replace(second=0, microsecond=0)
    found = _model_price(provider.prices_as, model, moment.replace(minute=moment.minute // 30 * 30))
    return None if found is None else _price(found, provider.rule_for(model), num_input_tokens)


def context_length_of(provider: Provider, model: str) -> int | None:
    """How many tokens the model takes, prompt and reply together. None: nobody knows, or it is the user's own."""
    found = _model(provider.prices_as, model) if provider.prices_as is not None else None
    return None if found is None else found.context_window


@lru_cache(1024)
def _model_price(provider: str, model: str, at: datetime) -> ModelPrice | None:
    found = _model(provider, model)
    return None if found is None else found.get_prices(at)


@lru_cache(1024)
def _model(provider: str, model: str) -> ModelInfo | None:
    from genai_prices import data_snapshot

    try:
        return data_snapshot.get_snapshot().find_provider_model(model, None, provider, None)[1]
    except LookupError:
        return None


def _price(found: ModelPrice, rule: CacheRule, num_input_tokens: int) -> Price:
    def told(name: str) -> float | None:
        return _at(getattr(found, name, None), num_input_tokens)

    fresh = told("input_mtok")
    known = {
        "cache_read": told("cache_read_mtok"),
        "cache_write": _first(told("cache_write_5m_mtok"), told("cache_write_mtok")),
        "long_cache_write": told("cache_write_1h_mtok"),
    }
    factors = {
        "cache_read": rule.read_factor,
        "cache_write": rule.write_factor,
        "long_cache_write": rule.long_write_factor,
    }
    estimated = {
        name: fresh * factor
        for name, factor in factors.items()
        if known[name] is None and factor is not None and fresh is not None
    }
    return Price(
        input=fresh,
        output=told("output_mtok"),
        source="genai-prices",
        # A write that costs nothing extra is no estimate.
        estimated=tuple(name for name in estimated if factors[name] != 1.0 or name == "cache_read"),
        above_num_tokens=_step(getattr(found, "input_mtok", None), num_input_tokens),
        **{name: _first(price, estimated.get(name)) for name, price in known.items()},
    )


def _at(price: Any, num_input_tokens: int) -> float | None:
    """Per token; all tokens of a long prompt cost what its step says."""
    if price is None:
        return None
    if not hasattr(price, "tiers"):
        return float(price) / _PER
    steps = [tier.price for tier in price.tiers if num_input_tokens > tier.start]
    return float(steps[-1] if steps else price.base) / _PER


def _step(price: Any, num_input_tokens: int) -> int | None:
    starts = [tier.start for tier in getattr(price, "tiers", ()) if num_input_tokens > tier.start]
    return max(starts, default=None)


def _first(*prices: float | None) -> float | None:
    return next((price for price in prices if price is not None), None)
