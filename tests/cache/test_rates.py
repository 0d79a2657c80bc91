from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.cache.rates import MIN_LOAD_BYTES, Rates, num_looks

# Computing


def test_a_token_costs_more_the_more_tokens_it_looks_back_on():
    rates = Rates(seconds_per_token=1.0, seconds_per_look=0.5)
    assert rates.compute_seconds(0, 2) == 2 + 0.5 * 2
    assert rates.compute_seconds(2, 4) == 2 + 0.5 * 6
    assert rates.compute_seconds(0, 2) + rates.compute_seconds(2, 4) == rates.compute_seconds(0, 4)
    assert rates.compute_seconds(3, 3) == 0


def observe(rates: Rates, start: int, stop: int, seconds: float) -> None:
    rates.observe_compute(stop - start, num_looks(start, stop), seconds)


costs = st.tuples(st.floats(1e-5, 0.1), st.one_of(st.just(0.0), st.floats(1e-10, 1e-5)))
steps = st.lists(st.tuples(st.integers(0, 50_000), st.integers(1, 2048)), min_size=2, max_size=20)


@settings(max_examples=30)
@given(costs, steps)
def test_the_fit_converges_to_what_computing_costs(cost: tuple[float, float], seen: list[tuple[int, int]]):
    rates = Rates()
    per_token, per_look = cost
    for i in range(1000):
        start, count = seen[i % len(seen)]
        seconds = count * per_token + num_looks(start, start + count) * per_look
        observe(rates, start, start + count, seconds)
    # What was seen is told right, even where it does not tell the two costs apart.
    for start, count in seen:
        seconds = count * per_token + num_looks(start, start + count) * per_look
        assert rates.compute_seconds(start, start + count) == pytest.approx(seconds, rel=0.02)


def test_short_and_long_prompts_count_alike_so_both_costs_are_found():
    rates = Rates()
    for i in range(400):
        start = 30_000 * (i % 2)
        observe(rates, start, start + 512, 512 * 2e-4 + num_looks(start, start + 512) * 3e-9)
    assert rates.seconds_per_token == pytest.approx(2e-4, rel=1e-3)
    assert rates.seconds_per_look == pytest.approx(3e-9, rel=1e-3)


@given(
    st.lists(
        st.tuples(st.integers(0, 100_000), st.integers(1, 4096), st.floats(1e-6, 1e4)),
        min_size=1,
        max_size=50,
    )
)
def test_whatever_is_observed_no_cost_is_negative(seen: list[tuple[int, int, float]]):
    rates = Rates()
    for start, count, seconds in seen:
        observe(rates, start, start + count, seconds)
        assert rates.seconds_per_token >= 0 and rates.seconds_per_look >= 0
        assert 0 < rates.compute_seconds(start, start + count) < 1e15


def test_noise_is_averaged():
    rates = Rates()
    for i in range(400):
        start = 10_000 * (i % 4)
        seconds = 100 * 1e-3 + num_looks(start, start + 100) * 1e-8
        observe(rates, start, start + 100, seconds * (1.2 if i % 8 < 4 else 0.8))
    assert rates.compute_seconds(0, 1000) == pytest.approx(1000 * 1e-3 + num_looks(0, 1000) * 1e-8, rel=0.1)


def test_a_machine_that_became_slower_or_faster_is_believed_after_a_while():
    rates = Rates()
    for seconds in (0.1, 0.4, 0.05):
        for i in range(500):
            start = 10_000 * (i % 2)
            observe(rates, start, start + 100, seconds + num_looks(start, start + 100) * 1e-9)
        assert rates.compute_seconds(0, 100) == pytest.approx(seconds, rel=0.02)


@pytest.mark.parametrize(("num_tokens", "seconds"), [(0, 1.0), (-1, 1.0), (10, 0.0), (10, -1.0)])
def test_a_step_without_tokens_or_time_says_nothing(num_tokens: int, seconds: float):
    rates = Rates()
    rates.observe_compute(num_tokens, 5.0, seconds)
    assert repr(rates) == repr(Rates())
    assert rates.compute_seconds(0, 100) == Rates().compute_seconds(0, 100)


# Loading


def test_loading_takes_the_tiers_time():
    rates = Rates(ram_bytes_per_second=100.0, disk_bytes_per_second=10.0)
    assert (rates.load_seconds(50, "ram"), rates.load_seconds(50, "disk")) == (0.5, 5.0)


@pytest.mark.parametrize("rate", [1e3, 1e7, 1e12])
def test_bandwidth_comes_close_to_what_is_observed_and_each_tier_has_its_own(rate: float):
    rates = Rates()
    for _ in range(200):
        rates.observe_load(1 << 20, "disk", (1 << 20) / rate)
    assert rates.bytes_per_second["disk"] == pytest.approx(rate, rel=0.01)
    assert rates.bytes_per_second["ram"] == Rates().bytes_per_second["ram"]


def test_one_slow_load_changes_the_bandwidth_by_a_small_ratio():
    rates = Rates(disk_bytes_per_second=1e9)
    rates.observe_load(1 << 20, "disk", (1 << 20) / 1e6)
    # A thousand times slower: half as fast, and no worse.
    assert rates.bytes_per_second["disk"] == pytest.approx(1e9 * 1000**-0.1)
    rates.observe_load(1 << 20, "disk", (1 << 20) / 1e9)
    assert rates.bytes_per_second["disk"] > 5e8


def test_small_loads_say_nothing_about_bandwidth():
    rates = Rates()
    rates.observe_load(MIN_LOAD_BYTES - 1, "disk", 10.0)
    rates.observe_load(MIN_LOAD_BYTES, "disk", 0.0)
    assert repr(rates) == repr(Rates()) == "<Rates 100 tokens/s, ram 2000 MB/s, disk 500 MB/s>"
