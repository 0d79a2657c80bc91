"""Tools are spelt in one way, and the list that was sent first stays."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.context.conversations import tool, user

from kvstet.context.writing.toolset import USE_TOOL, Toolset, deterministic, is_announcing, with_announcement

Tool = dict[str, Any]


def shuffled(value: Any, seed: random.Random) -> Any:
    """The same, with the keys of its objects in another order."""
    if isinstance(value, dict):
        keys = list(value)
        seed.shuffle(keys)
        return {key: shuffled(value[key], seed) for key in keys}
    return [shuffled(item, seed) for item in value] if isinstance(value, list) else value


TOOLS = [tool(name, name * 3) for name in ("read", "edit", "bash", "mcp__search")]


@given(st.permutations(TOOLS), st.randoms(use_true_random=False))
def test_tools_are_the_same_bytes_however_they_were_gathered(tools: list[Tool], seed: random.Random):
    assert json.dumps(deterministic(shuffled(tools, seed))) == json.dumps(deterministic(TOOLS))
    assert [each["function"]["name"] for each in deterministic(tools)] == ["bash", "edit", "mcp__search", "read"]


def test_an_order_in_a_schema_that_means_something_stays():
    union = {**tool("a"), "function": {"name": "a", "parameters": {"enum": ["z", "b"], "anyOf": [{"b": 1}, {"a": 1}]}}}
    (same,) = deterministic([union])
    assert same == union


def test_the_tools_of_a_caller_are_not_changed():
    given_tools = [tool("b"), tool("a")]
    deterministic(given_tools)[0]["function"]["name"] = "c"
    assert given_tools == [tool("b"), tool("a")]


def test_a_tool_that_comes_later_is_announced_and_the_list_stays():
    first = Toolset.of([tool("read")], takes_late=True)
    later, news = first.changed_to([tool("read"), tool("grep", "Find.")])
    assert later.sent == first.sent
    assert later.names == {"read", "grep"} and first.names == {"read"}
    assert '"name": "grep"' in news and "use_tool" in news and "read" not in news
    assert later.changed_to([tool("grep", "Find."), tool("read")]) == (later, "")


def test_a_tool_that_goes_is_taken_back_and_may_come_again():
    first = Toolset.of([tool("read"), tool("edit")], takes_late=False)
    less, news = first.changed_to([tool("read")])
    assert (less.sent, less.names, news) == (first.sent, {"read"}, "The tool edit can no longer be called.")
    again, news = less.changed_to([tool("edit"), tool("read")])
    assert (again.names, news) == ({"read", "edit"}, "The tool edit can be called again.")


def test_a_tool_that_became_another_is_told_as_it_is_now():
    first = Toolset.of([tool("read", "old")], takes_late=True)
    later, news = first.changed_to([tool("read", "new")])
    assert '"new"' in news and later.names == {"read"} and later.sent == first.sent
    back, news = later.changed_to([tool("read", "old")])
    assert '"old"' in news and back.names == {"read"}


def test_where_none_may_come_later_that_is_said():
    with pytest.raises(ValueError, match="takes none: grep"):
        Toolset.of([tool("read")], takes_late=False).changed_to([tool("grep"), tool("read")])


@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=6))
def test_what_can_be_called_is_what_was_asked_for_last(wishes: list[set[str]]):
    first = toolset = Toolset.of([tool("a"), tool("b")], takes_late=True)
    for wish in wishes:
        before = toolset
        toolset, news = toolset.changed_to(map(tool, wish))
        assert toolset.names == wish
        assert toolset.sent == first.sent
        assert bool(news) == (before.names != wish)


@given(st.lists(st.sets(st.sampled_from("abcd")), min_size=1, max_size=5))
def test_an_announcement_of_all_names_what_came_and_what_is_gone(wishes: list[set[str]]):
    toolset = Toolset.of([tool("a"), tool("b")], takes_late=True)
    for wish in wishes:
        toolset, _ = toolset.changed_to(map(tool, wish))
    told = toolset.announcement()
    for name in toolset.names - {"a", "b"}:
        assert f'"name": "{name}"' in told and f"The tool {name} can no longer" not in told
    for name in {"a", "b"} - toolset.names:
        assert f"The tool {name} can no longer be called." in told


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ('{"name": "grep", "arguments": {"path": "."}}', ("grep", '{"path": "."}')),
        ('{"name": "grep", "arguments": "{\\"path\\": 1}"}', ("grep", '{"path": 1}')),
        ('{"name": "grep"}', ("grep", "{}")),
        ('{"name": 3, "arguments": {}}', ("use_tool", '{"name": 3, "arguments": {}}')),
        ('{"arguments": {}}', ("use_tool", '{"arguments": {}}')),
        ("[]", ("use_tool", "[]")),
        ("{", ("use_tool", "{")),
        ("[" * 100_000, ("use_tool", "[" * 100_000)),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_call_through_use_tool_means_the_tool_that_it_names(arguments: str, meant: tuple[str, str]):
    assert Toolset.of([], takes_late=True).resolved("use_tool", arguments) == meant


def test_any_other_call_means_itself():
    assert Toolset.of([tool("read")], takes_late=True).resolved("read", '{"name": "grep"}') == (
        "read",
        '{"name": "grep"}',
    )


def test_the_tool_that_calls_late_ones_is_sent_only_where_they_may_come():
    assert USE_TOOL not in Toolset.of([tool("a")], takes_late=False).sent
    assert [each["function"]["name"] for each in Toolset.of([tool("z")], takes_late=True).sent] == ["use_tool", "z"]


def test_an_announcement_is_told_before_the_message():
    message = with_announcement(user("Go on."), "Something is new.")
    assert message["content"] == "<system-reminder>\nSomething is new.\n</system-reminder>\n\nGo on."
    assert is_announcing(message["content"]) and not is_announcing("Go on.")
