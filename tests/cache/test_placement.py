from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.cache.placement import APPEND_PRIOR, UNIFORM_PRIOR, EditDepths, best_placement

# How far back conversations are edited


def test_nothing_is_known_at_first_so_most_requests_append_and_any_end_is_as_likely_as_another():
    chances = EditDepths().chances(5)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[1:] == pytest.approx([chances[1]] * 4)
    assert chances[0] / chances[1] == pytest.approx((APPEND_PRIOR + UNIFORM_PRIOR / 5) / (UNIFORM_PRIOR / 5))


def test_a_conversation_of_one_end_is_gone_on_from_there():
    assert EditDepths().chances(1) == pytest.approx([1.0])


@given(st.lists(st.integers(0, 5000), max_size=30), st.integers(1, 300))
def test_chances_are_chances(observed: list[int], count: int):
    depths = EditDepths()
    for depth in observed:
        depths.observe(depth)
    chances = depths.chances(count)
    assert chances.shape == (count,)
    assert (chances > 0).all()
    assert chances.sum() == pytest.approx(1.0)


def test_depths_are_known_in_their_order_of_magnitude():
    depths = EditDepths()
    for _ in range(50):
        depths.observe(5)
    chances = depths.chances(16)
    likely = np.flatnonzero(chances > 2 * chances[15]).tolist()
    # Appending is a good guess still.
    assert likely == [0, 4, 5, 6, 7]
    assert chances[4:8] == pytest.approx([chances[4]] * 4)


def test_a_bucket_that_reaches_beyond_the_first_message_counts_for_the_ends_that_are_there():
    depths = EditDepths()
    for _ in range(1000):
        depths.observe(4)
    # Of the ends 4 to 7, the conversation has two.
    chances = depths.chances(6)
    assert chances[4:].sum() > 0.95
    assert chances[4] == pytest.approx(chances[5])


def test_what_was_observed_is_forgotten_slowly():
    depths = EditDepths()
    for _ in range(300):
        depths.observe(9)
    before = depths.chances(16)[9]
    for _ in range(10):
        depths.observe(0)
    soon = depths.chances(16)[9]
    for _ in range(2000):
        depths.observe(0)
    late = depths.chances(16)[9]
    assert before > soon > 0.9 * before
    assert late < 0.05 * before


def test_an_observation_shows_at_once():
    depths = EditDepths()
    before = depths.chances(4).copy()
    depths.observe(3)
    assert depths.chances(4)[3] > before[3]
    assert repr(depths) == "<EditDepths {'2+': 1.0}>"


# Where checkpoints stand


def expected_work(seconds: list[float], chances: list[float], kept: tuple[int, ...]) -> float:
    """What a request computes on average."""
    return sum(
        chances[i] * (seconds[i] - max((seconds[k] for k in kept if k <= i), default=0.0)) for i in range(len(seconds))
    )


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[float], list[float], list[bool]]:
    count = draw(st.integers(1, 8))
    steps = draw(st.lists(st.integers(1, 50), min_size=count, max_size=count))
    chances = draw(st.lists(st.integers(0, 20), min_size=count, max_size=count))
    pinned = draw(st.lists(st.sampled_from([False, False, True]), min_size=count, max_size=count))
    return np.cumsum(steps).astype(float).tolist(), [chance / 20 for chance in chances], pinned


@settings(max_examples=400)
@given(conversations(), st.integers(0, 9))
def test_no_other_placement_is_better(conversation: tuple[list[float], list[float], list[bool]], count: int):
    seconds, chances, pinned = conversation
    kept = best_placement(np.array(seconds), np.array(chances), count, np.array(pinned)).tolist()
    n = len(seconds)
    wanted = min(n, max(count, sum(pinned)))
    assert len(kept) == wanted
    assert all(a < b for a, b in pairwise(kept))
    assert set(kept) <= set(range(n))
    must = {i for i in range(n) if pinned[i]}
    assert must <= set(kept)
    best = min(expected_work(seconds, chances, other) for other in combinations(range(n), wanted) if must <= set(other))
    assert expected_work(seconds, chances, tuple(kept)) == pytest.approx(best)


def test_with_even_chances_checkpoints_are_spread_evenly():
    seconds = np.arange(1.0, 101.0)
    kept = best_placement(seconds, np.full(100, 0.01), 9, np.zeros(100, bool))
    gaps = np.diff(kept)
    assert gaps.min() >= 9 and gaps.max() <= 11


def test_they_stand_close_where_edits_are_likely():
    seconds = np.arange(1.0, 101.0)
    chances = np.where(np.arange(100) >= 80, 0.04, 0.0025)
    kept = best_placement(seconds, chances, 10, np.zeros(100, bool))
    assert kept.tolist() == [13, 26, 39, 52, 66, 80, 84, 88, 92, 96]
