from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.cache.cache import Cache
from kvstet.cache.policy import KIND_WEIGHTS, Policy
from kvstet.cache.rates import Rates
from kvstet.cache.tier import RamTier
from kvstet.engine.cuts import MAX_PLACED_CUTS, MIN_CHECKPOINT_TOKENS, cuts_of
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.messages import Generate
from kvstet.types import GREEDY, Blob, CutKind, MemoryTraits, RequestId

WITH_CHECKPOINTS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
CHECKPOINT_BYTES = 10


def cache(traits: MemoryTraits, *, num_checkpoints: int | None = None) -> Cache:
    """One with room for so many checkpoints; None: their size is not known yet."""
    made = Cache(traits, RamTier(CHECKPOINT_BYTES * (num_checkpoints or 1)), policy=Policy(traits, Rates(1.0, 0.0)))
    if num_checkpoints is not None:
        node = made.insert(np.array([99], np.int32), ())
        assert made.store(node, "checkpoint", Blob(0, 1, np.zeros(CHECKPOINT_BYTES, np.uint8)))
    return made


def cuts(
    cache: Cache, num_tokens: int, positions: tuple[int, ...], kinds: tuple[CutKind, ...] = ()
) -> dict[int, CutKind]:
    tokens = np.zeros(num_tokens, np.int32)
    request = Generate(RequestId("r"), tokens, positions, cut_kinds=kinds, max_new_tokens=1, sampling=GREEDY)
    return cuts_of(request, num_tokens, cache.tree.match(tokens), cache)


def even(count: int, step: int = 20) -> tuple[int, ...]:
    return tuple(range(step, step * count + 1, step))


# Attention


def test_attention_is_cut_at_every_message_end_however_close():
    assert cuts(cache(ATTENTION), 100, (1, 2, 50, 99), ("head", "user", "tool", "other")) == {
        1: "head",
        2: "user",
        50: "tool",
        99: "other",
    }


def test_cuts_outside_the_prompt_count_for_nothing_and_come_in_any_order():
    assert cuts(cache(ATTENTION), 50, (60, 30, 0, 30, 50, -1, 10)) == {10: "other", 30: "other"}


# Room for all


@WITH_CHECKPOINTS
@pytest.mark.parametrize("num_checkpoints", [None, 100])
def test_where_all_fit_the_only_ones_left_out_are_those_too_close_to_another(
    traits: MemoryTraits, num_checkpoints: int | None
):
    found = cuts(
        cache(traits, num_checkpoints=num_checkpoints),
        200,
        (10, 20, 35, 36, 52, 190),
        ("head", "user", "tool", "assistant", "user", "other"),
    )
    # The last one lets the same prompt cost one token; it is too close here.
    assert found == {20: "user", 36: "assistant", 52: "user", 190: "other"}


@WITH_CHECKPOINTS
def test_one_more_stands_before_the_last_token(traits: MemoryTraits):
    assert cuts(cache(traits), 200, (50,), ("user",)) == {50: "user", 199: "other"}
    assert cuts(cache(traits), 200, (50, 199), ("user", "tool")) == {50: "user", 199: "tool"}
    assert cuts(cache(traits), 10, ()) == {}
    assert cuts(cache(traits), MIN_CHECKPOINT_TOKENS + 1, ()) == {MIN_CHECKPOINT_TOKENS: "other"}
    assert cuts(cache(traits), 1, ()) == {}


@given(st.sets(st.integers(-5, 700)), st.integers(1, 600))
def test_checkpoints_stand_apart_and_nothing_more_could_be_kept(positions: set[int], num_tokens: int):
    found = [*cuts(cache(SWA), num_tokens, tuple(positions))]
    assert all(b - a >= MIN_CHECKPOINT_TOKENS for a, b in pairwise([0, *found]))
    wanted = {p for p in positions if 0 < p < num_tokens} | {num_tokens - 1}
    assert set(found) <= wanted
    for position in wanted - set(found):
        # What was left out stands too close behind one that was kept.
        assert any(0 <= position - kept < MIN_CHECKPOINT_TOKENS for kept in [0, *found])


# A budget


@WITH_CHECKPOINTS
def test_the_head_and_the_last_two_stand_in_any_case(traits: MemoryTraits):
    kinds: tuple[CutKind, ...] = ("other", "head", *["other"] * 17, "user")
    found = cuts(cache(traits, num_checkpoints=4), 402, even(20), kinds)
    assert len(found) == 4
    assert {40: "head", 400: "user", 380: "other"}.items() <= found.items()
    assert list(found) == sorted(found)


@WITH_CHECKPOINTS
def test_the_rest_is_placed_where_requests_are_expected_to_save_most(traits: MemoryTraits):
    kinds: tuple[CutKind, ...] = tuple(("user", "assistant", "tool", "tool")[i % 4] for i in range(12))
    shelf = cache(traits, num_checkpoints=5)
    for depth in (1, 1, 2, 3, 6):
        shelf.policy.depths.observe(depth)
    positions = even(12)
    found = cuts(shelf, 242, positions, kinds)
    assert len(found) == 5 and {220, 240} <= found.keys()
    chances = shelf.policy.depths.chances(12)[::-1] * [KIND_WEIGHTS[kind] for kind in kinds]

    def work(kept: tuple[int, ...]) -> float:
        return sum(
            chance * (position - max((k for k in kept if k <= position), default=0))
            for chance, position in zip(chances, positions, strict=True)
        )

    best = min(work((*others, 220, 240)) for others in combinations(positions[:-2], 3))
    assert work(tuple(found)) == pytest.approx(best)


@WITH_CHECKPOINTS
def test_where_checkpoints_are_already_more_may_stand(traits: MemoryTraits):
    shelf = cache(traits, num_checkpoints=4)
    positions = even(20)
    node = shelf.insert(np.zeros(402, np.int32), positions)
    known = [step for step in node.path() if step.stop in (100, 120)]
    for step in known:
        assert shelf.store(step, "checkpoint", Blob(0, step.stop, np.zeros(CHECKPOINT_BYTES, np.uint8)))
    found = cuts(shelf, 402, positions)
    assert {100, 120, 380, 400} <= found.keys()
    assert len(found) == 6


def test_a_conversation_of_very_many_messages_keeps_its_head():
    count = MAX_PLACED_CUTS + 100
    kinds: tuple[CutKind, ...] = ("head", *["user"] * (count - 1))
    found = cuts(cache(SWA, num_checkpoints=8), 20 * count + 2, even(count), kinds)
    assert len(found) == 8
    assert found[20] == "head"
    # Only the last ones are considered for the rest.
    assert min(found.keys() - {20}) > 20 * 100


def test_in_a_budget_too_checkpoints_stand_apart():
    positions = tuple(range(3, 900, 3))
    found = [*cuts(cache(SWA, num_checkpoints=6), 902, positions)]
    assert len(found) == 6
    assert all(b - a >= MIN_CHECKPOINT_TOKENS for a, b in pairwise([0, *found]))
