"""Requests seen as messages, in three dialects, and written back with nothing else changed."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.recorded import NAMES, damaged, requests_of, written

from kvstet.context.arranging.lens import (
    BETWEEN,
    DialectName,
    Leaf,
    Lens,
    entries_of,
    lens_of,
    replaced,
    user_entry,
    with_entries,
)

Body = dict[str, Any]


def at(body: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


def stood(body: Any, leaf: Leaf) -> list[str]:
    """The texts that a leaf stands for."""
    if not leaf.num_parts:
        return [at(body, leaf.path)]
    *path, place = leaf.path
    return [part["text"] for part in at(body, tuple(path))[int(place) :][: leaf.num_parts]]


def is_text(leaf: Leaf) -> bool:
    return isinstance(leaf.message["content"], str) and "tool_calls" not in leaf.message


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_changed_is_the_very_same_body(name: str):
    for recorded in requests_of(name):
        body = recorded.body
        lens = lens_of(body, recorded.dialect)
        assert lens.written(lens.messages, lens.tools) is body
        assert lens.written(copy.deepcopy(lens.messages), copy.deepcopy(lens.tools)) is body
        assert written(body) == written(recorded.body), "nothing was changed in place"


@pytest.mark.parametrize("name", NAMES)
def test_every_text_of_a_recorded_request_is_a_leaf(name: str):
    recorded = requests_of(name)[-1]
    body = recorded.body
    lens = lens_of(body, recorded.dialect)
    found = [BETWEEN.join(stood(body, leaf)) for leaf in lens.leaves if is_text(leaf)]
    assert found == [leaf.message["content"] for leaf in lens.leaves if is_text(leaf)]
    said = texts_in([body.get(key) for key in ("system", "instructions", "messages", "input")])
    assert set(said) <= {text for each in found for text in each.split(BETWEEN)}
    assert len({leaf.path for leaf in lens.leaves}) == len(lens.leaves)


def texts_in(value: Any) -> list[str]:
    """What stands under ``text``, and strings under ``content``, ``system`` and ``output``."""
    if isinstance(value, list):
        return [text for item in value for text in texts_in(item)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("text", "content", "output") if isinstance(value.get(key), str)]
    return own + [text for key, each in value.items() if key in ("content", "output") for text in texts_in(each)]


@settings(max_examples=60)
@given(st.sampled_from(NAMES), st.data())
def test_a_leaf_that_is_changed_changes_that_place_and_the_rest_is_shared(name: str, data: st.DataObject):
    recorded = data.draw(st.sampled_from(requests_of(name)))
    body = recorded.body
    lens = lens_of(body, recorded.dialect)
    index = data.draw(st.sampled_from([index for index, leaf in enumerate(lens.leaves) if is_text(leaf)]))
    leaf = lens.leaves[index]
    messages = lens.messages
    messages[index] = {**messages[index], "content": "Something else."}
    changed = lens.written(messages, lens.tools)
    assert stood(changed, replace(leaf, num_parts=min(leaf.num_parts, 1))) == ["Something else."]
    assert written(body) == written(recorded.body), "not in place"
    whole = lens_of(changed, recorded.dialect)
    assert whole.messages == messages, "and nowhere else"
    if leaf.num_parts <= 1:
        assert written(whole.written(lens.messages, lens.tools)) == written(body)
    assert all(changed[key] is body[key] for key in body if key != leaf.path[0])
    if leaf.entry is not None and isinstance(leaf.path[1], int):
        others = zip(entries_of(changed, lens.dialect), entries_of(body, lens.dialect), strict=True)
        assert [one is other for one, other in others].count(False) == 1


CALLS: list[tuple[DialectName, Body, tuple[str | int, ...], Any]] = [
    (
        "chat",
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        ("messages", 0, "tool_calls", 0, "function", "arguments"),
        '{"a": 1}',
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "name": "ls", "input": {"b": 1}}]}]},
        ("messages", 0, "content", 0, "input"),
        {"a": 1},
    ),
    (
        "responses",
        {"input": [{"type": "function_call", "name": "ls", "arguments": "{}", "call_id": "c"}]},
        ("input", 0, "arguments"),
        '{"a": 1}',
    ),
]


@pytest.mark.parametrize(("dialect", "body", "path", "arguments"), CALLS)
def test_arguments_are_written_where_their_dialect_has_them(
    dialect: DialectName, body: Body, path: tuple[str | int, ...], arguments: Any
):
    lens = lens_of(body, dialect)
    (message,) = lens.messages
    (call,) = message["tool_calls"]
    said = {**message, "tool_calls": [{**call, "function": {**call["function"], "arguments": arguments}}]}
    changed = lens.written([said], lens.tools)
    assert at(changed, path) == arguments
    assert replaced(changed, path, at(body, path)) == body


def test_outputs_of_tools_are_told_apart_by_their_calls():
    blocks = [
        {"type": "tool_result", "tool_use_id": "a", "content": "one"},
        {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "two"}, {"type": "image"}]},
        {"type": "text", "text": "Go on."},
    ]
    lens = lens_of({"messages": [{"role": "user", "content": blocks}]}, "messages")
    assert [
        (m["role"], m.get("tool_call_id"), m["content"]) for m in lens.messages if isinstance(m["content"], str)
    ] == [
        ("tool", "a", "one"),
        ("tool", "b", "two"),
        ("user", None, "Go on."),
    ]
    assert [leaf.entry for leaf in lens.leaves] == [0, 0, 0, 0]


def test_instructions_come_first_in_every_dialect():
    assert lens_of({"system": "S", "messages": []}, "messages").messages == [{"role": "system", "content": "S"}]
    parts = [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}]
    assert lens_of({"system": parts, "messages": []}, "messages").messages == [{"role": "system", "content": "S"}]
    body = {"instructions": "S", "input": "Hi"}
    assert [m["content"] for m in lens_of(body, "responses").messages] == ["S", "Hi"]
    assert all(leaf.entry is None for leaf in lens_of(body, "responses").leaves[:1])


def test_a_picture_is_the_same_wherever_the_mark_of_the_cache_stands():
    image = {"type": "image", "source": {"type": "base64", "data": "AA"}}
    bodies = [
        {"messages": [{"role": "user", "content": [each]}]} for each in (image, {**image, "cache_control": {"x": 1}})
    ]
    one, other = (lens_of(body, "messages").messages for body in bodies)
    assert one == other
    assert one != lens_of({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages").messages


@settings(max_examples=200)
@given(damaged())
def test_whatever_a_body_holds_it_is_seen_and_written_back(found: tuple[DialectName, Body]):
    dialect, body = found
    before = repr(body)
    lens = lens_of(body, dialect)
    assert lens.written(lens.messages, lens.tools) is body
    assert repr(body) == before
    for leaf in lens.leaves:
        if is_text(leaf):
            assert BETWEEN.join(stood(body, leaf)) == leaf.message["content"]


@pytest.mark.parametrize("dialect", ["chat", "messages", "responses"])
def test_a_message_of_the_user_is_read_as_one(dialect: DialectName):
    body = with_entries({"model": "m"}, dialect, [user_entry("Hi", dialect)])
    lens: Lens = lens_of(body, dialect)
    assert lens.messages == [{"role": "user", "content": "Hi"}]
    assert entries_of(body, dialect) == [user_entry("Hi", dialect)] and body["model"] == "m"


def test_a_reminder_that_was_taken_out_again_is_put_back_beside_what_was_said():
    mark = {"cache_control": {"type": "ephemeral"}}
    now = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Go on.", **mark}]}]}
    said = [{"role": "user", "content": f"<system-reminder>It is late.</system-reminder>{BETWEEN}Go on."}]
    for body, content in ((now, now["messages"][0]["content"]), ({"messages": [user_entry("Go on.", "chat")]}, None)):
        changed = lens_of(body, "messages").written(said, [])["messages"][0]["content"]
        assert [part["text"] for part in changed] == ["<system-reminder>It is late.</system-reminder>", "Go on."]
        assert changed[-1].get("cache_control") == (content and mark["cache_control"])


def test_tools_are_put_in_the_order_that_was_asked_for():
    body: Body = {"messages": [], "tools": [{"name": "b"}, {"name": "a"}]}
    lens = lens_of(body, "messages")
    assert lens.written([], [{"name": "a"}, {"name": "b"}]) == {"messages": [], "tools": [{"name": "a"}, {"name": "b"}]}
    odd: Body = {"messages": [], "tools": [{"name": "b"}, 1]}
    assert lens_of(odd, "messages").tools == [] and lens_of(odd, "messages").written([], []) is odd
