"""What the engine needs of a model: decode token batches, sample, and move state. Token ids and opaque blobs only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kvstet.types import Blob, MemoryTraits, Sampling, SeqId, Tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of one decode call, all arrays of shape ``(n,)``; each sequence continues exactly where it stands."""

    tokens: Tokens
    seqs: NDArray[np.int32]
    outputs: NDArray[np.bool_]
    """Whether logits of this position are wanted; they become rows 0, 1, ... in batch order."""


class Sampler(Protocol):
    """Chooses tokens of one request; keeps what it has accepted for penalties, grammar and seed."""

    def sample(self, row: int) -> int:
        """Token id drawn from output row ``row`` of the last decode, and accepted."""
        ...

    def close(self) -> None: ...


class Model(Protocol):
    """One loaded model with its context. `kvstet.llama.context.Context` does it, `kvstet.engine.fake` is the fake."""

    @property
    def traits(self) -> MemoryTraits: ...

    @property
    def num_sequences(self) -> int:
        """Sequences 0..n-1 that may hold state."""
        ...

    @property
    def num_cells(self) -> int:
        """Live token cells, shared by all sequences; tokens of a forked prefix count once."""
        ...

    @property
    def max_length(self) -> int:
        """Most tokens one sequence may hold."""
        ...

    @property
    def max_batch(self) -> int:
        """Most tokens of one `decode`."""
        ...

    @property
    def shift_refusal(self) -> str | None:
        """Why `load_shifted` is refused, as a clause to follow "since"; None: it is not."""
        ...

    def length(self, seq: SeqId) -> int:
        """Tokens whose state the sequence holds."""
        ...

    def decode(self, batch: Batch) -> None:
        """Append the batch to its sequences. OutOfCells: nothing was changed."""
        ...

    def logits(self, row: int) -> NDArray[np.float32]:
        """Output row of the last decode, shape ``(vocab_size,)``, valid until the next one."""
        ...

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or text."""
        ...

    def sampler(self, sampling: Sampling, prompt: Tokens) -> Sampler:
        """GrammarError where the grammar cannot be compiled."""
        ...

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        """Give the empty ``target`` the first ``stop`` tokens of ``source``, sharing cells.

        Where checkpoints are needed and ``stop`` is not the source's tip, the target can be decoded only after
        `load_checkpoint`.
        """
        ...

    def remove(self, seq: SeqId) -> None:
        """Empty the sequence."""
        ...

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        """The additive state of ``[start, stop)``, which must be exact."""
        ...

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        """Append tokens ``[start, stop)`` of the blob; the sequence must stand at ``start``."""
        ...

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        """Append tokens ``[start, stop)`` of the blob at the sequence's tip, wherever that is.

        What is appended has read other tokens than those before it: an approximation. From there on nothing of the
        sequence can be saved, nor of what is forked from it further on.
        """
        ...

    def save_checkpoint(self, seq: SeqId) -> Blob:
        """The summary state at the sequence's tip."""
        ...

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        """Put the summary state in place; a model with spans must hold exactly ``blob.stop`` tokens of them."""
        ...

    def close(self) -> None: ...
