"""Words for words (`kvstet.traces.placeholders`)."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.edits.vocabulary import VOCABULARY
from kvstet.edits.volatile import volatile_spans
from kvstet.providers.estimate import tokens_of
from kvstet.traces.placeholders import KEPT, KEPT_NAMES, Placeholders

PLACEHOLDERS = Placeholders(b"a key that is long enough")
text_of = PLACEHOLDERS.text

SAMPLES = """
    git gitx understand understanding Über naïve 日本 İ x1 22T10:42Z 10am 007 ß foo_bar ValueError a message messages
    🤖 data:image/png;base64,iVBOR= ² \U0001d4b3 \\n"a"
"""
WORDS = st.sampled_from(SAMPLES.split())
TEXTS = st.one_of(st.text(max_size=60), st.lists(WORDS | st.text(max_size=4), max_size=12).map(" ".join))


@given(TEXTS)
def test_lengths_stay(text: str):
    said = text_of(text)
    assert [len(each.encode("utf-8", "surrogatepass")) for each in said] == [
        len(each.encode("utf-8", "surrogatepass")) for each in text
    ]
    assert len(said.lower()) == len(text.lower())
    assert len(json.dumps(said)) == len(json.dumps(text))
    assert [each.isspace() for each in said] == [each.isspace() for each in text]
    assert len(tokens_of(said)) == len(tokens_of(text))


@given(TEXTS, TEXTS)
def test_different_texts_stay_different_and_equal_ones_equal(one: str, other: str):
    assert (text_of(one) == text_of(other)) == (one == other)
    assert Placeholders(b"a key that is long enough").text(one) == text_of(one)


LONG = st.lists(
    st.text(alphabet="bcdxyz", min_size=6, max_size=9) | st.text(alphabet="059", min_size=1, max_size=9), min_size=1
).map(" ".join)
"""Of short words, many become one that is kept, and then another one."""


@given(LONG, LONG, LONG)
def test_texts_that_begin_alike_do_so_for_as_many_characters(begun: str, one: str, other: str):
    one, other = begun + one, begun + other
    assert num_common(text_of(one), text_of(other)) == num_common(one, other)


@given(TEXTS, TEXTS)
def test_whole_words_at_the_end_stay_alike(one: str, other: str):
    assert (text_of(f"{one} {other}")).endswith(text_of(other)) or one.endswith("\\")
    assert f"{text_of(one)} " == text_of(f"{one} {other}")[: len(one) + 1] or one.endswith("\\")


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=2, max_size=9))
def test_no_letter_of_a_word_stays_unless_it_is_kept(word: str):
    if word in KEPT or "error" in word:
        return
    assert all(new != old for new, old in zip(text_of(word), word, strict=True)) or len(text_of(word)) != len(word)
    assert text_of(word) not in KEPT


def test_another_key_gives_other_words():
    text = "Fix the failing tests of the inventory package."
    assert Placeholders(b"another key").text(text) != text_of(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | TEXTS,
        lambda each: st.lists(each, max_size=3) | st.dictionaries(TEXTS, each, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)
def test_json_stays_json_and_its_texts_become_what_they_would_alone(value: object, is_ascii: bool):
    written = json.dumps({"value": value}, ensure_ascii=is_ascii, indent=1)
    replaced = PLACEHOLDERS.json_text(written)
    assert len(replaced) == len(written)
    assert json.loads(replaced) == walked({"value": value})


def walked(value: object) -> object:
    match value:
        case str():
            return text_of(value)
        case list():
            return [walked(each) for each in value]
        case dict():
            return {PLACEHOLDERS.name(key): walked(each) for key, each in value.items()}
        case _:
            return value


@given(TEXTS, st.integers(0, 40))
def test_json_that_is_cut_off_begins_as_the_whole(text: str, length: int):
    whole = json.dumps({"path": text, "n": 30}, ensure_ascii=False)
    cut = PLACEHOLDERS.json_text(whole[:length])
    assert len(cut) == min(length, len(whole))
    words = [
        each
        for each in re.findall(r"[a-z]{5,}", whole[:length])
        if each not in {*KEPT, "image"} and "error" not in each
    ]
    assert not set(words) & set(re.findall(r"[a-z]{5,}", cut))


def test_names_that_providers_know_stay_where_they_are_names():
    assert json.loads(PLACEHOLDERS.json_text('{"image_url": "image_url"}')) == {"image_url": text_of("image_url")}
    assert text_of("image_url") != "image_url" and "image_url" in KEPT_NAMES


def test_what_is_opaque_keeps_its_length_and_its_head():
    image = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="
    replaced = PLACEHOLDERS.opaque(image)
    assert re.fullmatch(r"data:image/png;base64,[\w+/]{22}==", replaced) and replaced != image
    assert PLACEHOLDERS.opaque(image) == replaced != PLACEHOLDERS.opaque(image[:-3] + "h==")
    assert PLACEHOLDERS.opaque("") == ""


@pytest.mark.parametrize(
    "text",
    [
        "Today's date: 2026-11-22",
        "The current time is 2026-11-22T10:42:13Z, or 10:42 am (UTC+2), Sunday, November 22, 2026",
        "# gitStatus\nThis is the git status at the start.\n\nCurrent branch: fix-9\n\nStatus:\n M a.py\n\nmore",
        "<system-reminder>\nContents of /home/dev/AGENTS.md: be brief.\n</system-reminder>",
        "Working directory: /home/dev/project\n<cwd>/home/dev</cwd>",
        "x-anthropic-billing-header: cc_version=2.1.330.a3f; cch=9e1b4;",
        "requestId: 3f9a-77ab and request_id = 12345678",
        "Tokens used: 12,345 of 200k, 55% context left, turn 3/40",
        "timestamp: 1763800000.25",
    ],
)
def test_what_is_of_the_moment_is_known_as_before(text: str):
    found = volatile_spans(text)
    assert found and volatile_spans(text_of(text)) == found


@given(
    st.lists(st.sampled_from(sorted(VOCABULARY)) | WORDS | st.sampled_from([": ", "\n", "<", ">", "2026-11-22"])).map(
        " ".join
    )
)
def test_nothing_becomes_of_the_moment_that_was_not(text: str):
    assert volatile_spans(text_of(text)) == volatile_spans(text)


def num_common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (old, new) in pairs if old != new), min(len(one), len(other)))
