"""What one request cost, and sums of what is known."""

from __future__ import annotations

import pytest

from kvstet.money.bill import Total, bill_of, read_share, total_of
from kvstet.providers.prices import FREE, Price
from kvstet.types import Usage

PRICE = Price(input=2e-6, cache_read=0.2e-6, cache_write=2.5e-6, long_cache_write=4e-6, output=10e-6, source="a test")


def usage(given: int | None, read: int | None, write: int | None = 0, output: int | None = 100, long: int = 0) -> Usage:
    return Usage(
        num_input_tokens=given,
        num_cache_read_tokens=read,
        num_cache_write_tokens=write,
        num_long_cache_write_tokens=long,
        num_output_tokens=output,
    )


@pytest.mark.parametrize(
    ("told", "cost", "without"),
    [
        (usage(10_000, 0), 0.021, 0.021),
        (usage(10_000, 8_000), 0.004 + 0.0016 + 0.001, 0.021),
        (usage(10_000, 8_000, 2_000), 0.0016 + 0.005 + 0.001, 0.021),
        (usage(10_000, 8_000, 2_000, long=500), 0.0016 + 0.00375 + 0.002 + 0.001, 0.021),
        (usage(10_000, 8_000, None), 0.004 + 0.0016 + 0.001, 0.021),
        (usage(10_000, None), None, 0.021),
        (usage(None, None), None, None),
        (usage(10_000, 0, output=None), None, None),
        (usage(0, 0, output=0), 0.0, 0.0),
    ],
)
def test_each_class_of_token_has_its_price(told: Usage, cost: float | None, without: float | None) -> None:
    bill = bill_of(told, PRICE)
    assert bill.cost == (cost if cost is None else pytest.approx(cost))
    assert bill.cost_without_cache == (without if without is None else pytest.approx(without))
    assert bill.saved is None


def test_without_a_price_nothing_is_known_but_the_tokens() -> None:
    bill = bill_of(usage(10_000, 8_000), None, unoptimised=usage(10_000, 0))
    assert (bill.cost, bill.cost_without_cache, bill.saved) == (None, None, None)
    assert bill.usage.num_input_tokens == 10_000


def test_a_class_without_a_price_matters_only_where_there_are_tokens_of_it() -> None:
    price = Price(input=1.0, cache_read=None, cache_write=None, long_cache_write=None, output=1.0, source="a test")
    assert bill_of(usage(10, 0), price).cost == 110
    assert bill_of(usage(10, 1), price).cost is None


def test_a_local_model_costs_nothing_and_that_is_known() -> None:
    assert bill_of(usage(10_000, 8_000), FREE).cost == 0.0
    assert bill_of(usage(10_000, None), FREE).cost is None


def test_what_the_optimiser_saved_is_the_difference_of_the_prompts() -> None:
    bill = bill_of(usage(10_000, 8_000), PRICE, unoptimised=usage(10_100, 0))
    assert bill.saved == pytest.approx(0.0202 - 0.0056)
    worse = bill_of(usage(10_000, 0, 10_000), PRICE, unoptimised=usage(10_000, 0))
    assert worse.saved == pytest.approx(-0.005)
    assert bill_of(usage(10_000, 8_000), PRICE, unoptimised=usage(10_000, None)).saved is None


def test_sums_count_what_they_do_not_know() -> None:
    assert total_of([1, None, 2.5, None]) == Total(3.5, 2)
    assert total_of([]) == Total(0, 0)
    assert total_of([0.0]).is_whole
    assert not total_of([None]).is_whole


def test_the_share_that_was_read_is_over_those_that_tell_it() -> None:
    told, silent = usage(12_000, 9_000), Usage(num_input_tokens=1_000)
    assert read_share([told, silent]) == pytest.approx(0.75)
    assert read_share([silent]) is None
    assert read_share([]) is None
    assert read_share([usage(0, 0)]) is None
