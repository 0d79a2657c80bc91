"""What clients were seen to do to older messages is foreseen the next time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.edits.habits import MAX_CLIENTS, Habits
from kvstet.edits.snapshot import Snapshot, snapshot_of

REMINDER = "<system-reminder>\nThe current date is: Saturday.\n</system-reminder>"
NOTE = "[Old tool result content cleared]"
TOOL = {"type": "function", "function": {"name": "read", "parameters": {}}}
NAMES = frozenset({"read"})

Message = dict[str, Any]


def user(*texts: str) -> Message:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def call(id: str) -> Message:
    return {"role": "assistant", "content": None, "tool_calls": [{"id": id, "function": {"name": "read"}}]}


def output(id: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": text}


def sent(*messages: Message) -> Snapshot:
    return snapshot_of(list(messages), [TOOL])


SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = {"role": "assistant", "content": "Hello."}


def test_a_reminder_that_went_once_is_foreseen_to_go():
    habits = Habits()
    habits.observe(sent(SYSTEM, user(REMINDER, "Hi")), sent(SYSTEM, user("Hi"), HELLO, user(REMINDER, "More")))
    messages = [SYSTEM, user("Hi"), HELLO, user(REMINDER, "More"), call("a"), output("a", "text")]
    foreseen = habits.foresee(messages, NAMES)
    assert foreseen == [SYSTEM, user("Hi"), HELLO, user("More"), call("a"), output("a", "text")]
    assert messages[3] == user(REMINDER, "More")


def test_in_a_plain_string_too():
    habits = Habits()
    habits.observe(sent(user(f"{REMINDER}\nHi")), sent(user("Hi"), HELLO))
    foreseen = habits.foresee([{"role": "user", "content": f"{REMINDER}\nMore"}], NAMES)
    assert foreseen == [{"role": "user", "content": "More"}]


def test_what_was_never_seen_is_not_foreseen():
    habits = Habits()
    messages = [SYSTEM, user(REMINDER, "Hi"), call("a"), output("a", "x" * 5000)]
    assert habits.foresee(messages, NAMES) == messages
    habits.observe(sent(SYSTEM, user(REMINDER, "Hi")), sent(SYSTEM, user(REMINDER, "Hi"), HELLO))
    assert habits.foresee(messages, NAMES) == messages


def test_a_message_that_is_nothing_but_a_reminder_stays():
    habits = Habits()
    habits.observe(sent(user(REMINDER, "Hi")), sent(user("Hi"), HELLO))
    assert habits.foresee([user(REMINDER)], NAMES) == [user(REMINDER)]


def test_a_message_that_was_rewritten_is_no_habit():
    habits = Habits()
    habits.observe(sent(user(REMINDER, "Hi")), sent(user("Bye"), HELLO))
    assert habits.foresee([user(REMINDER, "More")], NAMES) == [user(REMINDER, "More")]


def test_other_clients_have_other_habits():
    habits = Habits()
    habits.observe(sent(user(REMINDER, "Hi")), sent(user("Hi"), HELLO))
    assert habits.foresee([user(REMINDER, "More")], frozenset({"write"})) == [user(REMINDER, "More")]


def turn(number: int, *lengths: int) -> list[Message]:
    """The user asks; as many calls, whose outputs are so long; the reply."""
    ids = [f"{number}.{i}" for i in range(len(lengths))]
    pairs = [(call(id), output(id, "x" * length)) for id, length in zip(ids, lengths, strict=True)]
    return [user(f"Turn {number}"), *(message for pair in pairs for message in pair), HELLO]


def pruned(messages: list[Message], *ids: str) -> list[Message]:
    return [output(m["tool_call_id"], NOTE) if m.get("tool_call_id") in ids else m for m in messages]


TALK = [*turn(1, 9000, 9000, 4000), *turn(2, 4000), *turn(3, 20_000), *turn(4, 500)]
"""Before the last two turns there are 26,000 characters, of which the client keeps the last 8,000."""


@pytest.fixture
def pruning() -> Habits:
    habits = Habits()
    habits.observe(sent(*TALK), sent(*pruned(TALK, "1.0", "1.1"), user("Turn 5")))
    return habits


def test_old_outputs_go_as_they_went_before(pruning: Habits):
    longer = [*pruned(TALK, "1.0", "1.1"), *turn(5, 30_000)]
    # Before the last two turns, there are the 20,000 now, and these are too many already.
    assert pruning.foresee(longer, NAMES) == pruned(longer, "1.2", "2.0", "3.0")


def test_outputs_of_the_last_two_turns_stand(pruning: Habits):
    assert pruning.foresee([*turn(6, 90_000), *turn(7, 90_000)], NAMES) == [*turn(6, 90_000), *turn(7, 90_000)]


def test_what_is_too_little_to_go_at_once_stays(pruning: Habits):
    short = [*turn(1, 4000, 9000), *turn(2), *turn(3)]
    assert pruning.foresee(short, NAMES) == short


def test_the_limit_is_found_more_closely_each_time(pruning: Habits):
    again = [*turn(1, 9000, 9000, 4000), *turn(2, 6000), *turn(3), *turn(4)]
    pruning.observe(sent(*again), sent(*pruned(again, "1.0", "1.1"), user("Turn 5")))
    # By now it lies between 10,000 and 17,000 characters.
    kept = [*turn(1, 9000, 9000), *turn(2, 13_000), *turn(3), *turn(4)]
    assert pruning.foresee(kept, NAMES) == pruned(kept, "1.0", "1.1")
    gone = [*turn(1, 9000, 9000), *turn(2, 14_000), *turn(3), *turn(4)]
    assert pruning.foresee(gone, NAMES) == pruned(gone, "1.0", "1.1", "2.0")


def test_the_longest_unseen_clients_are_forgotten():
    habits = Habits()
    for number in range(MAX_CLIENTS + 5):
        tool = {"type": "function", "function": {"name": f"t{number}"}}
        habits.observe(snapshot_of([user(REMINDER, "Hi")], [tool]), snapshot_of([user("Hi"), HELLO], [tool]))
    assert repr(habits) == f"Habits({MAX_CLIENTS} clients)"
    assert habits.foresee([user(REMINDER, "More")], frozenset({"t0"})) == [user(REMINDER, "More")]
    assert habits.foresee([user(REMINDER, "More")], frozenset({f"t{MAX_CLIENTS}"})) == [user("More")]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from([REMINDER, NOTE, "<a>b</a> c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool", "assistant"]), "content": anything}), max_size=5
)


@given(messages, messages, messages)
def test_nothing_that_clients_send_breaks_it(before: list[Message], after: list[Message], then: list[Message]):
    habits = Habits()
    habits.observe(snapshot_of(before), snapshot_of(after))
    foreseen = habits.foresee(then, frozenset())
    assert [message["role"] for message in foreseen] == [message["role"] for message in then]


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": REMINDER}], [{"type": "image"}, {"a": 1}]])
def test_content_of_other_kinds_stays(content: object):
    habits = Habits()
    habits.observe(sent(user(REMINDER, "Hi")), sent(user("Hi"), HELLO))
    assert habits.foresee([{"role": "user", "content": content}], NAMES) == [{"role": "user", "content": content}]
