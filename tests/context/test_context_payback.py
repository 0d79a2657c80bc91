"""What shortening a conversation costs and saves, and how long a prompt may become."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.context.writing.budget import Budget
from kvstet.context.writing.payback import LOCAL, Payback, Rates, payback
from kvstet.providers.prices import Price
from kvstet.providers.provider import provider_at, provider_named, providers

TOKENS = st.integers(0, 100_000)
RATES = st.builds(Rates, read=st.floats(0, 1), write=st.floats(1, 2), output=st.floats(0, 10))


def paid(**changed: Any) -> Payback:
    return payback(
        **{
            "num_removed_tokens": 10_000,
            "num_rewritten_tokens": 1_000,
            "rates": Rates(read=0.1, write=1.25, output=5.0),
            "num_expected_requests": 10,
            **changed,
        }
    )


def test_what_nobody_tells_is_taken_as_most_vendors_have_it():
    hosted = [provider.rules for provider in providers() if not provider.is_local]
    told = [[rule.read_factor for rule in rules if rule.read_factor is not None] for rules in hosted]
    assert Rates().read == statistics.median(map(statistics.median, filter(None, told)))
    unknown = provider_at("http://example.org")
    assert Rates.of(unknown, unknown.rule_for("m")) == Rates(read=0.1, write=1.0, output=5.0)


def test_rates_are_of_the_price_or_else_of_the_rule_and_of_a_local_model_its_time():
    anthropic = provider_named("anthropic")
    rule = anthropic.rule_for("claude-opus-5.5", "messages")
    assert Rates.of(anthropic, rule) == Rates(read=0.05, write=1.25, output=5.0)
    price = Price(input=2.0, cache_read=0.5, cache_write=3.0, long_cache_write=None, output=8.0, source="a test")
    assert Rates.of(anthropic, rule, price) == Rates(read=0.25, write=1.5, output=4.0)
    local = provider_named("llama.cpp")
    assert Rates.of(local, local.rule_for("m")) == LOCAL


def test_what_is_taken_out_saves_reading_it_and_costs_writing_what_stands_behind():
    found = paid()
    assert found.cost_now == pytest.approx(1_000 * (1.25 - 0.1))
    assert found.saved_per_request == pytest.approx(10_000 * 0.1)
    assert found.num_requests_to_pay == pytest.approx(1.15)
    assert found.pays and not paid(num_expected_requests=1).pays


def test_a_summary_is_read_for_generated_and_written():
    found = paid(num_summarised_tokens=20_000, num_summary_tokens=500)
    assert found.cost_now == pytest.approx(1_150 + 20_000 * 0.1 + 500 * (5 + 1.25))
    assert found.saved_per_request == pytest.approx((10_000 - 500) * 0.1)


def test_where_reading_costs_nothing_it_never_pays():
    found = paid(rates=LOCAL, num_expected_requests=10**9)
    assert not found.pays and math.isinf(found.num_requests_to_pay)


@given(TOKENS, TOKENS, TOKENS, TOKENS, RATES, st.integers(0, 1000))
def test_it_pays_exactly_when_more_is_saved_than_spent(
    removed: int, rewritten: int, summarised: int, summary: int, rates: Rates, num_expected: int
):
    """Beside a plain simulation: what all requests to come cost, with the change and without."""
    found = payback(
        num_removed_tokens=removed,
        num_rewritten_tokens=rewritten,
        rates=rates,
        num_expected_requests=num_expected,
        num_summarised_tokens=summarised,
        num_summary_tokens=summary,
    )
    unchanged = num_expected * rates.read * (removed + rewritten)
    asking = rates.read * summarised + rates.output * summary
    first = rewritten * (rates.write - rates.read) + summary * rates.write
    changed = asking + first + num_expected * rates.read * (rewritten + summary)
    margin = unchanged - changed
    if abs(margin) > 1e-6 * (unchanged + changed + 1):
        assert found.pays == (margin > 0)
    assert (found.num_requests_to_pay < num_expected) == found.pays or abs(margin) < 1e-6 * (unchanged + changed + 1)


def test_the_reply_has_room_in_the_budget():
    budget = Budget(context_length=10_000, num_reserved_tokens=2_000, keep_share=0.25)
    assert (budget.num_prompt_tokens, budget.num_kept_tokens) == (8_000, 2_000)


@pytest.mark.parametrize(
    "fields",
    [
        {"context_length": 100, "num_reserved_tokens": 100},
        {"num_reserved_tokens": -1},
        {"keep_share": 1.0},
        {"keep_share": -0.1},
    ],
)
def test_a_budget_that_leaves_no_room_is_refused(fields: dict[str, Any]):
    with pytest.raises(ValueError, match=r"reserve|keep_share"):
        Budget(**fields)
