"""Copies of what passes by, for whoever looks at it later."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field

from kvstet.errors import Unreadable

MAX_COPY_BYTES = 64 * 1024**2
"""Most of a body that is kept to be looked at, packed or not."""


@dataclass(slots=True)
class Copy:
    """Bytes as they passed, up to a limit; beyond it they are counted only."""

    max_bytes: int
    num_bytes: int = 0
    is_complete: bool = False
    """Whether the end has passed by."""
    _pieces: list[bytes] = field(default_factory=list[bytes], repr=False)

    def add(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        if self.num_bytes <= self.max_bytes:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    async def tee(self, pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
        """The same pieces, one by one."""
        async for piece in pieces:
            self.add(piece)
            yield piece
        self.is_complete = True

    @property
    def content(self) -> bytes:
        """What has passed so far. Unreadable: more than is kept."""
        if self.num_bytes > self.max_bytes:
            raise Unreadable(f"more than {self.max_bytes:,} bytes")
        return b"".join(self._pieces)
