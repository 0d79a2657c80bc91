"""A history only grows, and is read as it was written, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.conversations import assistant, result, user

from kvstet.context.writing.history import History, written
from kvstet.errors import BrokenHistory

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4)
)
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(st.text(max_size=2), LEAVES, max_size=2)
KEYS = st.sampled_from(["role", "content", "é", '"', "\U00010000"])
MESSAGES = st.lists(st.dictionaries(KEYS, JSON, max_size=3), max_size=4)


def history_of(messages: list[Any]) -> History:
    history = History()
    for message in messages:
        history.append(message)
    return history


@given(MESSAGES)
def test_a_history_survives_json_byte_for_byte(messages: list[Any]):
    history = history_of(messages)
    again = History.from_json(history.to_json())
    assert again.to_json() == history.to_json()
    assert list(again) == list(history)
    assert [entry.text for entry in again] == [written(message) for message in messages]
    assert again.messages == messages
    # And through any other JSON reader and writer.
    assert list(History.from_json(json.dumps(json.loads(history.to_json()), indent=1))) == list(history)


@settings(max_examples=60)
@given(MESSAGES, st.data())
def test_a_byte_that_was_changed_is_found(messages: list[Any], data: st.DataObject):
    text = history_of(messages).to_json()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(max_codepoint=127).filter(lambda new: new != text[place]))
    with pytest.raises(BrokenHistory):
        History.from_json(text[:place] + other + text[place + 1 :])


@given(MESSAGES, st.data())
def test_a_history_that_was_cut_off_is_not_read(messages: list[Any], data: st.DataObject):
    text = history_of(messages).to_json()
    with pytest.raises(BrokenHistory):
        History.from_json(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "entries": []}',
        '{"version": 1}',
        '{"version": 1, "entries": [1]}',
        '{"version": 1, "entries": [{"id": "", "message": "{"}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_history_is_said(text: str):
    with pytest.raises(BrokenHistory):
        History.from_json(text)


def test_an_entry_that_was_taken_out_is_found():
    stored = json.loads(history_of([user("a"), user("b"), user("c")]).to_json())
    del stored["entries"][1]
    with pytest.raises(BrokenHistory, match="Entry 1"):
        History.from_json(json.dumps(stored))


@given(MESSAGES, MESSAGES, MESSAGES)
def test_forks_share_ids_exactly_as_far_as_they_are_equal(common: list[Any], one: list[Any], other: list[Any]):
    history = history_of(common)
    forks = history.fork(len(common)), history.fork(len(common))
    for fork, messages in zip(forks, (one, other), strict=True):
        for message in messages:
            fork.append(message)
    texts = [[written(message) for message in fork.messages] for fork in forks]
    shared = [a.id == b.id for a, b in zip(*forks, strict=False)]
    equal = [texts[0][:stop] == texts[1][:stop] for stop in range(1, len(shared) + 1)]
    assert shared == equal
    assert forks[0].num_common(forks[1]) == forks[1].num_common(forks[0]) == sum(equal)
    assert history.messages == common, "a fork's entries are its own"


def test_there_is_no_byte_that_could_be_another():
    text = history_of([user("a b"), assistant("é")]).to_json()
    for place, byte in enumerate(text):
        for other in {" ", "\n", "\t", "0", '"'} - {byte}:
            with pytest.raises(BrokenHistory):
                History.from_json(text[:place] + other + text[place + 1 :])


def test_half_a_character_is_found_too():
    text = history_of([user("\U00010000")]).to_json()
    with pytest.raises(BrokenHistory):
        History.from_json(text.replace("\\\\ud800", "\\ud800"))


def test_the_head_stands_for_the_whole_history():
    one, other = history_of([user("a"), user("c")]), history_of([user("b"), user("c")])
    assert one.head != other.head
    assert one.head == history_of([user("a"), user("c")]).head
    assert History().head == "" and repr(History()) == "History(0 entries, head='')"


def test_a_message_that_is_changed_afterwards_stays_as_it_was():
    message = assistant("Hm.", '{"path": "."}')
    history = history_of([user("a"), message])
    message["tool_calls"][0]["function"]["name"] = "rm"
    history.messages[0]["content"] = "b"
    assert history.messages == [user("a"), assistant("Hm.", '{"path": "."}')]


def test_keys_keep_their_order_since_providers_read_bytes():
    assert history_of([{"b": 1, "a": 2}]).head != history_of([{"a": 2, "b": 1}]).head
    assert [*History.from_json(history_of([{"b": 1, "a": 2}]).to_json()).messages[0]] == ["b", "a"]


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "content",
    [float("nan"), float("inf"), b"bytes", {1, 2}, object(), [10**5000], deep()],
    ids=["nan", "inf", "bytes", "set", "object", "huge", "deep"],
)
def test_what_json_cannot_hold_is_refused_and_nothing_is_kept_of_it(content: object):
    history = history_of([result("a")])
    head = history.head
    with pytest.raises(BrokenHistory, match="must be JSON"):
        history.append({"role": "user", "content": content})
    assert (len(history), history.head) == (1, head)
