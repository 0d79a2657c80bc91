"""What holds for any conversation."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.context.conversations import assistant, follow, head, texts, tool, user
from tests.context.growth import growing

from kvstet.context.equivalent.catalogue import NAMES
from kvstet.context.equivalent.equivalence import Equivalence

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]) | JSON,
            "content": st.text(max_size=20) | JSON,
            "tool_calls": JSON,
            "tool_call_id": JSON,
            "reasoning_content": JSON,
        },
    ),
    max_size=6,
)
"""Mostly nonsense."""


@given(MESSAGES, st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=2), max_size=3))
@example([{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}], [])
@example(
    [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": 1, "arguments": "[" * 10_000}}]}], []
)
def test_any_nonsense_is_followed_and_left_alone(messages: Any, tools: Any):
    sent = copy.deepcopy((messages, tools))
    said = follow(Equivalence(), *messages, tools=tools)
    assert (messages, tools) == sent
    assert said.messages == messages
    assert sorted(map(repr, said.tools)) == sorted(map(repr, tools))


@settings(max_examples=50)
@given(growing())
def test_a_conversation_that_grows_goes_on_as_it_began(requests: list[tuple[list[dict[str, Any]], list[Any]]]):
    equivalence = Equivalence()
    before: list[Any] = []
    for messages, tools in requests:
        said = follow(equivalence, *messages, tools=tools)
        assert [_printed(message) for message in said.messages][: len(before)] == before
        assert said.tools == follow(equivalence, *messages, tools=tools).tools
        before = [_printed(message) for message in said.messages]


def _printed(message: dict[str, Any]) -> Any:
    return message["role"], message["content"], message.get("tool_calls")


@settings(max_examples=50)
@given(growing())
def test_the_same_history_is_answered_the_same(requests: list[tuple[list[dict[str, Any]], list[Any]]]):
    one, other = Equivalence(), Equivalence()
    for messages, tools in requests:
        drafted = one.draft().follow(messages, tools, owner="", names=NAMES)
        assert drafted == follow(one, *messages, tools=tools) == follow(other, *messages, tools=tools)


@settings(max_examples=50)
@given(growing())
def test_with_all_switched_off_all_stands_as_it_was_sent(requests: list[tuple[list[dict[str, Any]], list[Any]]]):
    equivalence = Equivalence()
    for messages, tools in requests:
        follow(equivalence, *messages, tools=tools)
        said = follow(equivalence, *messages, tools=tools, without=sorted(NAMES))
        assert (said.messages, said.tools, said.substitutions) == (messages, tools, ())


@settings(max_examples=50)
@given(growing())
def test_the_model_is_told_what_is_so_now(requests: list[tuple[list[dict[str, Any]], list[Any]]]):
    """The date, the latest time it is told, is the one that was sent."""
    equivalence = Equivalence()
    for messages, tools in requests:
        said = "\n".join(texts(follow(equivalence, *messages, tools=tools)))
        _, _, sent = messages[0]["content"].partition("Today's date: ")
        assert said.rpartition("Today's date: ")[2][:10] == sent[:10]


def test_a_fork_keeps_what_it_has_in_common():
    equivalence = Equivalence()
    follow(equivalence, head(), user("Fix it."))
    told = follow(equivalence, head(date="2026-11-22"), user("Fix it."), assistant("Done."), user("One."))
    fork = follow(equivalence, head(date="2026-11-22"), user("Fix it."), assistant("Done."), user("Two."))
    assert texts(fork)[:3] == texts(told)[:3]
    assert "2026-11-22" in texts(fork)[3]


def test_no_key_is_told_what_another_has_sent():
    equivalence = Equivalence()
    follow(equivalence, head(), user("Fix it."), owner="one", tools=[tool("a"), tool("b")])
    sent = [head(date="2026-11-22"), user("Fix it.")]
    said = follow(equivalence, *sent, owner="other", tools=[tool("b"), tool("a")])
    assert (said.messages, said.tools) == (sent, [tool("b"), tool("a")])
