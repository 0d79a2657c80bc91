"""What was changed between two requests (`kvstet.edits.compare`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.edits.samples import SYSTEM, TOOLS, Message, call, conversation, result, snap, tool, user

from kvstet.edits.compare import compare, comparison
from kvstet.edits.edit import Edit
from kvstet.edits.snapshot import snapshot_of

Change = Callable[[list[Message]], Any]


def found(change: Change, num_steps: int = 4) -> list[tuple[str, int | None]]:
    """Kinds and messages of what is found once a conversation was changed, and went on."""
    before = conversation(num_steps)
    after = deepcopy(before)
    change(after)
    return kinds(compare(snap(before), snap([*after, user("And now?")])))


def kinds(edits: tuple[Edit, ...]) -> list[tuple[str, int | None]]:
    return [(edit.kind, edit.message) for edit in edits]


def put(index: int, **fields: Any) -> Change:
    return lambda messages: messages[index].update(fields)


def test_what_is_appended_is_no_edit():
    assert found(lambda messages: None) == []


def test_the_same_request_once_more_is_no_edit():
    assert compare(snap(conversation()), snap(conversation())) == ()


def test_a_reply_that_comes_back_is_no_edit():
    before = snap(conversation())
    reply = before.reply_of(
        "Looking at part 5.\n", "I should read part 5 before I say anything.\n", [("read", '{"path":"5.txt"}')]
    )
    assert compare(before.with_reply(reply), snap([*conversation(), call(5), result(5)])) == ()


def test_the_same_request_once_more_drops_no_reply():
    before = snap(conversation())
    assert compare(before.with_reply(before.reply_of("Done.", "", [])), snap(conversation())) == ()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda messages: messages[2].pop("reasoning_content"), ("reasoning_stripped", 2)),
        (put(3, content=""), ("result_pruned", 3)),
        (put(3, content="[Old tool result content cleared]"), ("result_replaced", 3)),
        (put(3, content=result(1)["content"][:90] + "..."), ("result_truncated", 3)),
        (
            put(1, content="<system-reminder>\nBe brief.\n</system-reminder>\nFind the bug in the numbers, please."),
            ("block_inserted", 1),
        ),
        (put(0, content=SYSTEM.replace("2026-11-21", "2026-11-22")), ("system_changed", 0)),
        (put(1, content="Tell me a joke about cats instead."), ("message_edited", 1)),
        (lambda messages: messages.insert(4, user("By the way.")), ("message_inserted", 4)),
        (put(2, tool_calls=call(1, "other")["tool_calls"]), ("arguments_changed", 2)),
    ],
)
def test_one_change_is_found_as_what_it_is(change: Change, expected: tuple[str, int]):
    assert found(change) == [expected]


def test_dropped_messages_are_named_by_where_they_were():
    def drop(messages: list[Message]) -> None:
        del messages[2:4]

    before = conversation()
    after = deepcopy(before)
    drop(after)
    edits = compare(snap(before), snap([*after, user("And now?")]))
    assert [(edit.kind, edit.message, edit.was) for edit in edits] == [
        ("message_dropped", 2, 2),
        ("message_dropped", 2, 3),
    ]


def test_messages_that_change_places_are_reordered():
    def swap(messages: list[Message]) -> None:
        messages[3], messages[5] = messages[5], messages[3]

    assert [kind for kind, _ in found(swap)] == ["messages_reordered"]


def test_a_conversation_goes_on_from_an_earlier_point():
    edits = compare(snap(conversation()), snap([*conversation()[:4], user("Stop. Do something else.")]))
    assert kinds(edits) == [("rewound", 4)]


def test_a_block_that_was_there_is_removed():
    before = conversation()
    before[1]["content"] = "<system-reminder>\nThe date is 2026-11-21.\n</system-reminder>\n" + before[1]["content"]
    edits = compare(snap(before), snap([*conversation(), user("And now?")]))
    assert [(edit.kind, edit.message, edit.what) for edit in edits] == [("block_removed", 1, ("date",))]


def test_results_are_matched_by_their_calls():
    """Though all of them have become the same stub."""

    def prune(messages: list[Message]) -> None:
        for index in (3, 5, 7):
            messages[index]["content"] = "[cleared]"

    assert found(prune) == [("result_replaced", 3), ("result_replaced", 5), ("result_replaced", 7)]


def test_a_result_that_is_gone_is_not_taken_for_its_neighbour():
    both = [*call(5)["tool_calls"], *call(6)["tool_calls"]]
    step = {**call(5), "tool_calls": both}
    before = [*conversation(), step, result(5), result(6)]
    after = [*conversation(), step, {**result(6), "content": "[cleared]"}, user("And now?")]
    edits = compare(snap(before), snap(after))
    assert [(edit.kind, edit.message, edit.was) for edit in edits] == [
        ("message_dropped", 11, 11),
        ("result_replaced", 11, 12),
    ]


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ("Today's date: 2026-11-21", "Today's date: 2026-11-22", "date"),
        ("Working directory: /home/dev/project", "Working directory: /home/dev/other", "working directory"),
        ("Answer in few words.", "Answer at length.", None),
    ],
)
def test_changed_lines_of_the_system_prompt_are_told_apart(old: str, new: str, kind: str | None):
    before = conversation()
    after = deepcopy(before)
    after[0]["content"] = SYSTEM.replace(old, new)
    (edit,) = compare(snap(before), snap(after))
    assert (edit.kind, edit.message, edit.character) == (
        "system_changed",
        0,
        common_length(SYSTEM, after[0]["content"]),
    )
    assert edit.what == ((kind,) if kind else ())


def common_length(first: str, second: str) -> int:
    return next(place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ([*TOOLS, tool("fetch")], [("tools_added", ("fetch",))]),
        (TOOLS[:-1], [("tools_removed", ("task",))]),
        (TOOLS[::-1], [("tools_reordered", ())]),
        ([tool("read", "Reads."), *TOOLS[1:]], [("tools_changed", ("read",))]),
        ([tool("fetch"), *TOOLS[1:]], [("tools_added", ("fetch",)), ("tools_removed", ("read",))]),
        ([dict(reversed(each.items())) for each in TOOLS], []),
    ],
)
def test_tools_are_compared_by_name(tools: list[dict[str, Any]], expected: list[tuple[str, tuple[str, ...]]]):
    edits = compare(snap(conversation()), snap(conversation(), tools))
    assert [(edit.kind, edit.what) for edit in edits] == expected


def test_arguments_in_another_spelling_and_defaults_mean_the_same():
    after = conversation()
    after[2]["tool_calls"][0]["function"]["arguments"] = {"all": False, "path": "1.txt"}
    assert compare(snap(conversation()), snap(after)) == ()


def test_content_in_parts_means_the_same():
    after = conversation()
    after[1]["content"] = [{"type": "text", "text": after[1]["content"], "cache_control": {"type": "ephemeral"}}]
    assert compare(snap(conversation()), snap(after)) == ()


def test_another_model_is_told_first():
    edits = compare(snap(conversation(), model="a"), snap(conversation(), TOOLS[:-1], model="b"))
    assert kinds(edits) == [("other_model", None), ("tools_removed", None)]


def test_shares_tell_what_is_not_new():
    before = conversation()
    after = [*deepcopy(before), user("And now?")]
    after[3]["content"] = after[3]["content"][:100]
    shares = comparison(snap(before), snap(after)).shares
    assert shares[:3] == (1.0, 1.0, 1.0) and shares[3] == 1.0 and shares[-1] == 0.0
    after[3]["content"] = "x" * 100
    assert comparison(snap(before), snap(after)).shares[3] == 0.0


# Any conversation with one change in it

TEXTS = st.text(min_size=1, max_size=30)


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Two steps or more, of texts that are all different."""
    num_steps = draw(st.integers(2, 6))
    messages: list[Message] = [{"role": "system", "content": SYSTEM}]
    for number in range(num_steps):
        messages += [user(f"{number}: {draw(TEXTS)}"), call(number), result(number, draw(st.integers(20, 40)))]
    return messages


def drop_reasoning(messages: list[Message], index: int) -> None:
    del messages[3 * index + 2]["reasoning_content"]


def clear(messages: list[Message], index: int) -> None:
    messages[3 * index + 3]["content"] = ""


def stub(messages: list[Message], index: int) -> None:
    messages[3 * index + 3]["content"] = "[cleared]"


def cut(messages: list[Message], index: int) -> None:
    messages[3 * index + 3]["content"] = messages[3 * index + 3]["content"][:80]


def insert(messages: list[Message], index: int) -> None:
    messages.insert(3 * index + 1, user("<reminder>"))


def drop(messages: list[Message], index: int) -> None:
    del messages[3 * index + 1]


def change_arguments(messages: list[Message], index: int) -> None:
    messages[3 * index + 2]["tool_calls"][0]["function"]["arguments"] = '{"path": "another"}'


def prepend(messages: list[Message], index: int) -> None:
    messages[3 * index + 1]["content"] = "<reminder>Now\n</reminder>\n" + messages[3 * index + 1]["content"]


CHANGES = {
    "reasoning_stripped": drop_reasoning,
    "result_pruned": clear,
    "result_replaced": stub,
    "result_truncated": cut,
    "message_inserted": insert,
    "message_dropped": drop,
    "arguments_changed": change_arguments,
    "block_inserted": prepend,
}


@given(conversations(), st.sampled_from(sorted(CHANGES)), st.data())
def test_any_single_change_is_found(messages: list[Message], kind: str, data: st.DataObject):
    after = deepcopy(messages)
    CHANGES[kind](after, data.draw(st.integers(0, (len(messages) - 1) // 3 - 1)))
    edits = compare(snap(messages), snap([*after, user("And now?")]))
    assert [edit.kind for edit in edits] == [kind]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(["role", "content", "reasoning_content", "tool_calls", "tool_call_id", "function", "name"])
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "developer"])
TEXT = JSON | st.sampled_from(["", " ", "\n", " a\n"])
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES}, optional={"content": TEXT, "reasoning_content": TEXT, "tool_calls": JSON}
)
NEAR = st.lists(JSON | MESSAGES | st.dictionaries(KEYS, JSON | ROLES), max_size=6)


@given(NEAR | JSON, NEAR | JSON, JSON, JSON)
def test_whatever_is_sent_can_be_compared(first: Any, second: Any, tools: Any, more: Any):
    before, after = snapshot_of(first, tools), snapshot_of(second, more, settings=more)
    assert compare(before, after) == compare(before, after)
    assert compare(before, before) == ()
    assert len(comparison(before, after).shares) == len(after.items)


@given(NEAR)
def test_a_request_read_from_json_again_is_the_same(messages: Any):
    again = json.loads(json.dumps(messages))
    assert compare(snapshot_of(messages), snapshot_of(again)) == ()


def test_a_deep_object_can_be_compared():
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": deep}
    before = snapshot_of(
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}], [deep]
    )
    assert compare(before, before) == ()
