"""What of a prompt is computed, and what is moved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.harness import words

from kvstet.cache.tree import num_equal
from kvstet.engine.alignment import Block
from kvstet.engine.fake import FakeModel
from kvstet.engine.graft import Graft, move, plan_graft
from kvstet.engine.model import Batch
from kvstet.errors import MemoryMisuse
from kvstet.types import SeqId, Tokens

SOURCE, TARGET = SeqId(0), SeqId(1)


def tokens_of(*pieces: list[int]) -> Tokens:
    return np.array([token for piece in pieces for token in piece], np.int32)


HEAD, GONE, TAIL, NEW = words(100, 1), words(50, 2), words(500, 3), words(20, 4)


def test_a_removal_moves_what_stands_behind_the_seam():
    graft = plan_graft(tokens_of(HEAD, GONE, TAIL), tokens_of(HEAD, TAIL, NEW), seam=60)
    assert graft == Graft(100, 160, (Block(210, 160, 440),), 620, (Block(150, 100, 500),))
    assert (graft.num_shifted_tokens, graft.num_computed_tokens) == (440, 80)


def test_what_comes_new_is_computed_before_the_seam():
    graft = plan_graft(tokens_of(HEAD, TAIL), tokens_of(HEAD, GONE, TAIL, NEW), seam=60)
    assert graft == Graft(100, 210, (Block(160, 210, 440),), 670, (Block(100, 150, 500),))


def test_the_seam_is_counted_over_blocks():
    between = words(100, 5)
    before = tokens_of(HEAD, GONE, between, GONE[:20], TAIL)
    graft = plan_graft(before, tokens_of(HEAD, between, TAIL, NEW), seam=130)
    # 100 tokens of the first block, 30 of the second.
    assert graft.exact_stop == 230
    assert graft.moves == (Block(300, 230, 470),)


def test_between_blocks_is_computed_behind_moved_state():
    between = words(100, 5)
    graft = plan_graft(tokens_of(HEAD, GONE, between, TAIL), tokens_of(HEAD, between, NEW, TAIL, NEW), seam=10)
    moves, blocks = (Block(160, 110, 90), Block(250, 220, 500)), (Block(150, 100, 100), Block(250, 220, 500))
    assert graft == Graft(100, 110, moves, 740, blocks)
    assert graft.num_computed_tokens == 10 + 20 + 20


def test_the_last_token_is_always_computed():
    graft = plan_graft(tokens_of(HEAD, GONE, TAIL), tokens_of(HEAD, TAIL), seam=60)
    assert graft.moves == (Block(210, 160, 439),)


def test_where_nothing_can_be_moved_all_is_exact():
    for target in (tokens_of(HEAD, NEW), tokens_of(HEAD, TAIL[:70]), tokens_of(HEAD, GONE, TAIL, NEW)):
        graft = plan_graft(tokens_of(HEAD, GONE, TAIL), target, seam=60)
        assert (graft.exact_stop, graft.moves) == (len(target), ())


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 700), st.integers(0, 300), st.integers(0, 60))
def test_a_graft_covers_the_prompt(num_head: int, num_gone: int, num_tail: int, seam: int, num_new: int):
    head, gone, tail, new = (words(n, seed) for seed, n in enumerate((num_head, num_gone, num_tail, num_new), 7))
    before, after = tokens_of(head, gone, tail), tokens_of(head, tail, new)
    graft = plan_graft(before, after, seam)
    assert graft.num_shifted_tokens + graft.num_computed_tokens + graft.prefix == len(after)
    assert graft.prefix == num_equal(before, after)
    at = graft.exact_stop
    for block in graft.moves:
        assert at <= block.target and block.target_stop < len(after)
        assert (before[block.source : block.source_stop] == after[block.target : block.target_stop]).all()
        at = block.target_stop
    if graft.moves:
        assert graft.num_computed_tokens <= max(0, len(after) - len(before) + num_gone) + seam + 200


def decode(model: FakeModel, seq: SeqId, tokens: Tokens) -> np.ndarray:
    for start in range(0, len(tokens), model.max_batch):
        part = tokens[start : start + model.max_batch]
        outputs = np.arange(len(part)) == len(part) - 1
        model.decode(Batch(part, np.full(len(part), seq, np.int32), outputs))
    return model.logits(0)


@pytest.mark.parametrize("gone", [GONE, NEW], ids=["moved", "in place"])
def test_moved_state_predicts_otherwise_and_leaves_the_source_alone(gone: list[int]):
    model = FakeModel(num_cells=8192)
    before, after = tokens_of(HEAD, gone, TAIL), tokens_of(HEAD, words(20, 9), TAIL, NEW)
    decode(model, SOURCE, before)
    graft = plan_graft(before, after, seam=60)
    model.fork(SOURCE, TARGET, graft.prefix)
    decode(model, TARGET, after[graft.prefix : graft.exact_stop])
    for block in graft.moves:
        move(model, SOURCE, TARGET, block)
    logits = decode(model, TARGET, after[model.length(TARGET) :])
    assert model.tokens(TARGET) == after.tolist()
    assert model.exact_length(TARGET) == graft.exact_stop
    assert not np.array_equal(logits, model.expected_logits(after.tolist()))
    with pytest.raises(MemoryMisuse):
        model.save_span(TARGET, 0, graft.exact_stop + 1)
    assert np.array_equal(decode(model, SOURCE, after[:1]), model.expected_logits([*before.tolist(), int(after[0])]))
