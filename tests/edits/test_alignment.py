"""Which messages of two requests are the same (`kvstet.edits.alignment`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.edits.alignment import Gap, align, gaps

WORDS = st.lists(st.sampled_from([bytes([letter]) for letter in b"abcdefgh"]), max_size=30)


def digests(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def common(before: str, after: str) -> str:
    """Letters of the pairs."""
    return "".join(before[index] for index, _ in align(digests(before), digests(after)))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("abcd", "abcd", "abcd"),
        ("abcd", "abcdef", "abcd"),
        ("abcd", "abxd", "abd"),
        ("abcdef", "abef", "abef"),
        ("abcdef", "aecdbf", "acdf"),
        ("", "abc", ""),
        ("abxc", "yabc", "abc"),
        ("aabaab", "aabcaab", "aabaab"),
    ],
)
def test_what_stays_in_order_is_paired(before: str, after: str, expected: str):
    assert common(before, after) == expected


@given(WORDS, WORDS)
def test_pairs_ascend_and_are_equal(before: Sequence[bytes], after: Sequence[bytes]):
    pairs = align(before, after)
    assert all(before[index] == after[other] for index, other in pairs)
    assert all(first[0] < second[0] and first[1] < second[1] for first, second in pairwise(pairs))


@given(WORDS, WORDS)
def test_common_ends_are_paired_whole(first: list[bytes], last: list[bytes]):
    """Whatever is between them."""
    pairs = align([*first, b"old", *last], [*first, b"new", b"new", *last])
    assert len(pairs) == len(first) + len(last)


@given(WORDS, WORDS)
def test_gaps_and_pairs_are_everything(before: Sequence[bytes], after: Sequence[bytes]):
    pairs = align(before, after)
    found = list(gaps(pairs, len(before), len(after)))
    assert sum(gap.stop - gap.start for gap in found) + len(pairs) == len(before)
    assert sum(gap.new_stop - gap.new_start for gap in found) + len(pairs) == len(after)


def test_a_gap_says_what_became_of_what():
    assert list(gaps(align(digests("abcd"), digests("axd")), 4, 3)) == [Gap(1, 3, 1, 2)]


def test_many_messages_are_aligned_in_linear_time():
    before = [str(number).encode() for number in range(50_000)]
    start = time.process_time()
    align(before, before[::2] + before[1::2])
    assert time.process_time() - start < 3
