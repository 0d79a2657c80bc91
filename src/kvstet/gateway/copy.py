"""Copies of what passes by, for whoever looks at it later."""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field

from kvstet.errors import Unreadable

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""Of zlib; 47 finds out itself whether there is a header of zlib or gzip."""


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


def decoded(content: bytes, encoding: str, max_bytes: int) -> bytes:
    """Without its Content-Encoding; of a stream that broke off, as far as it goes.

    Unreadable: an encoding that Python cannot read, damaged, or more than ``max_bytes``.
    """
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        if name not in {"", "identity"}:
            content = _inflated(content, name, max_bytes)
    return content


def _inflated(content: bytes, name: str, max_bytes: int) -> bytes:
    if name not in _WBITS:
        raise Unreadable(f"content-encoding {name[:20]!r}")
    try:
        inflater = zlib.decompressobj(_WBITS[name])
        inflated = inflater.decompress(content, max_bytes)
    except zlib.error:
        raise Unreadable(f"damaged {name}") from None
    if inflater.unconsumed_tail:
        raise Unreadable(f"more than {max_bytes:,} bytes")
    return inflated
