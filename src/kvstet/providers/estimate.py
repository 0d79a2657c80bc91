"""Tokens of a text without anybody's tokeniser: about as many as real ones make, and the same on every machine.

Vendors keep their tokenisers to themselves, and a cache rule needs no more than where two prompts begin to differ and
about how many tokens that is. On source code, documents and JSON the count is within 15% of a real vocabulary's
(docs/providers.md has the measurement).
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]
"""Shape ``(n,)``; the same piece of text has the same id in every process."""

_PIECES = re.compile(
    r" ?[A-Z]?[a-z]{1,8}| ?[A-Z]{1,3}|[0-9]{1,2}|\s+(?= )| ?[!-/:-@\[-`{-~]{1,2}|\s+|[^\x00-\x7f]{1,2}|.", re.DOTALL
)

_MAX_TEXTS = 4096
_MAX_PIECES = 1 << 17


@lru_cache(_MAX_TEXTS)
def tokens_of(text: str) -> TokenIds:
    """Read-only, and kept for the next request with the same text."""
    ids = np.fromiter(map(_id, _PIECES.findall(text)), np.int64)
    ids.flags.writeable = False
    return ids


def num_tokens(text: str) -> int:
    """About how many a model reads."""
    return len(tokens_of(text))


def opaque(content: str, num_tokens: int) -> TokenIds:
    """For what is no text (a picture, encrypted reasoning): so many ids that depend on all of it."""
    first = _id(content)
    return (first + np.arange(num_tokens, dtype=np.int64)) & np.int64(2**63 - 1)


@lru_cache(_MAX_PIECES)
def _id(piece: str) -> int:
    # Half of what an int64 holds, so that counting on from an id stays within it.
    return xxhash.xxh3_64_intdigest(piece.encode("utf-8", "surrogatepass")) >> 2
