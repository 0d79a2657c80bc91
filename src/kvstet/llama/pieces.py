"""A span's state as one byte string or as several: where there is a window, libllama writes out only what lies in it.

So with `swa_full` a span is saved in pieces that each fit in the window, one behind the other::

    length of the piece (8 bytes, little endian) | the piece, as libllama wrote it | ...

Pieces begin and end at multiples of their size, wherever the span does; so a part of a span is some of its pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from kvstet.errors import SnapshotMismatch
from kvstet.llama.state import Bytes, buffer
from kvstet.types import Blob

LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Whole:
    """Spans are saved in one piece."""

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The tokens of each piece."""
        return [(start, stop)]

    def joined(self, pieces: Sequence[Bytes]) -> Bytes:
        """The blob's bytes. Raises OutOfMemory."""
        (piece,) = pieces
        return piece

    def split(self, blob: Blob) -> Iterator[tuple[int, int, Bytes]]:
        """Start, stop and state of each piece. SnapshotMismatch: it is not what was joined."""
        yield blob.start, blob.stop, blob.data


@dataclass(frozen=True, slots=True)
class Pieces:
    """Spans are saved in pieces of at most so many tokens."""

    num_tokens: int

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """As `Whole.ranges`."""
        inner = range((start // self.num_tokens + 1) * self.num_tokens, stop, self.num_tokens)
        cuts = [start, *inner, stop]
        return list(itertools.pairwise(cuts))

    def joined(self, pieces: Sequence[Bytes]) -> Bytes:
        """As `Whole.joined`."""
        data = buffer(sum(LENGTH_BYTES + len(piece) for piece in pieces))
        at = 0
        for piece in pieces:
            data[at : at + LENGTH_BYTES] = np.array([len(piece)], "<u8").view(np.uint8)
            data[at + LENGTH_BYTES : at + LENGTH_BYTES + len(piece)] = piece
            at += LENGTH_BYTES + len(piece)
        return data

    def split(self, blob: Blob) -> Iterator[tuple[int, int, Bytes]]:
        """As `Whole.split`."""
        at = 0
        for start, stop in self.ranges(blob.start, blob.stop):
            length = int.from_bytes(blob.data[at : at + LENGTH_BYTES].tobytes(), "little")
            at += LENGTH_BYTES + length
            if at > len(blob.data):
                raise SnapshotMismatch("The snapshot ends within a piece.")
            yield start, stop, blob.data[at - length : at]
