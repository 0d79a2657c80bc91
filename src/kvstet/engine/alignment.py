"""Which parts of a prompt stand elsewhere in another one: whose state may be moved instead of computed.

Pure, and linear in the tokens. Every run that both have in common and that is at least `MIN_BLOCK_TOKENS` long is
found by one of its windows of `WINDOW_TOKENS`: the source's are taken side by side, the target's at every token, and
those of equal hash are compared. Of runs that cross or overlap, the longest is kept.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstet.types import Tokens

MIN_BLOCK_TOKENS = 64
"""Shorter runs are computed: they cost little, and each block has an edge of its own that drifts."""

WINDOW_TOKENS = 32
"""A run of twice this length, less one, holds a whole window of the source."""

MAX_PLACES = 8
"""A window that stands at more places of the source (blank lines, say) tells nothing of where it comes from."""

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""Odd, and else arbitrary: what hashes are made with."""

FIRST_LOOK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Block:
    """The source's tokens ``[source, source + length)`` are the target's ``[target, target + length)``."""

    source: int
    target: int
    length: int

    @property
    def source_stop(self) -> int:
        return self.source + self.length

    @property
    def target_stop(self) -> int:
        return self.target + self.length

    def within(self, source: slice, target: slice) -> Block | None:
        """The part of it that lies in both ranges; None: it is too short."""
        cut = max(0, source.start - self.source, target.start - self.target)
        over = max(0, self.source_stop - source.stop, self.target_stop - target.stop)
        length = self.length - cut - over
        return Block(self.source + cut, self.target + cut, length) if length >= MIN_BLOCK_TOKENS else None


def align(source: Tokens, target: Tokens) -> tuple[Block, ...]:
    """The blocks in order, none of which overlap or cross another, in either of the two."""
    blocks = sorted(_runs(source, target), key=lambda block: -block.length)
    return tuple(_chosen(blocks, slice(0, len(source)), slice(0, len(target))))


def _chosen(blocks: list[Block], source: slice, target: slice) -> Iterator[Block]:
    """The longest of them, and what lies wholly before and behind it; ``blocks`` are sorted by length."""
    pending: list[tuple[list[Block], slice, slice] | Block] = [(blocks, source, target)]
    while pending:
        match pending.pop():
            case Block() as block:
                yield block
            case blocks, source, target:
                inside = sorted(
                    (part for block in blocks if (part := block.within(source, target))), key=lambda part: -part.length
                )
                if inside:
                    longest, *others = inside
                    before = others, slice(source.start, longest.source), slice(target.start, longest.target)
                    behind = others, slice(longest.source_stop, source.stop), slice(longest.target_stop, target.stop)
                    pending += [behind, longest, before]


def _runs(source: Tokens, target: Tokens) -> Iterator[Block]:
    """Runs in common, each once, as long as they go; they may overlap and cross."""
    ends: dict[int, int] = {}
    """Where the last run of each diagonal (target less source) ends in the target."""
    for at_source, at_target in _seeds(source, target):
        diagonal = at_target - at_source
        if ends.get(diagonal, 0) > at_target:
            continue
        num_before = _num_common(source[:at_source][::-1], target[:at_target][::-1])
        num_behind = _num_common(source[at_source:], target[at_target:])
        ends[diagonal] = at_target + num_behind
        if num_before + num_behind >= MIN_BLOCK_TOKENS:
            yield Block(at_source - num_before, at_target - num_before, num_before + num_behind)


def _seeds(source: Tokens, target: Tokens) -> Iterator[tuple[int, int]]:
    """Places in source and target at which windows of equal hash begin, in the order of the target."""
    at_sources = _window_hashes(source)[::WINDOW_TOKENS]
    at_targets = _window_hashes(target)
    order = np.argsort(at_sources, kind="stable")
    known = at_sources[order]
    candidates = np.flatnonzero(np.isin(at_targets, known))
    hashes, places = known.tolist(), (order * WINDOW_TOKENS).tolist()
    for at_target, value in zip(candidates.tolist(), at_targets[candidates].tolist(), strict=True):
        first, last = bisect_left(hashes, value), bisect_right(hashes, value)
        if last - first <= MAX_PLACES:
            yield from ((place, at_target) for place in places[first:last])


def _window_hashes(tokens: Tokens) -> NDArray[np.uint64]:
    """A hash of the window that begins at each token; none where the tokens end before the window does."""
    if len(tokens) < WINDOW_TOKENS:
        return np.zeros(0, np.uint64)
    values = (tokens.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
    values ^= values >> np.uint64(29)
    # The window of twice the length is made of two of the length before: five steps for 32 tokens.
    length = 1
    while length < WINDOW_TOKENS:
        values = values[:-length] * MULTIPLIER + (values[length:] ^ (values[length:] >> np.uint64(31)))
        length *= 2
    return values


def _num_common(one: Tokens, other: Tokens) -> int:
    """Tokens that both begin with."""
    limit = min(len(one), len(other))
    start, look = 0, FIRST_LOOK_TOKENS
    while start < limit:
        stop = min(start + look, limit)
        differing = np.flatnonzero(one[start:stop] != other[start:stop])
        if len(differing):
            return start + int(differing[0])
        start, look = stop, look * 2
    return limit
