"""Bodies without their Content-Encoding."""

from __future__ import annotations

import zlib

from kvstet.errors import Unreadable

_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 47}
"""Of zlib; 47 finds out itself whether there is a header of zlib or gzip."""


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
