"""Tokens of a text without anybody's tokeniser: about as many as real ones make, and the same on every machine.

Vendors keep their tokenisers to themselves, and a cache rule needs no more than where two prompts begin to differ and
about how many tokens that is. On source code, documents and JSON the count is within 15% of a real vocabulary's
(docs/providers.md has the measurement).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from functools import lru_cache
from threading import Lock

import numpy as np
import xxhash
from numpy.typing import NDArray

TokenIds = NDArray[np.int64]
"""Shape ``(n,)``; the same piece of text has the same id in every process."""

_PIECES = re.compile(
    r" ?[A-Z]?[a-z]{1,8}| ?[A-Z]{1,3}|[0-9]{1,2}|\s+(?= )| ?[!-/:-@\[-`{-~]{1,2}|\s+|[^\x00-\x7f]{1,2}|.", re.DOTALL
)

_MAX_KEPT_CHARACTERS = 1 << 25
_MAX_PIECES = 1 << 17


def tokens_of(text: str) -> TokenIds:
    """Read-only, and kept for the next request with the same text."""
    ids = _kept.get(text)
    if ids is None:
        ids = np.fromiter(map(_id, _PIECES.findall(text)), np.int64)
        ids.flags.writeable = False
        _kept.keep(text, ids)
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


class Kept:
    """Tokens of the latest texts, as far as these have not more characters in all. Thread-safe."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._num_characters = 0
        self._ids: OrderedDict[str, TokenIds] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Kept({len(self._ids)} texts, {self._num_characters:,} of {self._max_characters:,} characters)"

    def get(self, text: str) -> TokenIds | None:
        with self._lock:
            ids = self._ids.get(text)
            if ids is not None:
                self._ids.move_to_end(text)
            return ids

    def keep(self, text: str, ids: TokenIds) -> None:
        if len(text) > self._max_characters:
            return
        with self._lock:
            if text not in self._ids:
                self._num_characters += len(text)
            self._ids[text] = ids
            while self._num_characters > self._max_characters:
                self._num_characters -= len(self._ids.popitem(last=False)[0])


_kept = Kept(_MAX_KEPT_CHARACTERS)
