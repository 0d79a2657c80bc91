"""Tokens as they lie on disk: a few bits more than a token is worth, since every node's stand there twice."""

from __future__ import annotations

import zlib

import numpy as np

TOKEN_BYTES = 4


def packed(tokens: bytes) -> bytes:
    """Tokens, each an int32, little-endian; made shorter."""
    # All first bytes, then all second ones...: the last are zeros.
    return zlib.compress(_bytes(tokens).reshape(-1, TOKEN_BYTES).T.tobytes(), 1) if tokens else b""


def unpacked(data: bytes, num_tokens: int) -> bytes:
    """The reverse of `packed`. Raises ValueError where ``data`` is not that of so many tokens."""
    num_bytes = num_tokens * TOKEN_BYTES
    if not data or num_bytes <= 0:
        planes = data
    else:
        try:
            # No more than expected: what is read may be anything.
            planes = zlib.decompressobj().decompress(data, num_bytes + 1)
        except zlib.error as error:
            raise ValueError(f"tokens that cannot be unpacked: {error}") from error
    if len(planes) != num_bytes:
        raise ValueError(f"not {num_tokens} tokens")
    return _bytes(planes).reshape(TOKEN_BYTES, -1).T.tobytes()


def _bytes(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)
