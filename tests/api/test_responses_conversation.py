"""Items and messages, tools and functions."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.responses_harness import AGENTS, LS, PATCH

from kvstet.api.responses.conversation import conversation_of
from kvstet.api.responses.requests import ResponsesRequest, ToolChoice
from kvstet.api.responses.sealed import seal, unseal
from kvstet.api.responses.tools import ToolName, toolbox_of
from kvstet.api.responses.unescape import InputReader
from kvstet.chat.reply.grammar import CallDemand
from kvstet.errors import InvalidRequest

OURS = "0123456789abcdef" * 2
OTHER = "f" * 32


def messages_of(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    return conversation_of(ResponsesRequest(**fields), [], items, toolbox_of([])).messages


def said(text: str, id: str | None = None) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "content": [part], "id": id}


def thought(text: str, id: str | None = None) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [{"type": "summary_text", "text": text}], "content": None, "id": id}


def called(call_id: str, id: str | None = None) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "ls", "arguments": '{"a": 1}', "id": id}


def result(call_id: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": f"of {call_id}"}


def call(id: str, name: str = "ls", arguments: str = '{"a": 1}') -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_reasoning_text_and_calls_are_one_message():
    assert messages_of(thought("Hm."), said("I look."), called("c1"), called("c2"), result("c1"), result("c2")) == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("c1"), call("c2")],
        },
        {"role": "tool", "content": "of c1", "tool_call_id": "c1"},
        {"role": "tool", "content": "of c2", "tool_call_id": "c2"},
    ]


def test_calls_alone_are_a_message_without_text():
    assert messages_of(called("c1")) == [{"role": "assistant", "content": "", "tool_calls": [call("c1")]}]


@pytest.mark.parametrize(
    "items",
    [
        (said("One."), said("Two.")),
        (said("One."), thought("Hm.")),
        (called("c1"), thought("Hm.")),
        (called("c1"), said("Done.")),
        (called("c1"), result("c1"), called("c2")),
    ],
)
def test_what_cannot_follow_within_a_reply_begins_a_new_one(items: tuple[dict[str, Any], ...]):
    roles = [message["role"] for message in messages_of(*items)]
    assert roles.count("assistant") == 2


def test_items_that_are_known_to_be_of_one_reply_stay_together():
    assert messages_of(
        thought("One. ", f"rs_{OURS}_0"),
        said("A", f"msg_{OURS}_1"),
        called("c1", f"fc_{OURS}_2"),
        result("c1"),
        thought("Two.", f"rs_{OURS}_3"),
        said("B", f"msg_{OURS}_4"),
        called("c2", f"fc_{OURS}_5"),
        result("c2"),
        said("C", f"msg_{OTHER}_0"),
    ) == [
        {
            "role": "assistant",
            "content": "AB",
            "reasoning_content": "One. Two.",
            "tool_calls": [call("c1"), call("c2")],
        },
        {"role": "tool", "content": "of c1", "tool_call_id": "c1"},
        {"role": "tool", "content": "of c2", "tool_call_id": "c2"},
        {"role": "assistant", "content": "C"},
    ]


def test_items_of_two_replies_are_told_apart_though_they_stand_together():
    messages = messages_of(thought("Hm.", f"rs_{OURS}_0"), said("A", f"msg_{OTHER}_0"))
    assert [message["content"] for message in messages] == ["", "A"]


def test_all_roles_and_both_kinds_of_content_are_messages():
    assert messages_of(
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Really."}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        instructions="Hear me.",
    ) == [
        {"role": "system", "content": "Hear me."},
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Really."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "No."},
    ]


def test_custom_and_namespaced_calls_have_the_names_and_arguments_that_the_model_knows():
    custom = {"type": "custom_tool_call", "call_id": "c1", "name": "apply_patch", "input": 'a "b"\n'}
    spaced = {**called("c2"), "name": "spawn", "namespace": "agents"}
    (message,) = messages_of(custom, spaced)
    assert message["tool_calls"] == [
        call("c1", "apply_patch", '{"input":"a \\"b\\"\\n"}'),
        call("c2", "agents__spawn"),
    ]


def test_outputs_may_be_parts():
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    item = {"type": "custom_tool_call_output", "call_id": "c1", "output": parts}
    assert messages_of(item) == [{"role": "tool", "content": "a\nb", "tool_call_id": "c1"}]


def test_calls_of_tools_that_the_api_knows_become_calls_too():
    action = {"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": None}
    items = (
        {"type": "local_shell_call", "call_id": "c1", "id": "x", "action": action, "status": "completed"},
        {"type": "local_shell_call_output", "id": "c1", "output": "a.txt"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search"}},
        {"type": "tool_search_call", "call_id": "c2", "arguments": {"query": "files"}, "execution": "client"},
        {"type": "tool_search_output", "call_id": "c2", "tools": [LS]},
    )
    first, second, third, fourth = messages_of(*items)
    assert first["tool_calls"] == [call("c1", "local_shell", '{"command":["ls"],"env":{}}')]
    assert second == {"role": "tool", "content": "a.txt", "tool_call_id": "c1"}
    assert third["tool_calls"] == [call("c2", "tool_search", '{"query":"files"}')]
    assert json.loads(fourth["content"])["function"]["name"] == "ls"


@pytest.mark.parametrize(
    "field", [{"content": [{"type": "reasoning_text", "text": "Hm."}]}, {"encrypted_content": seal("Hm.")}]
)
def test_the_whole_of_reasoning_counts_and_not_its_summary(field: dict[str, Any]):
    (message,) = messages_of({**thought("In short."), **field}, said("A"))
    assert message["reasoning_content"] == "Hm."


def test_reasoning_that_only_another_server_can_read_is_left_out():
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA2d63c6e7b6d5691b4ffa"}
    assert messages_of(foreign, said("A")) == [{"role": "assistant", "content": "A"}]


@given(st.text())
def test_what_is_sealed_comes_back(text: str):
    assert unseal(seal(text)) == text


def test_a_damaged_seal_gives_nothing():
    payload = bytearray(base64.b64decode(seal("Some text.")))
    for place in range(len(payload)):
        damaged = bytes(payload[:place]) + bytes([payload[place] ^ 1]) + bytes(payload[place + 1 :])
        assert unseal(base64.b64encode(damaged).decode()) is None
    assert unseal("") is None
    assert unseal("ü") is None


@given(st.text(), st.booleans(), st.data())
def test_a_custom_tools_input_is_read_whole_wherever_it_is_split(text: str, is_ascii: bool, data: st.DataObject):
    written = json.dumps({"input": text}, ensure_ascii=is_ascii)
    reader = InputReader()
    read = ""
    while written:
        length = data.draw(st.integers(1, len(written)))
        read += reader.feed(written[:length])
        assert text.startswith(read)
        written = written[length:]
    assert read == text
    assert reader.flush() == ""


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{ "input" : "a" }', "a"),
        ('{"why": "b", "input": "a"}', "a"),
        ('{"patch": "a"}', "a"),
        ('"a"', "a"),
        ("a\nb", "a\nb"),
        ('{"input": 5}', '{"input": 5}'),
        ("{}", "{}"),
        ("[1]", "[1]"),
        ("", ""),
        ('{"input": "cut', "cut"),
        ('{"input": "cut\\', "cut\\"),
        ('{"input": "cut\\u00', "cut\ufffd00"),
        ('{"input": "half \\ud83d"}', "half \ufffd"),
        ('{"input": "half \\ud83d\\n"}', "half \ufffd\n"),
        ('{"input": "half \\ude00."}', "half \ufffd."),
        ('{"input": "bad \\uzz."}', "bad \ufffdzz."),
        ('{"input": "raw\nline"}', "raw\nline"),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_malformed_input_is_understood_as_well_as_can_be(written: str, read: str):
    reader = InputReader()
    assert reader.feed(written) + reader.flush() == read
    reader = InputReader()
    assert "".join(map(reader.feed, written[:100])) + reader.feed(written[100:]) + reader.flush() == read


def test_tools_become_functions():
    syntax = {"type": "grammar", "syntax": "lark", "definition": "start: line"}
    box = toolbox_of([{**LS, "strict": True}, {**PATCH, "format": syntax}, AGENTS, {"type": "web_search"}])
    ls, patch, spawn = (tool["function"] for tool in box.functions)
    assert ls == {"name": "ls", "description": "Lists files.", "parameters": {"type": "object"}}
    assert patch["parameters"]["required"] == ["input"]
    assert "lark grammar:\nstart: line" in patch["parameters"]["properties"]["input"]["description"]
    assert (spawn["name"], spawn["description"]) == ("agents__spawn", "Helpers.\n\nLists files.")


def test_names_lead_back_to_tools():
    box = toolbox_of([LS, PATCH, AGENTS, {"type": "namespace", "name": "mcp__x__", "tools": [LS]}])
    assert box.named("apply_patch") == ToolName("apply_patch", None, "custom")
    assert box.named("agents__spawn") == box.named("spawn") == ToolName("spawn", "agents")
    assert box.named("mcp__x__ls") == ToolName("ls", "mcp__x__")
    assert box.named("ls") == ToolName("ls")
    assert box.named("unheard_of") == ToolName("unheard_of")


def test_tools_that_a_search_has_found_may_be_called():
    search = {"type": "tool_search", "execution": "client"}
    box = toolbox_of([search, {**LS, "defer_loading": True}], found=[AGENTS])
    assert [tool["function"]["name"] for tool in box.functions] == ["tool_search"]
    assert [tool["function"]["name"] for tool in box.found] == ["agents__spawn"]
    assert box.named("agents__spawn") == ToolName("spawn", "agents")


def test_deferred_tools_are_shown_where_nobody_can_search_for_them():
    assert len(toolbox_of([{**LS, "defer_loading": True}, {"type": "tool_search"}]).functions) == 1


@pytest.mark.parametrize(
    ("choice", "demand"),
    [
        (None, CallDemand()),
        ("auto", CallDemand()),
        ("required", CallDemand(is_required=True)),
        (ToolChoice("web_search"), CallDemand()),
        (ToolChoice("function", "ls"), CallDemand(is_required=True, is_parallel=False, names=("ls",))),
        (ToolChoice("custom", "apply_patch"), CallDemand(is_required=True, is_parallel=False, names=("apply_patch",))),
        (ToolChoice("function", "spawn"), CallDemand(is_required=True, is_parallel=False, names=("agents__spawn",))),
        (ToolChoice("allowed_tools", mode="auto", tools=[LS]), CallDemand(names=("ls",))),
        (ToolChoice("allowed_tools", mode="required", tools=[LS]), CallDemand(is_required=True, names=("ls",))),
        (
            ToolChoice("allowed_tools", mode="required", tools=[LS, PATCH]),
            CallDemand(is_required=True, names=("ls", "apply_patch")),
        ),
    ],
)
def test_a_tool_choice_is_a_demand(choice: Any, demand: CallDemand):
    assert toolbox_of([LS, PATCH, AGENTS]).demand(choice, is_parallel=True) == demand


def test_a_choice_of_a_tool_in_another_namespace_is_refused():
    with pytest.raises(InvalidRequest, match="'spawn'"):
        toolbox_of([AGENTS]).demand(ToolChoice("function", "spawn", namespace="others"), is_parallel=True)
