"""Where checkpoints should stand: by how far back conversations are edited. Pure.

A checkpoint brings back one position only, and each may take as much memory as thousands of tokens. So of all the
places where messages end, those are kept that are expected to save most.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

APPEND_PRIOR = 4.0
"""Observations that the guess "most requests only append" counts for."""

UNIFORM_PRIOR = 4.0
"""Observations that the guess "any message is as likely to be edited as any other" counts for."""

MEMORY = 0.995
"""Weight that an observation keeps with each later one."""

NUM_BUCKETS = 32


class EditDepths:
    """How many message ends back from its tip a conversation is gone on from; 0: it is appended to.

    Counted in buckets that double (0, 1, 2-3, 4-7, ...), since the depth of an edit is known in its order of
    magnitude at best.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(NUM_BUCKETS)
        self._cached: dict[int, Array] = {}

    def observe(self, depth: int) -> None:
        """A request left its conversation so many message ends before the tip."""
        self._counts *= MEMORY
        self._counts[min(depth.bit_length(), NUM_BUCKETS - 1)] += 1
        self._cached.clear()

    def chances(self, count: int) -> Array:
        """Of a conversation with ``count`` message ends: how likely it is gone on from each, shape ``(count,)``.

        Index 0 is the tip. The sum is 1.
        """
        if count not in self._cached:
            self._cached[count] = self._chances(count)
        return self._cached[count]

    def _chances(self, count: int) -> Array:
        buckets = _buckets(count)
        sizes = np.bincount(buckets, minlength=NUM_BUCKETS)
        weights = self._counts[buckets] / sizes[buckets] + UNIFORM_PRIOR / count
        weights[0] += APPEND_PRIOR
        return weights / weights.sum()

    def __repr__(self) -> str:
        seen = {f"{(1 << i) >> 1}+": round(float(n), 1) for i, n in enumerate(self._counts) if n}
        return f"<EditDepths {seen}>"


@lru_cache(maxsize=256)
def _buckets(count: int) -> NDArray[np.int64]:
    return np.array([min(depth.bit_length(), NUM_BUCKETS - 1) for depth in range(count)])


def best_placement(seconds: Array, chances: Array, count: int, pinned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which ``count`` of the message ends to keep so that the expected work is least; indexes, ascending.

    ``seconds`` to compute from nothing up to each end, ascending; ``chances`` that a request goes on from it;
    ``pinned`` ones are kept in any case; all of shape ``(n,)``. A request that goes on from end ``i`` computes from
    the last kept end at or before it, ``seconds[i] - seconds[kept]``. Exact, by dynamic programming over the last
    kept end: O(n * n * count).
    """
    n = len(seconds)
    if count >= n:
        return np.arange(n)
    count = max(count, int(pinned.sum()))
    if count == 0:
        return np.arange(0)
    # What keeping end i as the last one saves of requests that go on from ends i..j-1, for all i < j <= n.
    mass = np.concatenate([[0.0], np.cumsum(chances)])
    saved = seconds[:, None] * (mass[None, :] - mass[:-1, None])
    num_pinned = np.concatenate([[0], np.cumsum(pinned)])
    skips_pinned = num_pinned[None, :] - num_pinned[1:, None] > 0
    saved[skips_pinned | (np.arange(n + 1)[None, :] <= np.arange(n)[:, None])] = -np.inf
    # best[j]: most that can be saved before end j, where j is the next to be kept (n: none is).
    best = np.where(num_pinned > 0, -np.inf, 0.0)
    choices: list[NDArray[np.int64]] = []
    for _ in range(count):
        totals = best[:-1, None] + saved
        choices.append(totals.argmax(axis=0))
        best = totals.max(axis=0)
    kept: list[int] = []
    end = n
    for choice in reversed(choices):
        end = int(choice[end])
        kept.append(end)
    return np.array(kept[::-1])
