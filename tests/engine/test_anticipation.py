"""Prompts that will probably come are computed while nobody asks, and cost nobody anything."""

from __future__ import annotations

import pytest
from tests.engine.harness import Harness, words

from kvstet.engine.anticipation import (
    MAX_AGE,
    MAX_GROWTHS,
    MIN_STEP_TOKENS,
    MIN_TOKENS,
    STEP_SECONDS,
    STEP_TOKENS,
)
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)

CUTS = (40, 100)


def harness(traits: MemoryTraits = ATTENTION, **options) -> Harness:
    return Harness(traits, anticipate_share=1.0, **options)


@ALL_KINDS
def test_a_prompt_that_was_expected_costs_only_what_follows_it(traits: MemoryTraits):
    h = harness(traits)
    h.ask("a", words(100), cuts=CUTS)
    expected = words(40) + words(300, 1)
    h.anticipate(expected, cuts=(40, 200, 340))
    h.idle()
    assert h.engine.anticipator.num_tokens == 300
    h.ask("b", expected + words(10, 2), cuts=(40, 200, 340, 350))
    assert h.reuse("b").num_computed_tokens == 10
    assert h.engine.anticipator.num_used_tokens == 300
    assert h.engine.anticipator.num_wasted_tokens == 0


@ALL_KINDS
def test_a_request_that_comes_too_early_goes_on_from_where_it_is(traits: MemoryTraits):
    h = harness(traits)
    h.ask("a", words(100), cuts=CUTS)
    expected = words(100) + words(1500, 1)
    h.anticipate(expected, cuts=(*CUTS, 1600))
    while h.engine.anticipator.num_tokens < 2 * STEP_TOKENS:
        h.engine.idle_step()
        h.cache.check()
    num_missing = 1600 - max(growth.stop for growth in h.engine.anticipator.growths)
    h.ask("b", expected + words(10, 2), cuts=(*CUTS, 1600, 1610))
    assert 0 < num_missing < 1500 - STEP_TOKENS
    assert h.reuse("b").num_computed_tokens == num_missing + 10
    assert h.engine.anticipator.num_used_tokens == h.engine.anticipator.num_tokens


def test_a_request_waits_for_one_step_at_most():
    h = harness()
    h.ask("a", words(100))
    h.anticipate(words(100) + words(2000, 1))
    for _ in range(5):
        before = h.model.num_decoded_tokens
        h.engine.idle_step()
        assert h.model.num_decoded_tokens - before <= STEP_TOKENS
    before = h.model.num_decoded_tokens
    h.submit("b", words(50, 3), new=1)
    assert h.model.num_decoded_tokens == before
    h.step()
    assert h.model.num_decoded_tokens == before + 50


@pytest.mark.parametrize(
    ("seconds_per_token", "num_tokens"), [(1.0, MIN_STEP_TOKENS), (STEP_SECONDS / 100, 100), (1e-6, STEP_TOKENS)]
)
def test_a_step_is_short_on_a_slow_machine_too(seconds_per_token: float, num_tokens: int):
    h = harness()
    h.ask("a", words(100))
    rates = h.cache.policy.rates
    h.anticipate(words(100) + words(2000, 1))
    sizes: set[int] = set()
    for _ in range(6):
        rates.seconds_per_token, rates.seconds_per_look = seconds_per_token, 0.0
        before = h.engine.anticipator.num_tokens
        h.engine.idle_step()
        sizes.add(h.engine.anticipator.num_tokens - before)
    assert sizes - {0} == {num_tokens}


@ALL_KINDS
def test_it_goes_on_after_a_request_that_had_nothing_to_do_with_it(traits: MemoryTraits):
    h = harness(traits)
    h.ask("a", words(100), cuts=CUTS)
    expected = words(100) + words(600, 1)
    h.anticipate(expected, cuts=CUTS)
    while h.engine.anticipator.num_tokens < STEP_TOKENS:
        h.engine.idle_step()
    assert h.engine.anticipator.num_tokens < 600
    h.ask("title", words(30, 3))
    h.idle()
    # Nothing was computed twice, but for the last token of the first prompt.
    assert h.engine.anticipator.num_tokens in (600, 601)
    h.ask("b", expected + words(10, 2), cuts=(*CUTS, 700))
    assert h.reuse("b").num_computed_tokens == 10


def test_what_the_conversation_has_left_behind_is_not_grown():
    h = harness()
    h.ask("a", words(100))
    h.anticipate(words(100) + words(600, 1))
    h.ask("b", words(100) + words(600, 1) + words(5, 2))
    num_decoded = h.model.num_decoded_tokens
    h.idle()
    assert h.model.num_decoded_tokens == num_decoded


def test_a_guess_that_is_old_is_not_grown():
    h = harness()
    h.ask("a", words(100))
    h.anticipate(words(100) + words(600, 1))
    for number in range(MAX_AGE + 1):
        h.ask(f"other {number}", words(30, 10 + number))
    num_decoded = h.model.num_decoded_tokens
    h.idle()
    assert h.model.num_decoded_tokens == num_decoded


def test_the_latest_guess_is_grown_first():
    h = harness()
    h.anticipate(words(300, 1))
    h.anticipate(words(300, 2))
    while h.engine.anticipator.num_tokens < 300:
        h.engine.idle_step()
    h.ask("b", words(300, 2) + words(5, 3))
    assert h.reuse("b").num_computed_tokens == 5


def test_a_few_tokens_are_left_to_the_request():
    h = harness()
    h.ask("a", words(100))
    h.anticipate(words(100) + words(MIN_TOKENS - 1, 1))
    h.idle()
    assert h.engine.anticipator.num_tokens == 0
    nodes = h.cache.tree.num_nodes
    h.cache.check()
    assert h.cache.tree.num_nodes == nodes


def test_waste_ends_when_the_budget_is_spent_and_comes_back_with_work():
    h = harness(max_length=1000, num_cells=8192)
    for number in range(6):
        h.anticipate(words(600, number))
        h.idle()
    anticipator = h.engine.anticipator
    # One context, and the step in which it was used up.
    assert 1000 <= anticipator.num_tokens <= 1000 + STEP_TOKENS
    h.ask("a", words(700, 99), new=1)
    h.anticipate(words(600, 50))
    before = anticipator.num_tokens
    h.idle()
    assert 0 < anticipator.num_tokens - before <= 700 + STEP_TOKENS


def test_guesses_that_come_true_never_run_out_of_budget():
    h = harness(max_length=1000, num_cells=8192)
    for number in range(10):
        h.anticipate([number, *words(600, number)])
        h.idle()
        h.ask(f"{number}", [number, *words(600, number), *words(5, 100 + number)], new=1)
        assert h.reuse(f"{number}").num_computed_tokens == 5
    assert h.engine.anticipator.num_used_tokens == 6010


def test_what_is_given_up_counts_as_wasted():
    h = harness(num_cells=1 << 16, num_sequences=64, ram_bytes=1 << 24)
    for number in range(MAX_GROWTHS + 3):
        h.anticipate([number, *words(39, number)])
        h.idle()
    stats = h.engine.stats()
    assert stats.num_predicted_tokens == 40 * (MAX_GROWTHS + 3)
    assert stats.num_predicted_tokens_wasted == 120
    assert stats.num_predicted_tokens_used == 0


def test_on_battery_nothing_is_computed_ahead():
    is_plugged_in = False
    h = harness(has_energy=lambda: is_plugged_in)
    h.anticipate(words(300, 1))
    h.idle()
    assert h.engine.anticipator.num_tokens == 0
    is_plugged_in = True
    h.idle()
    assert h.engine.anticipator.num_tokens == 300


def test_switched_off_nothing_is_computed_ahead():
    h = Harness(anticipate_share=0.0)
    h.anticipate(words(300, 1))
    h.idle()
    assert h.model.num_decoded_tokens == 0


def test_what_can_never_come_is_not_grown():
    h = harness(max_length=200)
    h.anticipate([])
    h.anticipate(words(201))
    h.idle()
    assert h.engine.anticipator.num_tokens == 0


@ALL_KINDS
def test_room_is_made_for_requests_again(traits: MemoryTraits):
    h = harness(traits, num_cells=700, max_length=700)
    h.ask("a", words(100), cuts=CUTS)
    h.anticipate(words(100) + words(400, 1), cuts=CUTS)
    h.idle()
    h.ask("b", words(600, 5))
    h.check_reply("b")


@ALL_KINDS
def test_where_there_is_no_room_nothing_is_grown_and_nothing_breaks(traits: MemoryTraits):
    h = harness(traits, num_cells=300, max_length=300, ram_bytes=0)
    h.submit("a", words(100), cuts=CUTS, new=50)
    while not h.events.get("a"):
        h.step()
    h.anticipate(words(280, 1))
    h.run()
    h.idle()
    h.ask("b", words(100) + words(20, 3), cuts=CUTS)


def test_several_who_go_on_from_one_guess_count_its_use_once():
    h = harness()
    h.anticipate(words(300, 1))
    h.idle()
    for number in range(3):
        h.ask(f"{number}", words(300, 1) + words(20, 10 + number))
    assert h.engine.anticipator.num_used_tokens == 300


def test_it_shows_what_it_does():
    h = harness()
    h.anticipate(words(300, 1))
    assert repr(h.engine.anticipator) == "<Anticipator 1 guesses, 0 tokens ahead, 0 used, 0 wasted>"


def test_a_guess_costs_nobody_what_is_not_saved():
    """Neither cells nor the last sequence are taken from a branch that RAM has no room for."""
    h = harness(num_cells=450, max_length=450, ram_bytes=0)
    first = h.ask("a", words(300))
    h.anticipate(words(300, 1))
    h.idle()
    assert h.engine.anticipator.num_tokens == 0
    h.ask("b", first + words(10, 2))
    assert h.reuse("b").num_computed_tokens <= 12
