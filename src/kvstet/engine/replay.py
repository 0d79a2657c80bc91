"""Recorded prompts through a real engine and cache, in this process, each compared with a cold run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.exactness import SMALL_STEPS, Comparison, NoiseFloor, Rows, TailRun, divergence
from kvstet.engine.messages import Failed, Generate, Started
from kvstet.engine.model import Batch, Model, Sampler
from kvstet.types import Blob, MemoryTraits, RequestId, Reuse, Sampling, SeqId, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Replayed:
    """One prompt: where its tokens came from, and what they predict at its last positions that were computed for it."""

    reuse: Reuse
    cold: Rows
    warm: Rows
    is_noise: bool
    """Whether two cold runs may lie as far apart."""


class Replay:
    """An engine of one model, which nobody else uses, with its blobs in RAM."""

    def __init__(self, model: Model, floor: NoiseFloor, *, ram_bytes: int, num_tail: int) -> None:
        """``num_tail``: positions to compare, at the end of each prompt."""
        self._model = RecordingModel(model, num_tail)
        self._floor = floor
        self._options = EngineOptions(cache_ram_bytes=ram_bytes)
        self._engine = Engine(self._model, Cache(model.traits, RamTier(ram_bytes)), self._options, parallel=1)
        self._num_prompts = 0

    def ask(self, tokens: Tokens, cuts: tuple[int, ...]) -> Replayed:
        """Run one prompt, compare, and get ready for the next. KvstetError where it cannot be served."""
        reuse, warm = self._run(tokens, cuts)
        cold = self._cold(tokens, len(warm), self._options.prefill_chunk)
        comparison = Comparison.of(cold, warm)
        is_noise = comparison.is_noise(self._floor)
        if not is_noise:
            # Rare tokens are noisier than most; an error stays outside of their own noise too.
            noise = divergence(cold, self._cold(tokens, len(warm), *SMALL_STEPS))
            is_noise = comparison.is_noise(NoiseFloor.of(noise))
        self._rest()
        return Replayed(reuse, cold, warm, is_noise)

    def _run(self, tokens: Tokens, cuts: tuple[int, ...]) -> tuple[Reuse, Rows]:
        reuse: Reuse | None = None
        self._num_prompts += 1
        with_name = RequestId(f"prompt {self._num_prompts}")
        self._model.record(len(tokens))
        self._engine.submit(Generate(with_name, tokens, cuts, max_new_tokens=0))
        while not self._engine.is_idle:
            for event in self._engine.step():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Started):
                    reuse = event.reuse
        assert reuse is not None
        return reuse, self._model.recorded()

    def _cold(self, tokens: Tokens, num_tail: int, *sizes: int) -> Rows:
        live = self._engine.live
        if not live.make_room_to_borrow(len(tokens)):
            self._release(0)
        seq = live.borrow(None)
        try:
            return TailRun(self._model, seq, tokens, num_tail).finish(*sizes)
        finally:
            live.give_back(seq)

    def _rest(self) -> None:
        """Let state stay live, leave the live cells for RAM, or leave all but the most valuable branch, in turn."""
        match self._num_prompts % 3:
            case 1:
                self._release(0)
            case 2:
                self._release(1)
            case _:
                pass

    def _release(self, num_kept: int) -> None:
        """Move parked branches to RAM, the least valuable first, until so many are left."""
        live = self._engine.live
        while live.num_parked > num_kept:
            live.release(live.parked[0])


class RecordingModel:
    """A model that keeps the logits of a prompt's last positions, which an engine does not ask for.

    Good for one sequence in a batch. Implements `kvstet.engine.model.Model`.
    """

    def __init__(self, inner: Model, num_tail: int) -> None:
        self._inner = inner
        self._num_tail = num_tail
        self._start: int | None = None
        self._recorded: dict[int, NDArray[np.float32]] = {}
        self._rows: NDArray[np.intp] = np.zeros(0, np.intp)
        """The inner model's row of each row that was asked for."""

    def record(self, num_tokens: int) -> None:
        """Keep what is predicted at the last positions of a prompt of so many tokens."""
        self._start = num_tokens - self._num_tail
        self._recorded = {}

    def recorded(self) -> Rows:
        """What was kept, in the order of positions: up to ``num_tail`` rows; keep no more."""
        self._start = None
        return np.stack([row for _, row in sorted(self._recorded.items())])

    def decode(self, batch: Batch) -> None:
        if self._start is None:
            self._inner.decode(batch)
            self._rows = np.arange(int(batch.outputs.sum()))
            return
        positions = self._inner.length(SeqId(int(batch.seqs[0]))) + np.arange(len(batch.tokens))
        is_kept = positions >= self._start
        outputs = batch.outputs | is_kept
        self._inner.decode(Batch(batch.tokens, batch.seqs, outputs))
        rows = np.cumsum(outputs) - 1
        self._rows = rows[batch.outputs]
        for position, row in zip(positions[is_kept].tolist(), rows[is_kept].tolist(), strict=True):
            self._recorded[position] = self._inner.logits(row).copy()

    def logits(self, row: int) -> NDArray[np.float32]:
        return self._inner.logits(int(self._rows[row]))

    # As the inner model does it

    @property
    def traits(self) -> MemoryTraits:
        return self._inner.traits

    @property
    def num_sequences(self) -> int:
        return self._inner.num_sequences

    @property
    def num_cells(self) -> int:
        return self._inner.num_cells

    @property
    def max_length(self) -> int:
        return self._inner.max_length

    @property
    def max_batch(self) -> int:
        return self._inner.max_batch

    @property
    def shift_refusal(self) -> str | None:
        return self._inner.shift_refusal

    def length(self, seq: SeqId) -> int:
        return self._inner.length(seq)

    def is_end(self, token: int) -> bool:
        return self._inner.is_end(token)

    def sampler(self, sampling: Sampling, prompt: Tokens) -> Sampler:
        return self._inner.sampler(sampling, prompt)

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        self._inner.fork(source, target, stop)

    def remove(self, seq: SeqId) -> None:
        self._inner.remove(seq)

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        return self._inner.save_span(seq, start, stop)

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._inner.load_span(seq, blob, start, stop)

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._inner.load_shifted(seq, blob, start, stop)

    def save_checkpoint(self, seq: SeqId) -> Blob:
        return self._inner.save_checkpoint(seq)

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        self._inner.load_checkpoint(seq, blob)

    def close(self) -> None:
        self._inner.close()
