"""State that cannot be written or read for want of memory: a typed error, and the live sequences as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstet.config import ModelOptions
from kvstet.engine.model import Batch
from kvstet.errors import ModelLoadError, OutOfCells, OutOfMemory, SnapshotMismatch
from kvstet.llama import state
from kvstet.llama.context import Context
from kvstet.llama.library import log
from kvstet.llama.memory import memory_traits
from kvstet.llama.model import Model
from kvstet.llama.parameters import num_slots
from kvstet.types import Blob, MemoryTraits, SeqId, Tokens

ERROR = 4
"""GGML_LOG_LEVEL_ERROR in ggml.h."""

KINDS = ("llama-dense", "gemma3-dense", "qwen35-dense", "mamba-dense", "deepseek4-moe")
FIRST, SECOND, THIRD = SeqId(0), SeqId(1), SeqId(2)


@pytest.fixture(params=KINDS)
def context(request: pytest.FixtureRequest, toy_path: Callable[..., Path]) -> Iterator[Context]:
    options = ModelOptions(
        toy_path(request.param),
        ctx_size=256,
        parallel=2,
        cache_type_k="f32",
        cache_type_v="f32",
        flash_attn="off",
        threads=1,
    )
    with Model.load(options) as model:
        context = Context(model, options)
        yield context
        context.close()


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No buffer can be had."""

    def fail(num_bytes: int) -> None:
        raise MemoryError(num_bytes)

    monkeypatch.setattr(state, "new_buffer", fail)


def bad_alloc(*_: object) -> int:
    """libllama where its own allocations fail: it logs, and nothing was read or written."""
    log.receive(ERROR, b"state_seq_get_data: error saving state: std::bad_alloc\n", None)
    return 0


def tokens_of(n: int, seed: int) -> Tokens:
    return np.random.default_rng(seed).integers(0, 100, n).astype(np.int32)


def decode(context: Context, seq: SeqId, tokens: Tokens) -> list[float]:
    """The last token's logits."""
    outputs = np.zeros(len(tokens), np.bool_)
    outputs[-1] = True
    context.decode(Batch(tokens, np.full(len(tokens), seq, np.int32), outputs))
    return context.logits(0).tolist()


def goes_on(context: Context, seq: SeqId, tokens: Tokens) -> bool:
    """Whether the sequence holds ``tokens`` and nothing but them, and every other is empty."""
    after = tokens_of(8, 99)
    warm = decode(context, seq, after)
    context.remove(seq)
    assert [context.length(SeqId(other)) for other in range(context.num_sequences)] == [0] * context.num_sequences
    decode(context, seq, tokens)
    cold = decode(context, seq, after)
    return np.allclose(warm, cold, atol=1e-3)


def save(context: Context, seq: SeqId, stop: int) -> list[Blob]:
    """All there is of a sequence: its spans, its checkpoint, or both."""
    spans = [context.save_span(seq, 0, stop)] if context.traits.has_spans else []
    return spans + ([context.save_checkpoint(seq)] if context.traits.has_checkpoints else [])


def test_state_that_cannot_be_saved_leaves_the_sequence_as_it_was(context: Context, no_memory: None):
    tokens = tokens_of(60, 1)
    decode(context, FIRST, tokens)
    if context.traits.has_spans:
        with pytest.raises(OutOfMemory, match="bytes of state"):
            context.save_span(FIRST, 10, 50)
    if context.traits.has_checkpoints:
        with pytest.raises(OutOfMemory, match="bytes of state"):
            context.save_checkpoint(FIRST)
    assert goes_on(context, FIRST, tokens)


def test_a_fork_that_cannot_copy_its_window_changes_nothing(context: Context, no_memory: None):
    tokens = tokens_of(60, 1)
    decode(context, FIRST, tokens)
    if not (context.traits.has_spans and context.traits.has_checkpoints):
        context.fork(FIRST, SECOND, 60)  # shares cells, and needs no memory
        context.remove(SECOND)
    else:
        with pytest.raises(OutOfMemory):
            context.fork(FIRST, SECOND, 60)
    assert context.length(SECOND) == 0
    assert goes_on(context, FIRST, tokens)


def test_a_checkpoint_that_cannot_be_loaded_leaves_its_sequence_empty(
    context: Context, monkeypatch: pytest.MonkeyPatch
):
    if not (context.traits.has_spans and context.traits.has_checkpoints):
        return
    tokens = tokens_of(60, 1)
    decode(context, FIRST, tokens)
    span, checkpoint = save(context, FIRST, 60)
    context.load_span(SECOND, span, 0, 60)
    with monkeypatch.context() as patch:
        patch.setattr(state.lib, "llama_state_seq_set_data_ext", bad_alloc)
        with pytest.raises(OutOfMemory):
            context.load_checkpoint(SECOND, checkpoint)
    assert context.length(SECOND) == 0
    assert goes_on(context, FIRST, tokens)


def test_libllamas_own_lack_of_memory_is_told_apart(context: Context, monkeypatch: pytest.MonkeyPatch):
    tokens = tokens_of(60, 1)
    decode(context, FIRST, tokens)
    blobs = save(context, FIRST, 60)
    with monkeypatch.context() as patch:
        patch.setattr(state.lib, "llama_state_seq_get_data_ext", bad_alloc)
        with pytest.raises(OutOfMemory, match="bad_alloc"):
            save(context, FIRST, 60)
        patch.setattr(state.lib, "llama_state_seq_set_data_ext", bad_alloc)
        with pytest.raises(OutOfMemory, match="bad_alloc"):
            load(context, SECOND, blobs)
    assert context.length(SECOND) == 0
    load(context, SECOND, blobs)
    context.remove(FIRST)
    assert goes_on(context, SECOND, tokens)


@pytest.mark.parametrize("line", [b"failed to find available cells in kv cache\n", b"std::bad_alloc\n"])
def test_what_libllama_said_before_does_not_decide_why_a_snapshot_was_not_taken(
    context: Context, line: bytes, monkeypatch: pytest.MonkeyPatch
):
    decode(context, FIRST, tokens_of(60, 1))
    blobs = save(context, FIRST, 60)
    log.receive(ERROR, line, None)
    monkeypatch.setattr(state.lib, "llama_state_seq_set_data_ext", lambda *_: 0)
    with pytest.raises(SnapshotMismatch, match=r"read 0 of .* no reason given"):
        load(context, SECOND, blobs)


def test_a_torn_snapshot_is_a_mismatch(context: Context):
    decode(context, FIRST, tokens_of(60, 1))
    blob = save(context, FIRST, 60)[0]
    torn = Blob(blob.start, blob.stop, blob.data[: len(blob.data) // 2].copy())
    with pytest.raises(SnapshotMismatch):
        load(context, SECOND, [torn])
    assert context.length(SECOND) == 0


def test_a_snapshot_that_finds_no_cells_is_told_as_such(toy_path: Callable[..., Path]):
    options = ModelOptions(toy_path("llama-dense"), ctx_size=256, live_cells=256, parallel=2, threads=1)
    with Model.load(options) as model:
        context = Context(model, options)
        decode(context, FIRST, tokens_of(200, 1))
        blob = context.save_span(FIRST, 0, 200)
        log.receive(ERROR, b"something else\n", None)
        with pytest.raises(OutOfCells):
            context.load_span(SECOND, blob, 0, 200)
        context.close()


def load(context: Context, seq: SeqId, blobs: list[Blob]) -> None:
    for blob in blobs:
        if context.traits.has_spans and not context.length(seq):
            context.load_span(seq, blob, blob.start, blob.stop)
        else:
            context.load_checkpoint(seq, blob)


@pytest.mark.parametrize(("name", "limit"), [("llama-dense", 127), ("gemma3-dense", 251), ("mamba-dense", 251)])
def test_how_many_requests_at_a_time_depends_on_the_kind_of_memory(
    name: str, limit: int, toy_path: Callable[..., Path]
):
    path = toy_path(name)
    with Model.load(ModelOptions(path)) as model:
        traits: MemoryTraits = memory_traits(model, ModelOptions(path))
        assert num_slots(ModelOptions(path, parallel=limit), traits) <= 256
        for wrong in (0, limit + 1):
            with pytest.raises(ModelLoadError, match=f"between 1 and {limit} .* not {wrong}"):
                num_slots(ModelOptions(path, parallel=wrong), traits)
        context = Context(model, ModelOptions(path, parallel=limit, ctx_size=256, threads=1))
        decode(context, SeqId(limit - 1), tokens_of(5, 1))
        context.close()
