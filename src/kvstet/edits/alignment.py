"""Which messages of one request stand in another: in linear time but for a sort."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kvstet.edits.snapshot import Digest

Pair = tuple[int, int]
"""Index before, index after."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages ``[start, stop)`` before that have become messages ``[new_start, new_stop)``."""

    start: int
    stop: int
    new_start: int
    new_stop: int


def align(before: Sequence[Digest], after: Sequence[Digest]) -> tuple[Pair, ...]:
    """Pairs of equal digests, ascending on both sides: a common prefix and suffix, and between them a longest common
    subsequence of the digests that occur once on each side, grown to both sides (a "patience" diff)."""
    anchors = [(-1, -1), *_anchors(before, after), (len(before), len(after))]
    pairs: list[Pair] = []
    for (start, new_start), (stop, new_stop) in pairwise(anchors):
        if start >= 0:
            pairs.append((start, new_start))
        pairs += _ends(before, after, Gap(start + 1, stop, new_start + 1, new_stop))
    return tuple(pairs)


def gaps(pairs: Iterable[Pair], num_before: int, num_after: int) -> Iterator[Gap]:
    """What lies between the pairs, in order."""
    start, new_start = 0, 0
    for index, new_index in (*pairs, (num_before, num_after)):
        if index > start or new_index > new_start:
            yield Gap(start, index, new_start, new_index)
        start, new_start = index + 1, new_index + 1


def _anchors(before: Sequence[Digest], after: Sequence[Digest]) -> list[Pair]:
    counts, new_counts = Counter(before), Counter(after)
    places = {digest: index for index, digest in enumerate(after)}
    unique = [
        (index, places[digest])
        for index, digest in enumerate(before)
        if counts[digest] == 1 and new_counts.get(digest) == 1
    ]
    return [unique[position] for position in longest_ascent([new_index for _, new_index in unique])]


def longest_ascent(keys: Sequence[int]) -> list[int]:
    """Positions of the longest strictly ascending subsequence; later ones win ties. Patience sorting, O(n log n)."""
    tails: list[int] = []
    previous: list[int | None] = []
    for position, key in enumerate(keys):
        length = bisect_left(tails, key, key=lambda tail: keys[tail])
        previous.append(tails[length - 1] if length else None)
        tails[length : length + 1] = [position]
    ascent: list[int] = []
    link = tails[-1] if tails else None
    while link is not None:
        ascent.append(link)
        link = previous[link]
    return ascent[::-1]


def _ends(before: Sequence[Digest], after: Sequence[Digest], gap: Gap) -> list[Pair]:
    """What is equal from the gap's start on, and before its end."""
    first: list[Pair] = []
    i, j = gap.start, gap.new_start
    while i < gap.stop and j < gap.new_stop and before[i] == after[j]:
        first.append((i, j))
        i, j = i + 1, j + 1
    last: list[Pair] = []
    stop, new_stop = gap.stop, gap.new_stop
    while stop > i and new_stop > j and before[stop - 1] == after[new_stop - 1]:
        stop, new_stop = stop - 1, new_stop - 1
        last.append((stop, new_stop))
    return first + last[::-1]
