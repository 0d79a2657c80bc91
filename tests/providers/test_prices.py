"""Prices from `genai-prices`, offline."""

from __future__ import annotations

import socket
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from kvstet.providers.prices import price_of
from kvstet.providers.provider import provider_at, provider_named

MILLION = 1e6
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a price was asked for over the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def test_each_class_of_token_has_a_price() -> None:
    """genai-prices: claude-opus-5 $5 input, $25 output, $0.5 read, $6.25 write, $10 1h write."""
    price = price_of(provider_named("anthropic"), "claude-opus-5", at=NOON)
    assert price is not None
    told = (price.input, price.cache_read, price.cache_write, price.long_cache_write, price.output)
    assert [each and each * MILLION for each in told] == pytest.approx([5, 0.5, 6.25, 10, 25])
    assert price.estimated == ()


def test_long_prompts_cost_more_where_the_vendor_says_so() -> None:
    """genai-prices: gpt-5.6-sol doubles its prices above 272,000 tokens of input."""
    openai = provider_named("openai")
    prices = [price_of(openai, "gpt-5.6-sol", num_input_tokens=number, at=NOON) for number in (272_000, 272_001)]
    assert prices[0] is not None
    assert prices[1] is not None
    assert prices[1].input == pytest.approx(2 * (prices[0].input or 0))
    assert (prices[0].above_num_tokens, prices[1].above_num_tokens) == (None, 272_000)


def test_a_rules_factor_stands_in_for_a_price_that_is_missing_and_it_says_so() -> None:
    """genai-prices has no 12h write of OpenAI's; the rule says 2.5."""
    price = price_of(provider_named("openai"), "gpt-5.6-sol", at=NOON)
    assert price is not None
    assert price.long_cache_write == pytest.approx(2.5 * (price.input or 0))
    assert price.estimated == ("long_cache_write",)


def test_a_write_that_costs_nothing_extra_has_the_price_of_a_fresh_token() -> None:
    price = price_of(provider_named("openai"), "gpt-5.2", at=NOON)
    assert price is not None
    assert price.cache_write == price.input
    assert price.estimated == ()


def test_prices_change_with_the_date() -> None:
    deepseek = provider_named("deepseek")
    old, new = (price_of(deepseek, "deepseek-v4-pro", at=datetime(2026, month, 1, 12, tzinfo=UTC)) for month in (6, 11))
    assert old is not None
    assert new is not None
    assert old.input != new.input


def test_a_model_that_nobody_knows_has_no_price() -> None:
    assert price_of(provider_named("anthropic"), "claude-9-imaginary") is None
    assert price_of(provider_named("qwen"), "qwen3-coder") is None
    assert price_of(provider_at("https://llm.example"), "gpt-5.6-sol") is None


def test_a_local_model_sends_no_bill() -> None:
    price = price_of(provider_named("kvstet"), "anything")
    assert price is not None
    assert (price.input, price.output) == (0.0, 0.0)


def test_the_package_is_imported_when_the_first_price_is_asked_for() -> None:
    code = (
        "import sys; from kvstet.providers import prices, cost, simulator, usage, provider;"
        "provider.providers(); print('genai_prices' in sys.modules, 'pydantic' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["False", "False"]
