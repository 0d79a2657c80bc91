"""Outputs are cut once, in one way, and what is left is what says most."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from kvstet.context.outputs import DEFAULT_CHARACTERS, cut

NOTE_CHARACTERS = 60
TEXTS = st.lists(st.text("ab\n", max_size=40), max_size=30).map("\n".join) | st.text(max_size=400)


@given(TEXTS, st.integers(0, 300))
@example("x" * 1000, 0)
@example("x" * 1000, 1)
@example("\n" * 1000, 10)
def test_an_output_is_cut_once_in_one_way_and_becomes_no_longer(text: str, limit: int):
    short = cut(text, limit)
    assert short == cut(text, limit) == cut(short, limit)
    assert len(short) <= min(len(text), limit + NOTE_CHARACTERS)
    if len(text) <= limit:
        assert short == text


@given(st.text("ab\n", min_size=200, max_size=2000), st.integers(20, 100))
def test_what_is_left_out_is_counted(text: str, limit: int):
    head, note, rest = cut(text, limit).partition("\n[... ")
    if note:
        count, _, tail = rest.partition(" characters left out ...]\n")
        assert text.startswith(head) and text.endswith(tail)
        assert len(head) + len(tail) + int(count.replace(",", "")) == len(text)


def test_the_head_and_the_tail_of_a_long_output_stay_in_whole_lines():
    text = "".join(f"line {number}\n" for number in range(10_000))
    head, _, tail = cut(text, 3_000).partition(" characters left out ...]\n")
    head = head.partition("\n[... ")[0]
    assert head.startswith("line 0\nline 1\n") and head.splitlines()[-1] in text.splitlines()
    assert tail.splitlines()[0] in text.splitlines() and tail.endswith("line 9999\n")
    assert 1_900 < len(head) <= 2_000, "two thirds are of the head"


def test_a_single_long_line_is_cut_within():
    short = cut("x" * 100_000)
    assert DEFAULT_CHARACTERS < len(short) <= DEFAULT_CHARACTERS + NOTE_CHARACTERS
    assert "[... 84,000 characters left out ...]" in short


def test_what_is_hardly_too_long_stays_whole():
    text = "x" * (DEFAULT_CHARACTERS + 1)
    assert cut(text) is text
