"""Requests as the blocks that a provider caches by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.providers.prompts import LONG_MARK, MARK, block, chat_body, messages_body

from kvstet.providers.blocks import IMAGE_TOKENS, Block, Mark, blocks_of
from kvstet.providers.provider import provider_named

ANTHROPIC = provider_named("anthropic").rule_for("claude-sonnet-5")
OPENAI = provider_named("openai").rule_for("gpt-5.6")
TOOL = {"name": "read", "description": "Read a file.", "input_schema": {"type": "object", "properties": {}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4000}}


def of(body: dict[str, Any], dialect: str = "messages") -> list[Block]:
    return blocks_of(body, dialect, ANTHROPIC)


def same(one: Block, other: Block) -> bool:
    return np.array_equal(one.tokens, other.tokens)


def test_tools_come_before_the_system_prompt_and_that_before_messages() -> None:
    """Anthropic, prompt caching: "the full prompt: tools, system, and messages (in that order)"."""
    body = messages_body([block("hello")], [block("hi")], system=[block("be brief")], tools=[TOOL])
    assert [each.part for each in of(body)] == ["tools", "system", "messages", "messages"]


def test_a_string_is_one_block_of_text() -> None:
    short = {"system": "be brief", "messages": [{"role": "user", "content": "hello"}]}
    long = messages_body([block("hello")], system=[block("be brief")])
    assert all(map(same, of(short), of(long)))


def test_marks_are_no_part_of_the_prompt_and_tell_their_lifetime() -> None:
    bare = messages_body([block("hello")], system=[block("be brief")], tools=[TOOL])
    marked = messages_body([block("hello", **MARK)], system=[block("be brief", **LONG_MARK)], tools=[{**TOOL, **MARK}])
    assert [each.mark for each in of(marked)] == [Mark(), Mark("1h"), Mark()]
    assert all(map(same, of(bare), of(marked)))


def test_a_mark_within_a_tools_result_marks_the_result() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [block("42", **MARK)]}
    (read,) = of(messages_body([result]))
    assert (read.mark, read.role, read.kind) == (Mark(), "tool", "tool_result")


def test_a_mark_on_the_whole_request_falls_on_the_last_block_that_takes_one() -> None:
    """anthropic SDK, MessageCreateParams.cache_control: "automatically applies a cache_control marker to the last
    cacheable block in the request"."""
    body = messages_body([block("hello")], [{"type": "thinking", "thinking": "hm", "signature": "s"}], **MARK)
    assert [each.mark for each in of(body)] == [Mark(), None]


def test_keys_in_another_order_are_another_prompt() -> None:
    one, other = (of({"tools": [tool], "messages": []}) for tool in (TOOL, dict(reversed(TOOL.items()))))
    assert not same(one[0], other[0])


def test_a_picture_is_many_tokens_that_depend_on_it() -> None:
    (one,) = of(messages_body([IMAGE]))
    (other,) = of(messages_body([{**IMAGE, "source": {**IMAGE["source"], "data": "B" * 4000}}]))
    assert len(one.tokens) > IMAGE_TOKENS
    assert not same(one, other)


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_plain_message_takes_old_thinking_out_on_older_models(is_plain: bool) -> None:
    """providers.md: "Older models strip old thinking on a plain user turn"."""
    thought = {"type": "thinking", "thinking": "let me see", "signature": "s"}
    call = {"type": "tool_use", "id": "t1", "name": "read", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "42"}
    body = messages_body([block("go")], [thought, call], [block("go on") if is_plain else result])
    kinds = [each.kind for each in blocks_of(body, "messages", replace(ANTHROPIC, strips_old_thinking=True))]
    assert ("thinking" in kinds) != is_plain
    assert "thinking" in [each.kind for each in of(body)]


def test_chat_has_its_head_its_calls_and_its_results() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    body = {
        "tools": [{"type": "function", "function": {"name": "read"}}],
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "system", "content": "late"},
        ],
    }
    read = blocks_of(body, "chat", OPENAI)
    assert [each.part for each in read[:2]] == ["tools", "system"]
    assert {each.part for each in read[2:]} == {"messages"}
    assert [each.role for each in read if each.ends_message] == ["system", "user", "assistant", "tool", "system"]


def test_responses_have_instructions_items_and_their_marks() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    body = {
        "instructions": "be brief",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "hello", **mark}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "A" * 500},
            {"type": "function_call", "call_id": "c1", "name": "read", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
    }
    read = blocks_of(body, "responses", OPENAI)
    assert [each.role for each in read] == ["system", "user", "assistant", "assistant", "tool"]
    assert [each.mark for each in read] == [None, Mark(), None, None, None]
    assert len(read[2].tokens) > 100
    assert [each.kind for each in blocks_of({"input": "hello"}, "responses", OPENAI)] == ["text"]


def test_marks_of_a_provider_that_heeds_none_are_ignored() -> None:
    groq = provider_named("groq").rule_for("x")
    body = {"messages": [{"role": "user", "content": [block("hello", **MARK)]}]}
    assert [each.mark for each in blocks_of(body, "chat", groq)] == [None]


@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None, "input": 3, "tools": "x", "system": 1},
        {"messages": [None, "x", {"role": 3, "content": {"a": [1]}}, {"content": [None, 7, "text"]}]},
        {"input": [None, {"type": "computer_call"}, {"type": 7}, {"role": "user", "content": None}]},
        {"tools": [None, 3], "cache_control": "ephemeral"},
    ],
)
def test_what_is_not_understood_does_no_harm(body: dict[str, Any], dialect: str) -> None:
    assert isinstance(blocks_of(body, dialect, ANTHROPIC), list)


def test_the_same_request_has_the_same_blocks_in_chat() -> None:
    one, other = (blocks_of(chat_body("a", "b", "c"), "chat", OPENAI) for _ in range(2))
    assert all(map(same, one, other))
