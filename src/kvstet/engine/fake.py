"""A model in a few dozen lines that behaves as libllama does, for tests of the cache and the scheduler.

Its state is the tokens themselves, so state that was mixed up shows as wrong logits; what libllama would answer with
corruption or an abort is refused with `MemoryMisuse`.
"""

from __future__ import annotations

import hashlib
from itertools import count

import numpy as np
from numpy.typing import NDArray

from kvstet.engine.model import Batch
from kvstet.errors import MemoryMisuse, OutOfCells, SnapshotMismatch
from kvstet.types import Blob, MemoryTraits, Sampling, SeqId, Tokens

ATTENTION = MemoryTraits("attention", has_spans=True, has_checkpoints=False)
SWA = MemoryTraits("swa", has_spans=True, has_checkpoints=True)
HYBRID = MemoryTraits("hybrid", has_spans=True, has_checkpoints=True)
RECURRENT = MemoryTraits("recurrent", has_spans=False, has_checkpoints=True)
OPAQUE = MemoryTraits("opaque", has_spans=False, has_checkpoints=True)


class FakeModel:
    """Implements `kvstet.engine.model.Model`; the next token depends on every token before it, and nothing else."""

    def __init__(
        self,
        traits: MemoryTraits = ATTENTION,
        *,
        num_sequences: int = 8,
        num_cells: int = 4096,
        max_length: int = 4096,
        max_batch: int = 512,
        vocab_size: int = 64,
        end_token: int | None = None,
    ) -> None:
        self.traits = traits
        self.num_sequences = num_sequences
        self.num_cells = num_cells
        self.max_length = max_length
        self.max_batch = max_batch
        self.vocab_size = vocab_size
        self.end_token = end_token
        self.num_decoded_tokens = 0
        self._cells: dict[int, list[tuple[int, int]]] = {seq: [] for seq in range(num_sequences)}
        """Per sequence: (cell, token). Cells that two sequences share have one number."""
        self._exact_lengths: dict[int, int] = {}
        """Of sequences with state that has not read all tokens before it: how many tokens stand before that."""
        self._summary: dict[int, bytes | None] = dict.fromkeys(range(num_sequences), b"")
        self._numbers = count()
        self._rows: list[NDArray[np.float32]] = []

    @property
    def num_used_cells(self) -> int:
        return len({cell for cells in self._cells.values() for cell, _ in cells})

    @property
    def shift_refusal(self) -> str | None:
        return None if self.traits.kind == "attention" else f"its memory is {self.traits.kind}"

    def exact_length(self, seq: int) -> int:
        """Tokens of a sequence whose state is that of a cold run."""
        return self._exact_lengths.get(seq, len(self._cells[seq]))

    def tokens(self, seq: int) -> list[int]:
        """What a sequence holds."""
        return [token for _, token in self._cells[seq]]

    def length(self, seq: SeqId) -> int:
        return len(self._cells[seq])

    def decode(self, batch: Batch) -> None:
        if len(batch.tokens) == 0 or len(batch.tokens) > self.max_batch:
            raise MemoryMisuse("bad batch size")
        if self.num_used_cells + len(batch.tokens) > self.num_cells:
            raise OutOfCells("full")
        self._rows = []
        for token, seq, output in zip(batch.tokens.tolist(), batch.seqs.tolist(), batch.outputs.tolist(), strict=True):
            summary = self._summary[seq]
            if summary is None:
                raise MemoryMisuse("decoded without its checkpoint")
            if len(self._cells[seq]) >= self.max_length:
                raise MemoryMisuse("past the last position")
            self._cells[seq].append((next(self._numbers), token))
            self._summary[seq] = _digest(summary, token)
            if output:
                self._rows.append(self._logits(seq))
        self.num_decoded_tokens += len(batch.tokens)

    def expected_logits(self, tokens: list[int], summary: bytes | None = None) -> NDArray[np.float32]:
        """Logits after ``tokens`` in a cold run; ``summary`` where it may differ from theirs."""
        if summary is None:
            summary = b""
            for token in tokens:
                summary = _digest(summary, token)
        held = np.array(tokens, np.int32).tobytes()
        seed = int.from_bytes(hashlib.blake2b(held + summary, digest_size=8).digest(), "little")
        return np.random.default_rng(seed).standard_normal(self.vocab_size, np.float32)

    def _logits(self, seq: int) -> NDArray[np.float32]:
        """State that has not read all tokens before it predicts something else."""
        logits = self.expected_logits(self.tokens(seq), self._summary[seq])
        return (
            logits
            if seq not in self._exact_lengths
            else np.roll(logits, 1 + self._exact_lengths[seq] % (self.vocab_size - 1))
        )

    def logits(self, row: int) -> NDArray[np.float32]:
        return self._rows[row]

    def is_end(self, token: int) -> bool:
        return token == self.end_token

    def sampler(self, sampling: Sampling, prompt: Tokens) -> FakeSampler:
        return FakeSampler(self)

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        if self._cells[target] or not 0 < stop <= self.length(source):
            raise MemoryMisuse("bad fork")
        at_tip = stop == self.length(source)
        if not at_tip and not self.traits.has_spans:
            raise MemoryMisuse("forked before the tip")
        self._cells[target] = self._cells[source][:stop]
        if stop > self.exact_length(source):
            self._exact_lengths[target] = self._exact_lengths[source]
        if at_tip:
            self._summary[target] = self._summary[source]
        else:
            self._settle(target)

    def remove(self, seq: SeqId) -> None:
        self._cells[seq] = []
        self._summary[seq] = b""
        self._exact_lengths.pop(seq, None)

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        if not self.traits.has_spans or not 0 <= start < stop <= self.exact_length(seq):
            raise MemoryMisuse("bad span")
        return Blob(start, stop, _bytes(self.tokens(seq)[start:stop]))

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        if not self.traits.has_spans or self.length(seq) != start or not blob.start <= start < stop <= blob.stop:
            raise MemoryMisuse("bad load")
        # A snapshot is loaded whole, and cut then.
        if self.num_used_cells + blob.stop - blob.start > self.num_cells:
            raise OutOfCells("full")
        self._load(seq, _tokens(blob)[start - blob.start : stop - blob.start])
        self._settle(seq)

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        if self.shift_refusal or not blob.start <= start < stop <= blob.stop:
            raise MemoryMisuse("bad shift")
        if self.num_used_cells + blob.stop - blob.start > self.num_cells:
            raise OutOfCells("full")
        self._exact_lengths.setdefault(seq, self.length(seq))
        self._load(seq, _tokens(blob)[start - blob.start : stop - blob.start])
        self._settle(seq)

    def save_checkpoint(self, seq: SeqId) -> Blob:
        summary = self._summary[seq]
        if not self.traits.has_checkpoints or summary is None or not self.length(seq):
            raise MemoryMisuse("bad checkpoint")
        # The tokens come along so that a memory without spans can be brought back; a real one needs the summary only.
        held = _bytes([*self.tokens(seq)]) if not self.traits.has_spans else np.zeros(0, np.uint8)
        return Blob(0, self.length(seq), np.concatenate([np.frombuffer(summary, np.uint8), held]))

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        if not self.traits.has_checkpoints:
            raise MemoryMisuse("no checkpoints")
        if self.length(seq) != (blob.stop if self.traits.has_spans else 0):
            raise MemoryMisuse("checkpoint onto the wrong tokens")
        if len(blob.data) < SUMMARY_BYTES:
            raise SnapshotMismatch("torn")
        if not self.traits.has_spans:
            self._load(seq, blob.data[SUMMARY_BYTES:].view(np.int32).tolist())
        self._summary[seq] = blob.data[:SUMMARY_BYTES].tobytes()

    def close(self) -> None:
        self._cells.clear()

    def _load(self, seq: int, tokens: list[int]) -> None:
        if self.num_used_cells + len(tokens) > self.num_cells:
            raise OutOfCells("full")
        self._cells[seq] += [(next(self._numbers), token) for token in tokens]

    def _settle(self, seq: int) -> None:
        """Additive state stands for itself; where a summary is needed, it is missing now."""
        summary: bytes | None = None
        if not self.traits.has_checkpoints:
            summary = b""
            for token in self.tokens(seq):
                summary = _digest(summary, token)
        self._summary[seq] = summary


class FakeSampler:
    """Takes the likeliest token."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def sample(self, row: int) -> int:
        return int(self._model.logits(row).argmax())

    def close(self) -> None:
        """Nothing to free."""


SUMMARY_BYTES = 16


def _digest(summary: bytes, token: int) -> bytes:
    return hashlib.blake2b(summary + token.to_bytes(4, "little"), digest_size=SUMMARY_BYTES).digest()


def _bytes(tokens: list[int]) -> NDArray[np.uint8]:
    return np.array(tokens, np.int32).view(np.uint8)


def _tokens(blob: Blob) -> list[int]:
    return blob.data.view(np.int32).tolist()
