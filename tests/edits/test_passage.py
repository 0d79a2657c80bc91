"""Where two texts differ (`kvstet.edits.passage`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.edits.passage import Passage

TEXTS = st.text(alphabet="ab\n", max_size=40)


@given(TEXTS, TEXTS)
def test_what_is_removed_and_inserted_makes_one_text_of_the_other(before: str, after: str):
    passage = Passage(before, after)
    end = len(before) - passage.num_tail_characters
    assert before[: passage.start] + passage.inserted + before[end:] == after
    assert before[: passage.start] + passage.removed + before[end:] == before


@given(TEXTS, TEXTS)
def test_no_character_of_the_ends_is_left_out(before: str, after: str):
    passage = Passage(before, after)
    removed, inserted = passage.removed, passage.inserted
    assert not (removed and inserted and (removed[0] == inserted[0] or removed[-1] == inserted[-1]))


@given(TEXTS, TEXTS, TEXTS)
def test_what_is_put_in_between_is_an_insertion(first: str, between: str, last: str):
    assert Passage(first + last, first + between + last).is_insertion
    assert Passage(first + between + last, first + last).is_removal


@pytest.mark.parametrize(
    ("before", "after"),
    [("one\ntwo\nthree\n", "one\nzero\ntwo\nhalf\nthree\n"), ("│ a\n│ c", "│ a\n│ b\n│ c\n│ d")],
)
def test_lines_in_several_places_are_an_insertion_too(before: str, after: str):
    assert Passage(before, after).is_insertion and Passage(after, before).is_removal
    assert not Passage(before, after).is_removal


def test_the_kept_share_counts_ends_and_whole_lines():
    assert Passage("abcd", "abxxcd").kept_share == pytest.approx(4 / 6)
    assert Passage("1\n2\n3\n", "1\n4\n2\n5\n").kept_share == pytest.approx(5 / 8)
    assert Passage("abc", "xyz").kept_share == 0.0
    assert Passage("abc", "").kept_share == 1.0


@given(TEXTS, TEXTS)
def test_the_share_is_a_share(before: str, after: str):
    assert 0 <= Passage(before, after).kept_share <= 1
    assert Passage(before, before).kept_share == 1


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ("You are.\nToday's date: 2026-11-21\nBe brief.", "You are.\nToday's date: 2026-11-22\nBe brief.", ("date",)),
        ("gitStatus: On branch main", "gitStatus: On branch other", ()),
        ("a\n├── b\n└── c\n", "a\n├── b\n├── d\n└── c\n", ("directory listing",)),
        ("Be brief.", "Be long.", ()),
    ],
)
def test_only_lines_that_differ_are_named(before: str, after: str, kinds: tuple[str, ...]):
    assert Passage(before, after).kinds == kinds
