"""What two prompts have in common, whatever was edited between them."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvstet.engine.alignment import MIN_BLOCK_TOKENS, Block, align
from kvstet.types import Tokens

MAX_LOST_TOKENS = MIN_BLOCK_TOKENS
"""What an unchanged piece may lose: all of it, where it is too short for a block."""

Edit = tuple[int, int, int]
"""Where it begins (tokens since the last one), how many tokens go, and how many come."""


def tokens_of(num_tokens: int, seed: int, vocab_size: int = 32000) -> Tokens:
    return np.random.default_rng(seed).integers(0, vocab_size, num_tokens).astype(np.int32)


def edited(source: Tokens, edits: list[Edit]) -> tuple[Tokens, list[int]]:
    """The target, and the lengths of the pieces that both have in common."""
    pieces: list[Tokens] = []
    kept: list[int] = []
    at = 0
    for number, (distance, num_gone, num_new) in enumerate(edits):
        piece = source[at : at + distance]
        pieces += [piece, tokens_of(num_new, 1000 + number)]
        kept.append(len(piece))
        at = min(len(source), at + distance + num_gone)
    return np.concatenate([*pieces, source[at:]]), [*kept, len(source) - at]


def check(source: Tokens, target: Tokens, blocks: tuple[Block, ...]) -> None:
    """They say what is so, in order, and do not overlap."""
    at_source = at_target = 0
    for block in blocks:
        assert block.length >= MIN_BLOCK_TOKENS
        assert block.source >= at_source and block.target >= at_target
        at_source, at_target = block.source_stop, block.target_stop
        assert at_source <= len(source) and at_target <= len(target)
        assert (source[block.source : at_source] == target[block.target : at_target]).all()


edits = st.lists(st.tuples(st.integers(0, 600), st.integers(0, 300), st.integers(0, 300)), max_size=6)


@given(st.integers(0, 4000), st.integers(0, 99), edits)
def test_what_an_edit_leaves_alone_is_found(num_tokens: int, seed: int, edits: list[Edit]):
    source = tokens_of(num_tokens, seed)
    target, kept = edited(source, edits)
    blocks = align(source, target)
    check(source, target, blocks)
    assert sum(block.length for block in blocks) >= sum(n for n in kept if n >= MAX_LOST_TOKENS)


@given(
    st.lists(st.integers(0, 2), max_size=1500),
    st.lists(st.integers(0, 2), max_size=1500),
    st.integers(0, 40),
)
def test_prompts_that_repeat_themselves_are_aligned_truly(one: list[int], other: list[int], num_repeats: int):
    source = np.array(one + [1, 2, 3] * num_repeats + other, np.int32)
    target = np.array(other + [1, 2, 3] * num_repeats + one, np.int32)
    check(source, target, align(source, target))


def test_equal_prompts_are_one_block():
    source = tokens_of(1000, 1)
    assert align(source, source) == (Block(0, 0, 1000),)


def test_a_run_of_the_least_length_is_found_wherever_it_stands():
    for offset in range(70):
        run = tokens_of(MIN_BLOCK_TOKENS, 5)
        source = np.concatenate([tokens_of(100 + offset, 1), run, tokens_of(50, 2)])
        target = np.concatenate([tokens_of(33, 3), run, tokens_of(9, 4)])
        assert align(source, target) == (Block(100 + offset, 33, MIN_BLOCK_TOKENS),)
        assert align(source, np.delete(target, 60)) == ()


def test_a_quotation_does_not_lead_the_rest_astray():
    source = tokens_of(3000, 1)
    # What stands late in the source is quoted early in the target.
    target = np.concatenate([source[:100], source[2800:2900], source[150:]])
    assert align(source, target) == (Block(0, 0, 100), Block(150, 200, 2850))


def test_of_two_that_changed_places_the_longer_is_kept():
    source = tokens_of(1000, 1)
    target = np.concatenate([source[:100], source[500:1000], source[100:500]])
    assert align(source, target) == (Block(0, 0, 100), Block(500, 100, 500))


def test_blocks_do_not_overlap_where_the_edit_repeats_what_stands_beside_it():
    source = tokens_of(1000, 1)
    target = np.concatenate([source[:500], source[400:]])  # 100 tokens said twice
    blocks = align(source, target)
    check(source, target, blocks)
    assert sum(block.length for block in blocks) == 1000


def test_nothing_in_common_is_no_block():
    assert align(tokens_of(500, 1), tokens_of(500, 2)) == ()
    assert align(tokens_of(10, 1), tokens_of(10, 1)) == ()
    assert align(tokens_of(0, 1), tokens_of(500, 1)) == ()


def test_100_000_tokens_take_a_few_hundredths_of_a_second():
    source = tokens_of(100_000, 1)
    target, _ = edited(source, [(10_000, 0, 500), (20_000, 700, 30), (30_000, 50, 50)])
    blank = np.zeros(100_000, np.int32)
    for one, other in ((source, target), (blank, blank[:-1]), (tokens_of(100_000, 1, 2), tokens_of(100_000, 2, 2))):
        begun = time.perf_counter()
        align(one, other)
        assert time.perf_counter() - begun < 0.5  # a loaded machine's allowance
