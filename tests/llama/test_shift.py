"""State that is moved to other positions: it is what libllama would have computed there, and nobody else is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.contexts import opened
from tests.toys import gain, toy_path

from kvstet.config import ModelOptions
from kvstet.engine.model import Batch
from kvstet.errors import MemoryMisuse, OutOfCells
from kvstet.llama.context import Context
from kvstet.types import Blob, SeqId, Tokens

FIRST, SECOND, THIRD = SeqId(0), SeqId(1), SeqId(2)
MOVABLE = ("llama-dense", "qwen2-dense", "falcon-dense", "deepseek2-moe")
OPTIONS = ModelOptions(
    Path(), ctx_size=512, parallel=2, cache_type_k="f32", cache_type_v="f32", flash_attn="off", threads=1
)


def forgetful(name: str, tensor: str) -> float:
    """A toy whose first layer looks at nothing before a token.

    With two layers, K and V of a token are then the same behind any prefix, but for the position. So moved state is
    exact, if only it is moved right.
    """
    return 0.0 if tensor == "blk.0.attn_output.weight" else gain(name, tensor)


@pytest.fixture(params=MOVABLE)
def context(request: pytest.FixtureRequest) -> Iterator[Context]:
    with opened(toy_path(request.param, strength=forgetful), OPTIONS) as context:
        yield context


@pytest.fixture
def llama() -> Iterator[Context]:
    with opened(toy_path("llama-dense"), OPTIONS) as context:
        yield context


def tokens_of(n: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 100, n).astype(np.int32)


def decode(context: Context, seq: SeqId, tokens: Tokens) -> NDArray[np.float32]:
    """The logits of all of them."""
    context.decode(Batch(tokens, np.full(len(tokens), seq, np.int32), np.ones(len(tokens), np.bool_)))
    return np.stack([context.logits(row).copy() for row in range(len(tokens))])


def cold(context: Context, *pieces: Tokens) -> NDArray[np.float32]:
    """The logits of the last piece."""
    for piece in pieces[:-1]:
        decode(context, THIRD, piece)
    logits = decode(context, THIRD, pieces[-1])
    context.remove(THIRD)
    return logits


HEAD, GONE, TAIL, NEW, AFTER = tokens_of(40, 1), tokens_of(23, 2), tokens_of(80, 3), tokens_of(31, 4), tokens_of(20, 5)


def moved(context: Context, *, before: tuple[Tokens, ...], head: tuple[Tokens, ...]) -> None:
    """FIRST holds ``before`` and TAIL, SECOND holds ``head`` and the same TAIL, which was moved there."""
    for piece in (*before, TAIL):
        decode(context, FIRST, piece)
    for piece in head:
        decode(context, SECOND, piece)
    start = sum(map(len, before))
    blob = context.save_span(FIRST, start, start + len(TAIL))
    context.load_shifted(SECOND, blob, start, start + len(TAIL))


@pytest.mark.parametrize(
    ("before", "head"),
    [((HEAD, GONE), (HEAD,)), ((HEAD,), (HEAD, NEW)), ((HEAD, GONE), (HEAD, NEW)), ((HEAD, GONE), ())],
    ids=["remove", "insert", "replace", "to the beginning"],
)
def test_moved_state_is_what_would_be_computed_there(
    context: Context, before: tuple[Tokens, ...], head: tuple[Tokens, ...]
):
    moved(context, before=before, head=head)
    assert context.length(SECOND) == sum(map(len, head)) + len(TAIL)
    warm = decode(context, SECOND, AFTER)
    context.remove(FIRST)
    assert np.abs(warm - cold(context, *head, TAIL, AFTER)).max() < 1e-3
    if head:
        # What one place beside the right one would give is told from it. (Without a head, only distances count.)
        assert np.abs(warm - cold(context, *head, NEW[:1], TAIL, AFTER)).max() > 1e-2


def test_a_part_of_a_blob_can_be_moved_in_pieces(context: Context):
    for piece in (HEAD, GONE, TAIL):
        decode(context, FIRST, piece)
    blob = context.save_span(FIRST, 10, 140)
    decode(context, SECOND, HEAD)
    start = len(HEAD) + len(GONE)
    context.load_shifted(SECOND, blob, start, start + 30)
    decode(context, SECOND, NEW)
    context.load_shifted(SECOND, blob, start + 30, 140)
    warm = decode(context, SECOND, AFTER)
    context.remove(FIRST)
    pieces = HEAD, TAIL[:30], NEW, TAIL[30 : 140 - start], AFTER
    assert np.abs(warm - cold(context, *pieces)).max() < 1e-3


def test_state_at_unchanged_positions_can_be_given_too(context: Context):
    other = tokens_of(len(GONE), 9)
    for piece in (HEAD, GONE, TAIL):
        decode(context, FIRST, piece)
    context.fork(FIRST, SECOND, len(HEAD))
    decode(context, SECOND, other)
    blob = context.save_span(FIRST, len(HEAD) + len(GONE), 130)
    context.load_shifted(SECOND, blob, blob.start, blob.stop)
    warm = decode(context, SECOND, AFTER)
    context.remove(FIRST)
    tail = TAIL[: 130 - len(HEAD) - len(GONE)]
    assert np.abs(warm - cold(context, HEAD, other, tail, AFTER)).max() < 1e-3


@pytest.mark.parametrize("cache_type", ["f16", "f32"])
def test_nobody_else_notices_that_state_is_moved(cache_type: str):
    options = replace(OPTIONS, cache_type_k=cache_type, cache_type_v=cache_type)
    with opened(toy_path("llama-dense"), options) as context:
        for piece in (HEAD, GONE, TAIL):
            decode(context, FIRST, piece)
        context.fork(FIRST, THIRD, 100)  # shares the cells that are copied and moved
        before = [context.save_span(seq, 0, 100).data.tobytes() for seq in (FIRST, THIRD)]
        decode(context, SECOND, HEAD)
        blob = context.save_span(FIRST, 50, 143)
        for _ in range(2):
            context.load_shifted(SECOND, blob, 50, 143)
            decode(context, SECOND, AFTER)
        assert [context.save_span(seq, 0, 100).data.tobytes() for seq in (FIRST, THIRD)] == before


def test_what_was_moved_can_not_be_saved(llama: Context):
    moved(llama, before=(HEAD, GONE), head=(HEAD,))
    decode(llama, SECOND, AFTER)
    llama.save_span(SECOND, 0, len(HEAD))
    llama.fork(SECOND, THIRD, len(HEAD))
    decode(llama, THIRD, AFTER)
    llama.save_span(THIRD, 0, len(HEAD) + len(AFTER))
    llama.remove(THIRD)
    llama.fork(SECOND, THIRD, len(HEAD) + 30)
    for seq in (SECOND, THIRD):
        with pytest.raises(MemoryMisuse, match="Only 40 tokens are exact"):
            llama.save_span(seq, 0, len(HEAD) + 1)
    llama.remove(SECOND)
    decode(llama, SECOND, TAIL)
    llama.save_span(SECOND, 0, len(TAIL))


def test_moved_state_that_finds_no_cells_changes_nothing(llama: Context):
    moved(llama, before=(HEAD, GONE), head=(HEAD,))
    decode(llama, THIRD, tokens_of(200, 7))
    length = llama.length(SECOND)
    blob = llama.save_span(FIRST, 0, 143)
    with pytest.raises(OutOfCells):
        llama.load_shifted(SECOND, blob, 0, 143)
    assert llama.length(SECOND) == length
    llama.remove(THIRD)
    warm = decode(llama, SECOND, AFTER)
    llama.remove(SECOND)
    moved_again = llama.save_span(FIRST, 63, 143)
    decode(llama, SECOND, HEAD)
    llama.load_shifted(SECOND, moved_again, 63, 143)
    assert np.abs(warm - decode(llama, SECOND, AFTER)).max() < 1e-3


def test_a_range_that_is_not_there_is_refused(llama: Context):
    decode(llama, FIRST, HEAD)
    blob = llama.save_span(FIRST, 10, 30)
    for start, stop in ((9, 20), (20, 31), (20, 20)):
        with pytest.raises(MemoryMisuse, match="Cannot append"):
            llama.load_shifted(SECOND, blob, start, stop)
    decode(llama, SECOND, tokens_of(500, 1)[: llama.max_length - 45])
    with pytest.raises(MemoryMisuse, match="to 467 tokens"):
        llama.load_shifted(SECOND, Blob(0, 46, blob.data), 0, 46)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("gemma3-dense", {}, "sliding window"),
        ("qwen35-dense", {}, "recurrent"),
        ("mamba-dense", {}, "recurrent"),
        ("deepseek4-moe", {}, "as a whole"),
        ("gpt2-dense", {"ctx_size": 256}, "not rotations"),
        ("llama-dense", {"cache_type_k": "q8_0", "flash_attn": "on"}, "K of type q8_0"),
        ("llama-dense", {"cache_type_k": "bf16"}, "K of type bf16"),
        ("llama-dense", {"rope_scaling": "yarn"}, "YaRN"),
        ("llama-dense", {"yarn_ext_factor": 1.0}, "YaRN"),
    ],
)
def test_memory_that_cannot_be_moved_says_why(
    name: str, options: dict[str, object], reason: str, toy_path: Callable[..., Path]
):
    with opened(toy_path(name), replace(OPTIONS, **options)) as context:
        assert context.shift_refusal is not None and reason in context.shift_refusal
        decode(context, FIRST, HEAD)
        with pytest.raises(MemoryMisuse, match="cannot be moved"):
            context.load_shifted(FIRST, Blob(0, 10, np.zeros(8, np.uint8)), 0, 10)
        assert decode(context, FIRST, AFTER).shape == (len(AFTER), context.vocab_size)
