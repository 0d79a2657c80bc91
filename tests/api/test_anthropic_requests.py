"""What is in a request: translated into a conversation, or refused with the name of what is wrong."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import pytest
from tests.api.anthropic_harness import USER, MessagesSite, calling, running_messages
from tests.api.harness import as_new, reply

from kvstet.api.anthropic.conversation import conversation_of
from kvstet.api.anthropic.requests import CountRequest
from kvstet.api.anthropic.signatures import carrying_signature_of, is_ours, signature_of, thinking_in
from kvstet.api.body import decode
from kvstet.api.job import Conversation
from kvstet.chat.messages import normalise
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.errors import InvalidRequest

TRACES = Path(__file__).parents[1] / "data" / "traces"
LS = {"name": "ls", "description": "Lists files.", "input_schema": {"type": "object"}}
GREP = {"name": "grep", "input_schema": {"type": "object", "properties": {"b": {}, "a": {}}}, "defer_loading": True}
TEXT = {"type": "text", "text": "Look", "cache_control": {"type": "ephemeral"}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}


def understood(**body: Any) -> Conversation:
    return conversation_of(decode(json.dumps({"messages": USER, **body}).encode(), CountRequest))


def messages(*turns: dict[str, Any], **body: Any) -> list[dict[str, Any]]:
    return understood(messages=list(turns), **body).messages


def user(*blocks: dict[str, Any] | str) -> dict[str, Any]:
    return {"role": "user", "content": [text(block) if isinstance(block, str) else block for block in blocks]}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def using(*ids: str) -> dict[str, Any]:
    calls = [{"type": "tool_use", "id": id, "name": f"tool-{id}", "input": {"z": 1, "a": 2}} for id in ids]
    return {"role": "assistant", "content": calls}


def result(id: str, content: Any = "done", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def told(*turns: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in messages(*turns)]


@pytest.fixture(scope="module")
def shared_messages_site() -> Iterator[MessagesSite]:
    with running_messages(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_messages_site: MessagesSite) -> MessagesSite:
    return as_new(shared_messages_site)


@pytest.mark.parametrize("system", ["One.\nTwo.", [text("One."), {**TEXT, "text": "Two."}]], ids=["text", "blocks"])
def test_the_system_prompt_comes_first(system: Any):
    assert messages(user("Hi"), system=system) == [
        {"role": "system", "content": "One.\nTwo."},
        {"role": "user", "content": "Hi"},
    ]


@pytest.mark.parametrize("speaker", ["system", "user"])
def test_blocks_that_are_marked_in_the_middle_are_parts(speaker: str):
    blocks = [{**TEXT, "text": "One."}, text("Two.")]
    told = messages(user(*blocks)) if speaker == "user" else messages(user("Hi"), system=blocks)[:1]
    parts = [{"type": "text", "text": "One.", "cache_control": TEXT["cache_control"]}, text("Two.")]
    assert told == [{"role": speaker, "content": [parts[0], {**parts[1], "cache_control": None}]}]


@pytest.mark.parametrize("system", ["", [], None])
def test_no_system_prompt_is_no_message(system: Any):
    assert messages(user("Hi"), system=system) == [{"role": "user", "content": "Hi"}]


def test_a_text_and_a_block_with_a_cache_marker_are_the_same():
    assert messages(user(TEXT)) == messages({"role": "user", "content": "Look"})
    marked = user(result("1", [TEXT], cache_control={"type": "ephemeral"}))
    assert messages(marked) == messages(user(result("1", "Look")))


def test_users_who_speak_twice_are_two_messages_and_system_messages_stay_in_their_place():
    turns = [user("One."), user("Two."), {"role": "system", "content": "Now."}, user("Three.")]
    assert told(*turns) == [("user", "One."), ("user", "Two."), ("system", "Now."), ("user", "Three.")]


def test_results_stand_behind_the_calls_and_text_beside_them_follows():
    turns = [using("1"), user("Before.", result("1"), "After.")]
    assert told(*turns)[1:] == [("tool", "done"), ("user", "Before.\nAfter.")]


def test_results_come_in_the_order_of_their_calls_and_before_all_else():
    turns = [
        using("1", "2", "3"),
        user(result("2", "second"), "Text."),
        {"role": "system", "content": "Note."},
        user(result("unknown", "lost"), result("3", "third"), result("1", "first")),
    ]
    assert told(*turns)[1:] == [
        ("tool", "first"),
        ("tool", "second"),
        ("tool", "third"),
        ("tool", "lost"),
        ("user", "Text."),
        ("system", "Note."),
    ]


def test_results_of_one_step_never_move_to_another():
    turns = [using("1"), user(result("1", "first")), using("2"), user(result("2", "second"), "Go on.")]
    assert [role for role, _ in told(*turns)] == ["assistant", "tool", "assistant", "tool", "user"]


def test_a_result_names_its_call_and_its_tool():
    message = messages(using("1"), user(result("1")))[1]
    assert message == {"role": "tool", "tool_call_id": "1", "name": "tool-1", "content": "done"}


@pytest.mark.parametrize(
    ("content", "is_error", "said"),
    [
        ("done", False, "done"),
        ("no such file", True, "Error: no such file"),
        ("<tool_use_error>No.</tool_use_error>", True, "<tool_use_error>No.</tool_use_error>"),
        ("Exit code 1\nerror", True, "Error: Exit code 1\nerror"),
        (None, None, ""),
        ([], None, ""),
        ([text("One."), text("Two.")], None, "One.\nTwo."),
    ],
    ids=str,
)
def test_a_result_says_that_it_is_an_error_if_its_text_does_not(content: Any, is_error: bool | None, said: str):
    assert told(using("1"), user(result("1", content, is_error=is_error)))[1] == ("tool", said)


def test_a_result_without_content_is_empty():
    assert told(using("1"), user({"type": "tool_result", "tool_use_id": "1"}))[1] == ("tool", "")


def test_an_assistant_message_keeps_thinking_text_and_calls():
    blocks = [
        {"type": "thinking", "thinking": "Let me ", "signature": "foreign"},
        {"type": "redacted_thinking", "data": "AAAA"},
        {"type": "thinking", "thinking": "see.", "signature": signature_of("something else")},
        text("I"),
        text(" look."),
        *using("1")["content"],
    ]
    (message,) = messages({"role": "assistant", "content": blocks})
    assert message == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Let me see.",
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "tool-1", "arguments": {"z": 1, "a": 2}}}],
    }
    assert list(message["tool_calls"][0]["function"]["arguments"]) == ["z", "a"]


def test_an_assistant_message_may_say_nothing():
    assert told({"role": "assistant", "content": []}) == [("assistant", "")]


def test_a_signature_tells_what_was_changed():
    for signature in (signature_of("Thöught."), carrying_signature_of("Thöught.")):
        assert is_ours("Thöught.", signature)
        assert not is_ours("Thought.", signature)
        assert thinking_in("Changed.", signature) == "Changed."
    assert not is_ours("Thöught.", "EqQBCgIYAhIM")
    assert is_ours("half \ud83d", carrying_signature_of("half \ud83d"))


def test_a_signature_carries_what_was_not_shown():
    signature = carrying_signature_of("Thöught.")
    assert thinking_in("", signature) == "Thöught."
    for broken in (signature[:-4], signature + "AAAA", signature.replace("kvstet1", "kvstet2"), "", "kvstet1.a.ü"):
        assert thinking_in("", broken) == ""


def test_tools_are_told_in_openais_form():
    assert understood(tools=[LS | {"eager_input_streaming": True, "type": "custom"}]).tools == [
        {
            "type": "function",
            "function": {"name": "ls", "description": "Lists files.", "parameters": {"type": "object"}},
        }
    ]
    assert "description" not in understood(tools=[{**LS, "description": None}]).tools[0]["function"]


def test_deferred_tools_stay_out_of_the_prefix_and_are_told_where_they_are_referenced(site: MessagesSite):
    site.engine.script = reply(calling("grep", {"a": 1}))
    reference = {"type": "tool_reference", "tool_name": "grep"}
    turns = [*USER, using("1"), user(result("1", [text("Found:"), reference]))]
    answer = site.ask(messages=turns, tools=[GREP, LS])
    before, separator, after = site.prompt.partition("Found:\nThis tool can be called from here on:\n")
    assert separator
    assert "grep" not in before
    assert after.startswith(
        '{"name": "grep", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}}<|im_end|>'
    )
    assert "grep" not in after.partition("<|im_end|>")[2]
    assert '"name": "ls"' in after
    assert site.renderer.parser_tools[-1] == ["ls", "grep"]
    assert answer["content"][0]["name"] == "grep"


def test_an_unreferenced_deferred_tool_changes_no_prompt(site: MessagesSite):
    site.ask(tools=[LS])
    plain = site.prompt
    site.ask(tools=[GREP, LS])
    assert site.prompt == plain


def test_the_order_of_keys_in_a_referenced_tools_schema_does_not_matter():
    turns = [using("1"), user(result("1", [{"type": "tool_reference", "tool_name": "t"}]))]
    schemas = [{"type": "object", "required": ["x"]}, {"required": ["x"], "type": "object"}]
    tools = [{"name": "t", "input_schema": schema, "defer_loading": True} for schema in schemas]
    assert len({str(messages(*turns, tools=[tool])) for tool in tools}) == 1


def test_a_reference_to_a_tool_that_is_gone_is_told_as_such():
    turns = [using("1"), user(result("1", [{"type": "tool_reference", "tool_name": "gone"}]))]
    assert told(*turns)[1] == ("tool", "The tool gone is not there.")


def test_system_messages_may_add_and_remove_tools():
    add = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "grep"}}
    bring = {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {**LS, "name": "new"}}}
    remove = {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "ls"}}
    turns = [*USER, {"role": "system", "content": [add, bring, remove]}]
    conversation = understood(messages=turns, tools=[GREP, LS])
    said = conversation.messages[-1]["content"]
    assert said.count("This tool can be called from here on:") == 2
    assert '{"name": "new", "description": "Lists files."' in said
    assert said.endswith("The tool ls can no longer be called.")
    assert [tool["function"]["name"] for tool in conversation.deferred_tools] == ["grep", "new"]


@pytest.mark.parametrize(
    ("choice", "calls"),
    [
        (None, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, True),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "ls"}, True),
        ({"type": "none"}, False),
    ],
    ids=str,
)
def test_a_tool_choice_leaves_the_tools_in_the_prompt(choice: Any, calls: bool):
    conversation = understood(tools=[LS], tool_choice=choice)
    assert (len(conversation.tools), conversation.calls_tools) == (1, calls)


@pytest.mark.parametrize(
    ("fields", "variables"),
    [
        ({}, {}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4000}}, {"enable_thinking": True}),
        ({"thinking": {"type": "adaptive", "display": "updates"}}, {"enable_thinking": True}),
        ({"output_config": {"effort": "max", "task_budget": {"total": 1}}}, {"reasoning_effort": "max"}),
        ({"output_config": {}}, {}),
    ],
    ids=str,
)
def test_thinking_and_effort_are_told_to_the_template(fields: dict[str, Any], variables: dict[str, Any]):
    assert understood(**fields).variables == variables


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [user("Hi", IMAGE)]}, "messages[0].content[1]"),
        ({"messages": [user({"type": "document", "source": {}})]}, "messages[0].content[0]"),
        ({"messages": [user({"type": "hologram"})]}, "messages[0].content[0].type"),
        ({"messages": [user({"text": "Hi"})]}, "messages[0].content[0]"),
        ({"messages": [user({"type": "text", "text": 5})]}, "messages[0].content[0].text"),
        ({"messages": [user(result("1", [IMAGE]))]}, "messages[0].content[0].content[0]"),
        ({"messages": [user(result("1", [{"type": "hologram"}]))]}, "messages[0].content[0].content[0].type"),
        ({"messages": [user(using("1")["content"][0])]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": [result("1")]}, *USER]}, "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": [result("1")]}, *USER]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "content": "I"}]}, "messages"),
        ({"system": 5}, "system"),
        ({"system": [IMAGE]}, "system[0].type"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"input_schema": {}}]}, "tools[0] has no name"),
        ({"tools": [{"name": "ls"}]}, "tools[0] has no input_schema"),
        (
            {"tools": [LS, {"type": "web_search_20250305", "name": "web_search"}]},
            "tools[1] is of type 'web_search_20250305'",
        ),
        ({"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}]}, "tools[0] is of type 'mcp_toolset'"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [LS], "tool_choice": {"type": "tool", "name": "cd"}}, "tool_choice"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"$ref": "x"}}}}, "References"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 2**31}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"context_management": 5}, "context_management"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_absurd_field_is_named(site: MessagesSite, fields: dict[str, Any], param: str):
    response = site.post("/v1/messages?beta=true", {"messages": USER, "max_tokens": 9, **fields})
    assert response.status_code == 400, response.text
    body = response.json()
    assert (set(body), body["type"], body["error"]["type"]) == ({"type", "error"}, "error", "invalid_request_error")
    assert param in body["error"]["message"]
    assert site.engine.requests == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"messages": [{"role": "user", "content": "Hi"}]}',
        b'{"max_tokens": 1, "messages": [{"role": "user", "content": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"max_tokens": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"max_tokens": 1, "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_not_a_request_is_a_400(site: MessagesSite, body: bytes):
    response = site.post("/v1/messages", body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [100, 200, 300, 400, 600, 800, 950])
def test_a_deep_schema_is_served_or_refused_but_no_fault(site: MessagesSite, depth: int):
    schema = '{"type": "object", "properties": {"a": ' * depth + "{}" + "}}" * depth
    tool = {"name": "deep", "input_schema": "SCHEMA", "defer_loading": True}
    turns = [*USER, using("1"), user(result("1", [{"type": "tool_reference", "tool_name": "deep"}]))]
    site.engine.info = replace(site.engine.info, context_length=10**6)
    body = json.dumps({"max_tokens": 9, "messages": turns, "tools": [tool]})
    assert site.post("/v1/messages", body.replace('"SCHEMA"', schema).encode()).status_code in (200, 400)


def test_the_sdk_raises_its_own_error(site: MessagesSite):
    with site.anthropic() as client, pytest.raises(anthropic.BadRequestError, match="takes text only"):
        client.messages.create(model="m", max_tokens=9, messages=[user(IMAGE)])


def recorded(name: str) -> list[dict[str, Any]]:
    """Requests of Claude Code: of each shape that occurs one, with long texts cut."""
    return [json.loads(line) for line in lzma.decompress((TRACES / name).read_bytes()).splitlines()]


CLAUDE = recorded("claude-requests.jsonl.xz")


def test_there_are_recorded_requests():
    assert {record["path"] for record in CLAUDE} == {"/v1/messages?beta=true", "/v1/messages/count_tokens?beta=true"}


@pytest.mark.parametrize("record", CLAUDE, ids=lambda record: record["path"])
def test_what_claude_code_sends_is_understood_and_no_text_is_lost(site: MessagesSite, record: dict[str, Any]):
    site.engine.info = replace(site.engine.info, context_length=10**6)
    site.engine.script = reply(calling("Bash", {"command": "ls"}))
    body: dict[str, Any] = record["body"]
    response = site.post(record["path"], body)
    assert response.status_code == 200, response.text
    conversation = understood(**body)
    prompt = json.dumps([message["content"] for message in normalise(conversation.messages)], ensure_ascii=False)
    for words in texts_in(body["messages"]):
        assert json.dumps(words, ensure_ascii=False)[1:-1] in prompt
    assert "DeferredToolPlaceholder" not in [tool["function"]["name"] for tool in conversation.tools]
    if "count_tokens" not in record["path"]:
        events = response.text.split("\n\n")
        assert events[0].startswith("event: message_start")
        assert events[-2].startswith("event: message_stop")
        assert '"applied_edits":[]' in response.text


def texts_in(turns: list[dict[str, Any]]) -> Iterator[str]:
    for turn in turns:
        for block in [text(turn["content"])] if isinstance(turn["content"], str) else turn["content"]:
            content = block.get("content", block.get("text", ""))
            parts = [text(content)] if isinstance(content, str) else content
            yield from (part["text"] for part in parts)


def test_a_tool_that_is_no_custom_one_is_refused_by_name():
    with pytest.raises(InvalidRequest, match=r"tools\[0\] is of type 'bash_20250124'"):
        understood(tools=[{"type": "bash_20250124", "name": "bash"}])
