"""Models with the faults that must be found: fakes, and real contexts whose snapshots are spoilt."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvstet.config import ModelOptions
from kvstet.engine.fake import ATTENTION, HYBRID, SWA, FakeModel
from kvstet.engine.messages import ModelInfo
from kvstet.engine.model import Batch
from kvstet.engine.process import Loaded, load_llama
from kvstet.errors import SnapshotMismatch
from kvstet.llama.context import Context
from kvstet.types import Blob, SeqId


class OffByOne(FakeModel):
    """Loads the state of each token to the place of the next one."""

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        rolled = np.roll(blob.data.view(np.int32), 1).view(np.uint8)
        super().load_span(seq, Blob(blob.start, blob.stop, rolled), start, stop)


class Stale(FakeModel):
    """A checkpoint holds the summary from before the last batch."""

    def __init__(self, *arguments: object, **options: int) -> None:
        super().__init__(*arguments, **options)
        self._before: dict[int, bytes | None] = {}

    def decode(self, batch: Batch) -> None:
        before = self._summary[int(batch.seqs[-1])]
        super().decode(batch)
        self._before[int(batch.seqs[-1])] = before

    def save_checkpoint(self, seq: SeqId) -> Blob:
        now, self._summary[seq] = self._summary[seq], self._before[seq]
        try:
            return super().save_checkpoint(seq)
        finally:
            self._summary[seq] = now


class Leaking(FakeModel):
    """Removing a sequence changes another one."""

    def remove(self, seq: SeqId) -> None:
        super().remove(seq)
        if seq == 1 and self._cells[0]:
            self._cells[0][0] = (self._cells[0][0][0], self._cells[0][0][1] ^ 1)


class StrangeFork(FakeModel):
    """A fork has the tokens of its source and the summary of another."""

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        super().fork(source, target, stop)
        self._summary[target] = b"another's" if self._summary[target] is not None else None


class Refusing(FakeModel):
    """Takes no snapshot back."""

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        raise SnapshotMismatch("not mine")


class Aborting(FakeModel):
    """Ends the process, as an assertion in libllama does."""

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        os.abort()


class Noisy(FakeModel):
    """Its predictions depend a little on how many tokens are computed together."""

    def decode(self, batch: Batch) -> None:
        super().decode(batch)
        noise = np.random.default_rng(len(batch.tokens)).standard_normal(self.vocab_size, np.float32) * 0.05
        self._rows = [row + noise for row in self._rows]


class Indifferent(FakeModel):
    """Predicts the same whatever it has read."""

    def expected_logits(self, tokens: list[int], summary: bytes | None = None) -> NDArray[np.float32]:
        return np.zeros(self.vocab_size, np.float32)


def loaded(model: FakeModel) -> Loaded:
    """A fake with what is told of a real model."""
    info = ModelInfo(
        name="a [fake]",
        architecture="fake",
        description="of tokens",
        num_parameters=0,
        size_bytes=0,
        vocab_size=model.vocab_size,
        context_length=model.max_length,
        training_context_length=0,
        live_cells=model.num_cells,
        parallel=2,
        memory_kind=model.traits.kind,
        memory_summary="",
        span_bytes_per_token=4,
        checkpoint_bytes=16,
        chat_template=None,
    )
    return Loaded(model, info)


def load_off_by_one(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return loaded(OffByOne(ATTENTION))


def load_stale(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return loaded(Stale(SWA))


def load_aborting(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return loaded(Aborting(HYBRID))


def load_noisy(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return loaded(Noisy(HYBRID))


def rolled(blob: Blob, num_bytes: int) -> Blob:
    """The last third of the bytes, moved: what it holds belongs to other tokens or channels then."""
    data = blob.data.copy()
    third = len(data) // 3
    data[-third:] = np.roll(data[-third:], num_bytes)
    return Blob(blob.start, blob.stop, data)


class SpoiltSpans(Context):
    """A real context that gives back other bytes than it took."""

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        super().load_span(seq, rolled(blob, 128), start, stop)


class SpoiltCheckpoints(Context):
    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        super().load_checkpoint(seq, rolled(blob, 128))


def load_spoilt_spans(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return spoilt(load_llama(options, on_progress), SpoiltSpans)


def load_spoilt_checkpoints(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return spoilt(load_llama(options, on_progress), SpoiltCheckpoints)


def spoilt(loaded: Loaded, kind: type[Context]) -> Loaded:
    loaded.model.__class__ = kind
    return loaded
