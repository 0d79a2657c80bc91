"""Marks of the cache, by the rules of who reads them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.recorded import NAMES, damaged, requests_of, written

from kvstet.context.arranging.breakpoints import Marking, marked
from kvstet.context.arranging.lens import DialectName
from kvstet.providers.provider import provider_named

Body = dict[str, Any]

ANTHROPIC = Marking(style="cache_control")
OPENAI = Marking(style="prompt_cache_breakpoint", lookback_blocks=None, key_field="prompt_cache_key")
ALL = frozenset({"breakpoints", "cache-key"})


def marked_body(body: Body, dialect: DialectName, marking: Marking) -> Body:
    return marked(body, dialect, marking, key="k", names=ALL)[0]


def blocks_of(body: Body) -> list[tuple[str, Any]]:
    """As Anthropic counts them: the blocks of all messages, in order."""
    return [
        (message["role"], block)
        for message in body["messages"]
        for block in (message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}])
    ]


def marks_in(value: Any, style: str) -> list[Any]:
    if isinstance(value, list):
        return [mark for item in value for mark in marks_in(item, style)]
    if not isinstance(value, dict):
        return []
    own = [value] if style in value else []
    return own + [mark for key, each in value.items() if key != "input_schema" for mark in marks_in(each, style)]


def without_marks(value: Any, style: str) -> Any:
    if isinstance(value, list):
        return [without_marks(item, style) for item in value]
    return (
        {key: without_marks(each, style) for key, each in value.items() if key != style}
        if isinstance(value, dict)
        else value
    )


BLOCKS = st.sampled_from(
    [
        {"type": "text", "text": "Hm."},
        {"type": "text", "text": " "},
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "c", "name": "ls", "input": {"cache_control": "no-cache"}},
        {"type": "tool_result", "tool_use_id": "c", "content": "found"},
    ]
)
REQUESTS = st.fixed_dictionaries(
    {
        "system": st.sampled_from([None, "", "S", [{"type": "text", "text": "S"}, {"type": "text", "text": ""}]]),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "role": st.sampled_from(["user", "assistant"]),
                    "content": st.sampled_from(["", "Hi"]) | st.lists(BLOCKS, max_size=30),
                }
            ),
            max_size=6,
        ),
    }
)


@given(REQUESTS)
def test_marks_of_anthropic_are_few_on_blocks_that_take_them_and_within_reach(body: Body):
    before = copy.deepcopy(body)
    found = marked_body(body, "messages", ANTHROPIC)
    assert body == before
    marks = marks_in(found, "cache_control")
    marks = [each for each in marks if each.get("cache_control") != "no-cache"]
    assert len(marks) <= 4
    for each in marks:
        assert each["cache_control"] == {"type": "ephemeral"}
        assert each["type"] not in ("thinking", "redacted_thinking") and each.get("text", "-").strip()
    blocks = blocks_of(found)
    places = [index for index, (_, block) in enumerate(blocks) if "cache_control" in block]
    takes = [index for index, (_, block) in enumerate(blocks) if is_markable(block)]
    assert places[-1:] == takes[-1:], "the last that takes one"
    for place, before_it in zip(places[::-1], places[-2::-1], strict=False):
        assert place - before_it < 20 or not any(place - 20 < each < place for each in takes)
    if len(marks) < 4 and takes:
        assert places[0] < 18 or not any(each < places[0] for each in takes), "one more would not reach further"


def is_markable(block: Body) -> bool:
    return block.get("type") not in ("thinking", "redacted_thinking") and bool(block.get("text", "-").strip())


@given(REQUESTS)
def test_beside_the_marks_nothing_is_changed(body: Body):
    found = without_marks(marked_body(body, "messages", ANTHROPIC), "cache_control")
    for message in [*found["messages"], {"content": found["system"]}]:
        if isinstance(message["content"], list) and len(message["content"]) == 1:
            message["content"] = said(message["content"])
    expected = without_marks(body, "cache_control")
    for message in [*expected["messages"], {"content": expected["system"]}]:
        if isinstance(message["content"], list) and len(message["content"]) == 1:
            message["content"] = said(message["content"])
    assert [message["content"] for message in found["messages"]] == [
        message["content"] for message in expected["messages"]
    ]


def said(content: list[Any]) -> Any:
    """A string and one block of text say the same."""
    (block,) = content
    return block["text"] if block.get("type") == "text" else content


@pytest.mark.parametrize("name", ["claude", "claude-par", "claude-err"])
def test_the_marks_of_a_client_are_left_alone(name: str):
    for recorded in requests_of(name):
        body = recorded.body
        assert marked_body(body, "messages", ANTHROPIC) is body


@pytest.mark.parametrize("place", ["system", "message", "tool", "result", "top"])
def test_one_mark_of_the_client_anywhere_means_that_it_marks(place: str):
    mark = {"cache_control": {"type": "ephemeral"}}
    content: list[Any] = [{"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "x"}]}]
    body: Body = {
        "system": [{"type": "text", "text": "S"}],
        "tools": [{"name": "ls", "input_schema": {"properties": {"cache_control": {}}}}],
        "messages": [{"role": "user", "content": content}],
    }
    assert marked_body(body, "messages", ANTHROPIC) != body
    spot = {
        "system": body["system"][0],
        "message": content[0],
        "tool": body["tools"][0],
        "result": content[0]["content"][0],
        "top": body,
    }[place]
    spot.update(mark)
    assert marked_body(body, "messages", ANTHROPIC) is body


def test_arguments_and_schemas_that_speak_of_marks_are_no_marks():
    call = {"type": "tool_use", "id": "c", "name": "edit", "input": {"cache_control": {"type": "ephemeral"}}}
    body: Body = {"messages": [{"role": "assistant", "content": [call]}]}
    assert marked_body(body, "messages", ANTHROPIC)["messages"][0]["content"][0]["cache_control"]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("claude")])
def test_the_instructions_of_openai_are_marked_and_nothing_of_the_assistant(name: str):
    for recorded in requests_of(name):
        body = recorded.body
        found = marked_body(body, recorded.dialect, OPENAI)
        assert written(body) == written(recorded.body)
        entries = found["input"] if recorded.dialect == "responses" else found["messages"]
        holding = [entry["role"] for entry in entries if marks_in(entry, "prompt_cache_breakpoint")]
        assert len(holding) == len(marks_in(found, "prompt_cache_breakpoint")) <= 1
        assert set(holding) <= {"system", "developer"}
        has_instructions = any(entry.get("role") in ("system", "developer") for entry in entries)
        assert bool(holding) == has_instructions
        for mark in marks_in(found, "prompt_cache_breakpoint"):
            assert mark["type"] == ("input_text" if recorded.dialect == "responses" else "text")


def test_calls_count_as_blocks_where_another_dialect_is_spoken():
    """OpenRouter hands Chat requests on to Anthropic: each call becomes a block there."""
    messages: list[Any] = [{"role": "user", "content": "Go."}]
    for number in range(15):
        call = {"id": f"{number}", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"{number}", "content": "found"},
        ]
    found = marked_body({"messages": messages}, "chat", ANTHROPIC)["messages"]
    places = [index for index, message in enumerate(found) if marks_in(message, "cache_control")]
    assert places == [12, 30], "a message is a block, of a call or of an output"


def test_a_key_is_set_where_the_client_has_none():
    body: Body = {"messages": []}
    assert marked(body, "chat", OPENAI, key="k", names=ALL)[0]["prompt_cache_key"] == "k"
    own = {"messages": [], "prompt_cache_key": "own"}
    assert marked(own, "chat", OPENAI, key="k", names=ALL) == (own, [], [])
    by_header = Marking(key_header="x-affinity")
    assert marked(body, "chat", by_header, key="k", names=ALL) == (body, [], [("x-affinity", "k")])
    assert marked(body, "chat", OPENAI, key="k", names=frozenset()) == (body, [], [])
    assert marked(body, "chat", by_header, key="k", names=frozenset({"breakpoints"}))[2] == []


@settings(max_examples=200)
@given(damaged(), st.sampled_from([ANTHROPIC, OPENAI]))
def test_whatever_a_body_holds_it_is_marked_or_left_alone(found: tuple[DialectName, Body], marking: Marking):
    dialect, body = found
    before = repr(body)
    after = marked_body(body, dialect, marking)
    assert repr(body) == before
    if marking.style and not marks_in(body, marking.style):
        assert len(marks_in(after, marking.style)) <= 4


def test_what_a_provider_takes_is_read_from_its_rule():
    rule = provider_named("anthropic").rule_for("claude-opus-4-6", "messages")
    found = Marking.by(rule)
    assert (found.style, found.max_breakpoints, found.lookback_blocks) == ("cache_control", 4, 20)
    assert Marking.by(provider_named("ollama").rule_for("qwen3", "chat")).style is None


def test_of_a_long_conversation_four_blocks_are_marked_the_system_among_them():
    block = {"type": "text", "text": "Hm."}
    body: Body = {"system": "S", "messages": [{"role": "user", "content": [block] * 200}]}
    found = marked_body(body, "messages", ANTHROPIC)
    places = [index for index, (_, each) in enumerate(blocks_of(found)) if "cache_control" in each]
    assert places == [163, 181, 199] and marks_in(found["system"], "cache_control")


@pytest.mark.parametrize("odd", [{"type": ["text"], "text": "x"}, {"text": "x"}, 5, None, [], {"type": None}])
def test_what_is_no_block_takes_no_mark(odd: Any):
    body: Body = {"messages": [{"role": "user", "content": [odd]}]}
    assert marked_body(body, "messages", ANTHROPIC) is body
