"""The sequences of a context as libllama keeps them: sharing, emptying, and their additive state as blobs.

The state of a prefix has two parts, which libllama writes one behind the other into one byte string::

    header (8 bytes) | additive part | summary part
    `flags = 0` writes all of it, `PARTIAL_ONLY` writes header and summary

- The additive part is the K/V of layers that attend to everything: any range of tokens can be copied to a scratch
  sequence, saved, and loaded again behind what is there.
- The summary part is the sliding window's K/V or the recurrent state: it exists only at the sequence's tip.

A span blob is ``header | additive | empty summary``, a checkpoint is ``header | summary``; so they are kept and
evicted apart, and both load without a copy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from kvstet.llama.pieces import Pieces, Whole
from kvstet.llama.shadows import Shadows
from kvstet.llama.state import Bytes, buffer, get_state, put_state, state_size
from kvstet.types import Blob, MemoryTraits

lib: Any = llama_cpp  # its annotations ask for ctypes numbers where ctypes takes plain ones

HEADER_BYTES = 8
"""Magic and sequence id, which libllama writes before each sequence state."""

PARTIAL_ONLY = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY in llama.h."""


class Sequences:
    """What is asked for here is allowed: the context has checked it. The last sequence is a scratch."""

    def __init__(self, context: Any, traits: MemoryTraits, window: int | None) -> None:
        """``window``: tokens of a sliding window of which all is kept; None: there is none."""
        self._context = context
        self._memory = lib.llama_get_memory(context)
        self._traits = traits
        num_slots = int(lib.llama_n_seq_max(context))
        self._scratch = num_slots - 1
        # With shadows, every second sequence is one.
        self.num_sequences = (num_slots - 1) // (1 if window is None else 2)
        self._shadows = None if window is None else Shadows(self._memory, self.num_sequences, window)
        self._pieces = Whole() if window is None else Pieces(max(1, window // 2))
        self._empty_summary = get_state(context, self._scratch, PARTIAL_ONLY)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Give ``target`` the source's cells of ``[start, stop)``; ``(-1, -1)`` are all."""
        lib.llama_memory_seq_cp(self._memory, source, target, start, stop)
        self._grown(target)

    def empty(self, seq: int) -> None:
        lib.llama_memory_seq_rm(self._memory, seq, -1, -1)
        if self._shadows is not None:
            self._shadows.remove(seq)

    def before_growth(self, seqs: NDArray[np.int32], lengths: NDArray[np.int32]) -> None:
        """A batch with these sequences is about to be decoded; ``lengths`` are those of all sequences by now."""
        if self._shadows is not None:
            values, counts = np.unique(seqs, return_counts=True)
            self._shadows.before_growth(zip(values.tolist(), lengths[values].tolist(), counts.tolist(), strict=True))

    def saved(self, seq: int, start: int, stop: int) -> Blob:
        """The additive state of ``[start, stop)``. OutOfMemory: there is no room to write it to."""
        pieces = [self._piece(seq, first, last) for first, last in self._pieces.ranges(start, stop)]
        return Blob(start, stop, self._pieces.joined(pieces))

    def append(self, seq: int, at: int, blob: Blob, start: int, stop: int) -> None:
        """Put tokens ``[start, stop)`` of the blob behind the ``at`` tokens of the sequence, at their new positions.

        OutOfCells, OutOfMemory, SnapshotMismatch: nothing was changed.
        """
        end = at
        try:
            for first, last, data in self._pieces.split(blob):
                low, high = max(first, start), min(last, stop)
                if low < high:
                    self._append_piece(seq, end, data, low, high)
                    end += high - low
        except BaseException:
            # Memories of which no end can be removed have one piece, so nothing was appended.
            if end > at:
                self._cut(seq, at)
            raise
        finally:
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    # Inside

    def _append_piece(self, seq: int, at: int, data: Bytes, start: int, stop: int) -> None:
        put_state(self._context, self._scratch, data, 0)
        if at != start:
            # A copy, since libllama moves a cell for all that share it. What is not wanted goes first: a position
            # below 0 would drop its cell.
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, start)
            lib.llama_memory_seq_rm(self._memory, self._scratch, stop, -1)
            lib.llama_memory_seq_add(self._memory, self._scratch, start, stop, at - start)
        lib.llama_memory_seq_cp(self._memory, self._scratch, seq, at, at + stop - start)
        self._grown(seq)
        lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    def _grown(self, seq: int) -> None:
        """State was appended without being decoded."""
        if self._shadows is not None:
            self._shadows.cover(seq, 1 + int(lib.llama_memory_seq_pos_max(self._memory, seq)))

    def _cut(self, seq: int, length: int) -> None:
        lib.llama_memory_seq_rm(self._memory, seq, length, -1)
        if self._shadows is not None:
            self._shadows.remove(seq)
            self._shadows.cover(seq, length)

    def _piece(self, seq: int, start: int, stop: int) -> Bytes:
        lib.llama_memory_seq_cp(self._memory, seq, self._scratch, start, stop)
        try:
            return self._additive_state()
        finally:
            lib.llama_memory_seq_rm(self._memory, self._scratch, -1, -1)

    def _additive_state(self) -> Bytes:
        """What the scratch sequence holds, as a span blob."""
        if not self._traits.has_checkpoints:
            return get_state(self._context, self._scratch, 0)
        if self._traits.kind == "hybrid":
            # Drops the recurrent state that came along with the copy, before it is written out.
            put_state(self._context, self._scratch, self._empty_summary, PARTIAL_ONLY)
        num_summary_bytes = state_size(self._context, self._scratch, PARTIAL_ONLY) - HEADER_BYTES
        data = get_state(self._context, self._scratch, 0)
        empty = self._empty_summary[HEADER_BYTES:]
        if num_summary_bytes == len(empty):
            return data
        num_additive_bytes = len(data) - num_summary_bytes
        blob = buffer(num_additive_bytes + len(empty))
        blob[:num_additive_bytes] = data[:num_additive_bytes]
        blob[num_additive_bytes:] = empty
        return blob
