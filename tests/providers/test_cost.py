"""Costs in parts of what prompts cost without a cache."""

from __future__ import annotations

import pytest

from kvstet.providers.cost import cost_of
from kvstet.providers.prices import Price
from kvstet.providers.provider import provider_named
from kvstet.types import Usage

CLAUDE = provider_named("anthropic").rule_for("claude-sonnet-5")
PRICE = Price(input=2.0, cache_read=0.5, cache_write=2.5, long_cache_write=None, output=9.0, source="a test")


def usage(given: int | None, read: int | None = 0, write: int | None = 0, long: int | None = 0) -> Usage:
    return Usage(
        num_input_tokens=given,
        num_cache_read_tokens=read,
        num_cache_write_tokens=write,
        num_long_cache_write_tokens=long,
    )


@pytest.mark.parametrize(
    ("told", "cost"),
    [
        (usage(100), 1.0),
        (usage(100, read=100), 0.1),
        (usage(100, write=100), 1.25),
        (usage(100, write=100, long=100), 2.0),
        (usage(100, read=60, write=20, long=10), 0.2 + 0.06 + 0.125 + 0.2),
        (usage(100, read=50, write=None, long=None), 0.55),
        (usage(None), None),
        (usage(100, read=None), None),
        (usage(0), None),
    ],
)
def test_each_class_has_its_factor(told: Usage, cost: float | None) -> None:
    assert cost_of(told, CLAUDE) == (cost if cost is None else pytest.approx(cost))


def test_several_requests_weigh_by_their_tokens() -> None:
    assert cost_of([usage(300), usage(100, read=100)], CLAUDE) == pytest.approx(310 / 400)
    assert cost_of([usage(300), usage(None)], CLAUDE) is None


def test_prices_do_as_well_as_factors() -> None:
    assert cost_of(usage(100, read=50), PRICE) == pytest.approx(0.625)
    assert cost_of(usage(100, write=50, long=50), PRICE) is None


def test_a_factor_that_nobody_knows_matters_only_where_it_is_needed() -> None:
    unknown = provider_named("openrouter").rule_for("meta/x")
    assert cost_of(usage(100), unknown) == 1.0
    assert cost_of(usage(100, read=1), unknown) is None
