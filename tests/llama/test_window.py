"""Windows of which all is kept (``--swa-full``): a prompt resumes at any token, and state can be moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contexts import opened
from tests.llama.test_shift import forgetful
from tests.toys import gain, toy_path

from kvstet.config import ModelOptions
from kvstet.engine.model import Batch
from kvstet.errors import OutOfCells, SnapshotMismatch
from kvstet.llama.context import Context
from kvstet.types import Blob, SeqId, Tokens

FIRST, SECOND, THIRD = SeqId(0), SeqId(1), SeqId(2)
TOYS = ("gemma3-dense", "gpt-oss-moe")
"""Their windows hold 32 tokens."""

OPTIONS = ModelOptions(
    Path(),
    ctx_size=512,
    live_cells=1024,
    parallel=2,
    cache_type_k="f32",
    cache_type_v="f32",
    flash_attn="off",
    threads=1,
    swa_full=True,
)


@pytest.fixture(params=TOYS)
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with opened(toy_path(request.param, strength=gain), OPTIONS) as context:
        yield context


def tokens_of(n: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 100, n).astype(np.int32)


def decode(context: Context, seq: SeqId, tokens: Tokens) -> NDArray[np.float32]:
    rows: list[NDArray[np.float32]] = []
    for start in range(0, len(tokens), context.max_batch):
        part = tokens[start : start + context.max_batch]
        context.decode(Batch(part, np.full(len(part), seq, np.int32), np.ones(len(part), np.bool_)))
        rows += [context.logits(row).copy() for row in range(len(part))]
    return np.stack(rows)


def check(context: Context, seq: SeqId, held: Tokens) -> None:
    """The sequence goes on as a cold run of what it holds does."""
    after = tokens_of(40, 99)
    warm = decode(context, seq, after)
    context.remove(seq)
    decode(context, THIRD, held)
    assert np.abs(warm - decode(context, THIRD, after)).max() < 5e-3
    context.remove(THIRD)


def test_the_memory_is_like_any_other_attention(context: Context):
    assert context.traits.kind == "attention"
    assert not context.traits.has_checkpoints
    assert context.shift_refusal is None
    assert context.num_sequences == 4


def test_a_branch_can_be_forked_anywhere(context: Context):
    tokens = tokens_of(300, 1)
    decode(context, FIRST, tokens)
    for stop in (1, 31, 150, 299, 300):
        context.fork(FIRST, SECOND, stop)
        check(context, SECOND, tokens[:stop])


def test_spans_are_saved_and_loaded_whole(context: Context):
    tokens = tokens_of(300, 1)
    decode(context, FIRST, tokens)
    blobs = [context.save_span(FIRST, start, stop) for start, stop in ((0, 70), (70, 75), (75, 300))]
    context.remove(FIRST)
    decode(context, THIRD, tokens_of(300, 2))
    context.remove(THIRD)
    for blob in blobs[:2]:
        context.load_span(SECOND, blob, blob.start, blob.stop)
    context.load_span(SECOND, blobs[2], 75, 213)
    check(context, SECOND, tokens[:213])


def test_a_window_is_not_recycled_while_others_come_and_go(context: Context):
    tokens = tokens_of(200, 1)
    decode(context, SECOND, tokens_of(60, 7))
    decode(context, FIRST, tokens)
    context.remove(SECOND)
    # What is freed lies before the cells of the first: whoever needs more comes upon them.
    for seed in range(2, 8):
        decode(context, SECOND, tokens_of(130, seed))
        context.fork(SECOND, SeqId(3), 100)
        context.remove(SECOND)
        decode(context, SeqId(3), tokens_of(60, seed))
        blob = context.save_span(SeqId(3), 0, 150)
        context.remove(SeqId(3))
        context.load_span(SECOND, blob, 0, 150)
        context.remove(SECOND)
    context.fork(FIRST, SECOND, 90)
    check(context, SECOND, tokens[:90])
    check(context, FIRST, tokens)


def test_where_the_cells_are_full_nothing_is_overwritten(context: Context):
    tokens = tokens_of(500, 1)
    decode(context, FIRST, tokens)
    decode(context, SECOND, tokens[::-1])
    blob = context.save_span(FIRST, 0, 300)
    with pytest.raises(OutOfCells):
        decode(context, THIRD, tokens[:200])
    context.remove(THIRD)
    with pytest.raises(OutOfCells):
        context.load_span(THIRD, blob, 0, 300)
    assert context.length(THIRD) == 0
    context.remove(SECOND)
    context.fork(FIRST, SECOND, 60)
    check(context, SECOND, tokens[:60])


def test_a_torn_blob_is_a_mismatch(context: Context):
    decode(context, FIRST, tokens_of(100, 1))
    blob = context.save_span(FIRST, 0, 100)
    for num_bytes in (3, len(blob.data) // 2, len(blob.data) - 1):
        with pytest.raises(SnapshotMismatch):
            context.load_span(SECOND, Blob(0, 100, blob.data[:num_bytes].copy()), 0, 100)
        assert context.length(SECOND) == 0


@pytest.mark.parametrize("name", TOYS)
def test_state_can_be_moved(name: str):
    head, gone, tail = tokens_of(60, 1), tokens_of(23, 2), tokens_of(200, 3)
    with opened(toy_path(name, strength=forgetful), OPTIONS) as context:
        decode(context, FIRST, np.concatenate([head, gone, tail]))
        blob = context.save_span(FIRST, 70, 283)
        context.fork(FIRST, SECOND, 60)
        context.load_shifted(SECOND, blob, 83, 283)
        check(context, SECOND, np.concatenate([head, tail]))


def test_models_without_a_plain_window_are_as_they_were():
    for name, kind in (("llama-dense", "attention"), ("lfm2-dense", "hybrid"), ("mamba-dense", "recurrent")):
        with opened(toy_path(name), OPTIONS) as context:
            assert context.traits.kind == kind
            assert context.max_batch > 32
