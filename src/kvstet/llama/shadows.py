"""A window's cells that are all kept: a second sequence holds each cell, so that libllama does not use it again.

With `swa_full` there is a cell of the window layers for every token. But where libllama looks for free cells, it also
takes those that only one sequence holds and that lie outside of its window (`llama_kv_cache::find_slot`): what a fork
further back would need is overwritten, although there is room. Cells of two sequences are never taken. So each sequence
has a shadow, which holds the same cells, and is emptied with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from llama_cpp import llama_cpp

lib: Any = llama_cpp  # its annotations ask for ctypes numbers where ctypes takes plain ones


class Shadows:
    """Sequence ``seq`` has the shadow ``first + seq``."""

    def __init__(self, memory: Any, first: int, window: int) -> None:
        self._memory = memory
        self._first = first
        self._window = window
        self._covered: dict[int, int] = {}
        """Tokens of each sequence that its shadow holds; those in the window can wait."""

    def __repr__(self) -> str:
        return f"<Shadows window={self._window} covered={self._covered}>"

    def cover(self, seq: int, length: int) -> None:
        """All of a sequence that has grown to this length."""
        covered = self._covered.get(seq, 0)
        if covered < length:
            lib.llama_memory_seq_cp(self._memory, seq, self._first + seq, covered, length)
            self._covered[seq] = length

    def before_growth(self, growth: Iterable[tuple[int, int, int]]) -> None:
        """(sequence, its length, tokens that come): what they push out of the window is covered."""
        for seq, length, num_new in growth:
            if length + num_new - self._window >= self._covered.get(seq, 0):
                self.cover(seq, length)

    def remove(self, seq: int) -> None:
        """The sequence is emptied."""
        lib.llama_memory_seq_rm(self._memory, self._first + seq, -1, -1)
        self._covered.pop(seq, None)
