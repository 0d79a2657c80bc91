from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.dialects.samples import (
    ENCRYPTED,
    PIXEL,
    SESSION,
    SIGNED,
    TOOL,
    assistant,
    call,
    request,
    result,
    system,
    tool,
    user,
)
from tests.dialects.sdk_types import check_body

from kvstet.dialects.dialect import dialect_named, dialect_of_path
from kvstet.dialects.request import Reasoning, Request, ToolChoice, unmarked
from kvstet.errors import InvalidRequest

CHAT, MESSAGES, RESPONSES = map(dialect_named, ("chat", "messages", "responses"))
OLD, MANUAL, NEW = "claude-3-5-sonnet-20241022", "claude-sonnet-4-5-20250929", "claude-opus-5"
MARK = {"type": "ephemeral"}


def messages_body(request: Request) -> dict[str, Any]:
    body = MESSAGES.write_request(request).body
    check_body("messages", body)
    return body


def chat_body(request: Request) -> dict[str, Any]:
    body = CHAT.write_request(request).body
    check_body("chat", body)
    return body


def responses_body(request: Request) -> dict[str, Any]:
    body = RESPONSES.write_request(request).body
    check_body("responses", body)
    return body


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "chat"),
        ("/openai/deployments/x/chat/completions?api-version=1", "chat"),
        ("/v1/messages?beta=true", "messages"),
        ("/v1/messages/count_tokens", "messages"),
        ("/v1/responses/", "responses"),
    ],
)
def test_a_path_tells_the_dialect(path: str, name: str) -> None:
    dialect = dialect_of_path(path)
    assert dialect is not None
    assert dialect.name == name


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/"])
def test_other_paths_tell_none(path: str) -> None:
    assert dialect_of_path(path) is None


def test_an_unknown_dialect_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="no dialect 'gemini'"):
        dialect_named("gemini")


def test_a_session_is_written_as_each_vendor_has_it() -> None:
    chat, messages, responses = chat_body(SESSION), messages_body(SESSION), responses_body(SESSION)
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert messages["system"] == "You are an agent."
    assert [turn["role"] for turn in messages["messages"]] == ["user", "assistant", "user"]
    last = messages["messages"][-1]["content"]
    assert [block["type"] for block in last] == ["tool_result", "tool_result", "text"]
    assert responses["instructions"] == "You are an agent."
    kinds = [item["type"] for item in responses["input"]]
    assert kinds == ["message", "message", *["function_call"] * 2, *["function_call_output"] * 2, "message"]


class TestMessages:
    def test_results_come_before_the_text_beside_them_and_in_their_order(self) -> None:
        body = messages_body(
            request(user("?"), assistant("", call("b"), call("a")), result("a", "1"), user("And?"), result("b", "2"))
        )
        blocks = body["messages"][-1]["content"]
        assert [block.get("tool_use_id", block.get("text")) for block in blocks] == ["a", "b", "And?"]

    def test_the_limit_is_that_of_the_generation_where_none_is_given(self) -> None:
        assert messages_body(request(user("?"), model=NEW))["max_tokens"] == 32_000
        assert messages_body(request(user("?"), model=OLD))["max_tokens"] == 8_192
        assert messages_body(request(user("?"), model=NEW, max_output_tokens=5))["max_tokens"] == 5

    @pytest.mark.parametrize("said", ["{not json", "[1, 2]", '"text"', "null", '{"a": 1'])
    def test_arguments_that_are_no_object_survive(self, said: str) -> None:
        asked = request(user("?"), assistant("", call("a", "read", said)), result("a", "no"))
        body = messages_body(asked)
        assert body["messages"][1]["content"][0]["input"] == {"_invalid_json": said}
        assert MESSAGES.read_request(body).messages == asked.messages

    def test_no_arguments_are_an_empty_object(self) -> None:
        body = messages_body(request(user("?"), assistant("", call("a", "read", "")), result("a", "x")))
        assert body["messages"][1]["content"][0]["input"] == {}

    def test_a_failed_result_keeps_its_mark(self) -> None:
        asked = request(user("?"), assistant("", call("a")), result("a", "gone", is_error=True), model=NEW)
        body = messages_body(asked)
        assert body["messages"][2]["content"][0]["is_error"] is True
        assert MESSAGES.read_request(body).messages == asked.messages

    def test_a_call_id_that_is_refused_is_replaced_alike_in_call_and_result(self) -> None:
        body = messages_body(
            request(user("?"), assistant("", call("functions.read:0")), result("functions.read:0", "x"))
        )
        (use,), (done,) = body["messages"][1]["content"], body["messages"][2]["content"]
        assert use["id"] == done["tool_use_id"]
        assert use["id"].startswith("functions_read_0_")

    def test_thinking_goes_back_with_its_signature_and_not_without(self) -> None:
        sealed = {"reasoning_content": "Hm.", "reasoning_details": [{**SIGNED, "text": "Hm."}]}
        signed = MESSAGES.write_request(request(user("?"), assistant("A", **sealed), user("!"), model=NEW))
        assert signed.body["messages"][1]["content"][0] == {
            "type": "thinking",
            "thinking": "Hm.",
            "signature": SIGNED["signature"],
        }
        assert signed.dropped == ()
        unsigned = MESSAGES.write_request(
            request(user("?"), assistant("A", reasoning_content="Hm."), user("!"), model=NEW)
        )
        assert unsigned.body["messages"][1]["content"] == "A"
        assert unsigned.dropped == ("messages.reasoning_content",)

    def test_thinking_goes_unsigned_to_other_vendors(self) -> None:
        body = messages_body(request(user("?"), assistant("A", reasoning_content="Hm."), user("!"), model="kimi-k3"))
        assert body["messages"][1]["content"][0] == {"type": "thinking", "thinking": "Hm.", "signature": ""}

    def test_redacted_thinking_goes_back_as_it_came(self) -> None:
        turns = [
            {"role": "user", "content": "?"},
            {
                "role": "assistant",
                "content": [{"type": "redacted_thinking", "data": "xyz"}, {"type": "text", "text": "A"}],
            },
            {"role": "user", "content": "!"},
        ]
        asked = MESSAGES.read_request({"model": NEW, "messages": turns})
        assert messages_body(asked)["messages"] == turns

    def test_thinking_between_texts_keeps_its_place(self) -> None:
        content = [
            {"type": "thinking", "thinking": "1", "signature": "s1"},
            {"type": "text", "text": "one"},
            {"type": "thinking", "thinking": "2", "signature": "s2"},
            {"type": "tool_use", "id": "a", "name": "read", "input": {}},
        ]
        turns = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]},
        ]
        asked = MESSAGES.read_request({"model": NEW, "messages": turns})
        assert [message["role"] for message in asked.messages] == ["user", "assistant", "assistant", "tool"]
        assert messages_body(asked)["messages"] == turns

    def test_a_system_message_stays_where_a_newer_model_takes_it(self) -> None:
        asked = request(system("s"), user("?"), system("The date has changed."), assistant("A"), user("!"), model=NEW)
        assert [turn["role"] for turn in messages_body(asked)["messages"]] == ["user", "system", "assistant", "user"]

    @pytest.mark.parametrize("model", [MANUAL, "deepseek-v4"])
    def test_a_system_message_is_a_reminder_for_others(self, model: str) -> None:
        asked = request(user("?"), system("The date has changed."), assistant("A"), user("!"), model=model)
        turn = messages_body(asked)["messages"][0]
        assert turn["role"] == "user"
        assert turn["content"][1]["text"] == "<system-reminder>\nThe date has changed.\n</system-reminder>"

    def test_a_system_message_that_stands_where_it_must_not_is_a_reminder(self) -> None:
        asked = request(user("?"), assistant("", call("a")), system("Now."), result("a", "x"), user("!"), model=NEW)
        turns = messages_body(asked)["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert [block["type"] for block in turns[-1]["content"]] == ["tool_result", "text", "text"]

    def test_a_system_message_between_two_of_the_user_is_a_reminder(self) -> None:
        turns = messages_body(request(user("?"), system("Now."), user("!"), model=NEW))["messages"]
        assert [turn["role"] for turn in turns] == ["user"]

    def test_a_conversation_begins_and_ends_with_the_user(self) -> None:
        turns = messages_body(request(assistant("Before."), model=NEW))["messages"]
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert messages_body(request(system("Only this."), model=NEW))["messages"][0]["role"] == "user"

    def test_blank_texts_are_left_out(self) -> None:
        turns = messages_body(request(user("?"), assistant(" \n", call("a")), result("a", ""), user("!")))["messages"]
        assert [block["type"] for block in turns[1]["content"]] == ["tool_use"]
        assert "content" not in turns[2]["content"][0]

    def test_sampling_is_left_out_for_models_that_refuse_it(self) -> None:
        asked = request(user("?"), temperature=1.5, top_p=0.5, model=NEW)
        assert MESSAGES.write_request(asked).dropped == ("temperature", "top_p")
        manual = MESSAGES.write_request(replace(asked, model=MANUAL))
        assert manual.body["temperature"] == 1.0
        assert manual.dropped == ("top_p",)
        assert messages_body(replace(asked, model="kimi-k3"))["top_p"] == 0.5

    @pytest.mark.parametrize(
        ("model", "reasoning", "thinking", "effort"),
        [
            (NEW, Reasoning("high"), {"type": "adaptive", "display": "summarized"}, "high"),
            (NEW, Reasoning("minimal"), {"type": "adaptive", "display": "summarized"}, "low"),
            (NEW, Reasoning("none"), {"type": "disabled"}, None),
            (NEW, Reasoning(), {"type": "adaptive", "display": "summarized"}, None),
            ("claude-opus-4-6", Reasoning("xhigh"), {"type": "adaptive", "display": "summarized"}, "high"),
            (MANUAL, Reasoning("medium"), {"type": "enabled", "budget_tokens": 5000}, None),
            (MANUAL, Reasoning("minimal"), {"type": "enabled", "budget_tokens": 1024}, None),
            (MANUAL, Reasoning(budget_tokens=50_000), {"type": "enabled", "budget_tokens": 9_999}, None),
        ],
    )
    def test_reasoning_is_asked_for_as_the_generation_wants_it(
        self, model: str, reasoning: Reasoning, thinking: dict[str, Any], effort: str | None
    ) -> None:
        body = messages_body(request(user("?"), model=model, reasoning=reasoning, max_output_tokens=10_000))
        assert body["thinking"] == thinking
        assert body.get("output_config", {}).get("effort") == effort

    def test_reasoning_is_dropped_where_it_would_be_refused(self) -> None:
        old = MESSAGES.write_request(request(user("?"), model=OLD, reasoning=Reasoning("high")))
        forced = MESSAGES.write_request(
            request(user("?"), tools=[TOOL], model=NEW, reasoning=Reasoning("high"), tool_choice=ToolChoice("required"))
        )
        unsigned = MESSAGES.write_request(
            request(user("?"), assistant("", call("a")), result("a", "x"), model=MANUAL, reasoning=Reasoning("high"))
        )
        for written in (old, forced, unsigned):
            assert "thinking" not in written.body
            assert "reasoning" in written.dropped

    @pytest.mark.parametrize(
        ("choice", "written"),
        [
            (ToolChoice("auto"), {"type": "auto"}),
            (ToolChoice("required"), {"type": "any"}),
            (ToolChoice("none"), {"type": "none"}),
            (ToolChoice("required", ("read",)), {"type": "tool", "name": "read"}),
        ],
    )
    def test_a_tool_choice_is_written_and_read(self, choice: ToolChoice, written: dict[str, Any]) -> None:
        body = messages_body(request(user("?"), tools=[TOOL], tool_choice=choice))
        assert body["tool_choice"] == written
        assert MESSAGES.read_request(body).terms.tool_choice == choice

    def test_parallel_calls_can_be_forbidden(self) -> None:
        body = messages_body(request(user("?"), tools=[TOOL], allows_parallel_calls=False))
        assert body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}

    def test_tools_of_anthropics_own_are_named_and_left_out(self) -> None:
        own = {"type": "web_search_20250305", "name": "web_search"}
        asked = MESSAGES.read_request({"messages": [{"role": "user", "content": "?"}], "tools": [own]})
        assert asked.tools == ()
        assert asked.dropped == ("tools.web_search_20250305",)

    def test_a_pdf_and_an_image_by_its_address_survive(self) -> None:
        blocks = [
            {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        ]
        asked = MESSAGES.read_request({"model": NEW, "messages": [{"role": "user", "content": blocks}]})
        assert messages_body(asked)["messages"][0]["content"] == blocks
        assert chat_body(asked)["messages"][0]["content"][0]["file"]["file_data"].startswith("data:application/pdf;")


class TestChat:
    def test_the_limit_has_the_name_that_the_server_knows(self) -> None:
        assert chat_body(request(user("?"), model="gpt-5.6", max_output_tokens=9))["max_completion_tokens"] == 9
        assert chat_body(request(user("?"), model="openai/o3", max_output_tokens=9))["max_completion_tokens"] == 9
        assert chat_body(request(user("?"), model="qwen3", max_output_tokens=9))["max_tokens"] == 9
        assert chat_body(request(user("?"), model="gpt-oss-120b", max_output_tokens=9))["max_tokens"] == 9

    def test_a_users_name_that_is_too_long_is_a_digest(self) -> None:
        body = chat_body(request(user("?"), user="u" * 200))
        assert len(body["user"]) == 64
        assert responses_body(request(user("?"), user="u" * 200))["user"] == body["user"]
        assert chat_body(request(user("?"), user="me"))["user"] == "me"

    def test_usage_is_asked_for_with_every_stream(self) -> None:
        body = chat_body(request(user("?"), is_streamed=True))
        assert body["stream_options"] == {"include_usage": True}

    def test_an_image_in_a_result_moves_behind_the_results(self) -> None:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
        shown = [{"type": "text", "text": "Here."}, picture]
        asked = request(
            user("?"), assistant("", call("a"), call("b")), result("a", shown), result("b", "x"), assistant("I see.")
        )
        written = chat_body(asked)["messages"]
        assert [message["role"] for message in written] == ["user", "assistant", "tool", "tool", "user", "assistant"]
        assert written[2]["content"] == "Here."
        assert written[4]["content"][1] == picture
        assert messages_body(asked)["messages"][2]["content"][0]["content"][1]["type"] == "image"
        assert responses_body(asked)["input"][3]["output"][1]["type"] == "input_image"

    def test_a_failed_result_says_so_once(self) -> None:
        asked = request(
            user("?"),
            assistant("", call("a"), call("b")),
            result("a", "not found", is_error=True),
            result("b", "Error: not found", is_error=True),
        )
        assert [message["content"] for message in chat_body(asked)["messages"][2:]] == ["Error: not found"] * 2

    def test_results_stand_right_behind_all_calls_of_a_turn(self) -> None:
        asked = request(
            user("?"),
            assistant("One.", call("a"), reasoning_content="1"),
            assistant("Two.", call("b"), reasoning_content="2"),
            result("a", "x"),
            result("b", "y"),
        )
        written = chat_body(asked)["messages"]
        assert [message["role"] for message in written] == ["user", "assistant", "tool", "tool"]
        assert written[1]["content"] == "One.\n\nTwo."
        assert [called["id"] for called in written[1]["tool_calls"]] == ["a", "b"]
        assert written[1]["reasoning_content"] == "1\n\n2"

    def test_a_deferred_tool_is_there_once_it_was_found_and_at_the_end(self) -> None:
        deferred, other, plain = tool("found", defer_loading=True), tool("other", defer_loading=True), tool("z")
        search = [user("?"), assistant("", call("a", "search", "{}"))]
        found = result("a", [{"type": "tool_reference", "tool_name": "found"}])
        before = chat_body(request(*search, tools=[deferred, other, plain]))
        after = chat_body(request(*search, found, tools=[deferred, other, plain]))
        assert [entry["function"]["name"] for entry in before["tools"]] == ["z"]
        assert [entry["function"]["name"] for entry in after["tools"]] == ["z", "found"]
        assert after["messages"][-1]["content"] == "The tool found can be called from here on."

    def test_a_name_that_is_too_long_is_cut_the_same_way_everywhere(self) -> None:
        long = "mcp__" + "server_" * 12 + "tool"
        asked = request(user("?"), assistant("", call("a", long)), result("a", "x"), tools=[tool(long)])
        body = chat_body(asked)
        name = body["tools"][0]["function"]["name"]
        assert len(name) == 64
        assert body["messages"][1]["tool_calls"][0]["function"]["name"] == name
        assert responses_body(asked)["input"][1]["name"] == name

    def test_reasoning_is_read_from_openrouters_field(self) -> None:
        body = {
            "messages": [{"role": "assistant", "content": "A", "reasoning": "Hm."}],
            "reasoning": {"max_tokens": 2000},
        }
        asked = CHAT.read_request(body)
        assert asked.messages[0]["reasoning_content"] == "Hm."
        assert asked.terms.reasoning == Reasoning(budget_tokens=2000)

    @pytest.mark.parametrize(
        "switch", [{"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}]
    )
    def test_reasoning_is_switched_off_in_any_servers_way(self, switch: dict[str, Any]) -> None:
        assert CHAT.read_request({"messages": [user("?")], **switch}).terms.reasoning == Reasoning("none")

    def test_sampling_of_reasoning_models_is_left_out(self) -> None:
        asked = request(user("?"), temperature=0.5, model="gpt-5.6")
        assert CHAT.write_request(asked).dropped == ("temperature",)
        assert chat_body(replace(asked, model="gpt-4.1"))["temperature"] == 0.5

    def test_several_allowed_tools_are_written_as_openai_has_them(self) -> None:
        choice = ToolChoice("required", ("a", "b"))
        body = chat_body(request(user("?"), tools=[tool("a"), tool("b")], tool_choice=choice))
        assert CHAT.read_request(body).terms.tool_choice == choice

    def test_unknown_fields_are_named(self) -> None:
        body = {
            "messages": [{"role": "user", "content": [{"type": "input_audio"}, {"type": "text", "text": "?"}]}],
            "logit_bias": {"1": 2},
            "n": 1,
            "seed": None,
        }
        assert CHAT.read_request(body).dropped == ("logit_bias", "messages.content.input_audio")


class TestResponses:
    def test_a_custom_tool_is_a_function_elsewhere_and_itself_here(self) -> None:
        custom = {
            "type": "custom",
            "name": "apply_patch",
            "description": "Patches.",
            "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
        }
        given = [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]},
            {"type": "custom_tool_call", "call_id": "a", "name": "apply_patch", "input": '*** "Begin"'},
            {"type": "custom_tool_call_output", "call_id": "a", "output": "Done."},
        ]
        asked = RESPONSES.read_request({"model": "m", "input": given, "tools": [custom]})
        chat = chat_body(asked)
        assert chat["tools"][0]["function"]["parameters"]["required"] == ["input"]
        assert "start: x" in json.dumps(chat["tools"])
        called = chat["messages"][1]["tool_calls"][0]["function"]
        assert json.loads(called["arguments"]) == {"input": '*** "Begin"'}
        back = responses_body(asked)
        assert (back["input"], back["tools"]) == (given, [custom])

    def test_encrypted_reasoning_goes_back_as_it_came(self) -> None:
        reasoning = {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "Hm."}],
            "encrypted_content": "gAAA",
        }
        given = [{"role": "user", "content": "?"}, reasoning, {"role": "assistant", "content": "A"}]
        body = responses_body(RESPONSES.read_request({"model": "gpt-5.6", "input": given}))
        assert body["input"][1] == reasoning

    def test_reasoning_that_openai_did_not_seal_is_left_out_for_its_models_only(self) -> None:
        asked = request(user("?"), assistant("A", reasoning_content="Hm."), user("!"), model="gpt-5.6")
        assert RESPONSES.write_request(asked).dropped == ("messages.reasoning_content",)
        local = responses_body(replace(asked, model="local"))["input"]
        assert local[1]["summary"] == [{"type": "summary_text", "text": "Hm."}]

    def test_an_anthropic_seal_is_no_seal_here(self) -> None:
        sealed = {"reasoning_content": "Hm.", "reasoning_details": [{**SIGNED, "text": "Hm."}]}
        written = RESPONSES.write_request(request(user("?"), assistant("A", **sealed), model="gpt-5.6"))
        assert [item["type"] for item in written.body["input"]] == ["message", "message"]
        assert "messages.reasoning_content" in written.dropped
        openai = {"reasoning_content": "Hm.", "reasoning_details": [{**ENCRYPTED, "summary": "Hm."}]}
        assert messages_body(request(user("?"), assistant("A", **openai), user("!"), model=NEW))["messages"][1] == {
            "role": "assistant",
            "content": "A",
        }

    @pytest.mark.parametrize("field", ["previous_response_id", "conversation", "prompt"])
    def test_what_only_the_vendor_keeps_is_refused(self, field: str) -> None:
        with pytest.raises(InvalidRequest) as caught:
            RESPONSES.read_request({"input": "?", field: "x"})
        assert caught.value.param == field

    def test_an_item_that_only_the_vendor_can_read_is_refused(self) -> None:
        with pytest.raises(InvalidRequest, match=r"input\[1\]"):
            RESPONSES.read_request({"input": [{"role": "user", "content": "?"}, {"type": "compaction"}]})

    def test_a_schema_is_asked_for_in_every_dialect(self) -> None:
        form = {"type": "json_schema", "name": "reply", "schema": {"type": "object"}}
        asked = RESPONSES.read_request({"model": NEW, "input": "?", "text": {"format": form, "verbosity": "low"}})
        assert chat_body(asked)["response_format"]["json_schema"]["schema"] == {"type": "object"}
        assert messages_body(asked)["output_config"]["format"] == {"type": "json_schema", "schema": {"type": "object"}}
        assert responses_body(asked)["text"] == {"format": form, "verbosity": "low"}

    def test_encrypted_reasoning_is_asked_for_where_the_model_reasons(self) -> None:
        assert "include" not in responses_body(request(user("?"), model="gpt-4.1"))
        assert responses_body(request(user("?"), model="gpt-5.6"))["include"] == ["reasoning.encrypted_content"]

    def test_what_the_api_does_not_know_is_named(self) -> None:
        asked = request(user([{"type": "text", "text": "?", "cache_control": MARK}]), stop=("x",), top_k=3)
        assert RESPONSES.write_request(asked).dropped == ("cache_control", "stop", "top_k")


def test_cache_marks_survive_between_chat_and_messages() -> None:
    body = {
        "model": NEW,
        "max_tokens": 10,
        "system": [{"type": "text", "text": "s", "cache_control": MARK}],
        "tools": [{"name": "read", "input_schema": {"type": "object"}, "cache_control": MARK}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "?"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "read", "input": {}}]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x", "cache_control": MARK}],
            },
        ],
    }
    chat = CHAT.write_request(MESSAGES.read_request(body))
    assert json.dumps(chat.body).count("cache_control") == 3
    back = MESSAGES.write_request(CHAT.read_request(chat.body)).body
    assert back["system"] == body["system"]
    assert back["tools"][0]["cache_control"] == MARK
    assert back["messages"][-1]["content"][0]["cache_control"] == MARK


def test_openais_own_breakpoints_are_cache_marks() -> None:
    point = {"mode": "explicit", "ttl": "12h"}
    part = {"type": "text", "text": "s", "prompt_cache_breakpoint": point}
    asked = CHAT.read_request({"messages": [{"role": "system", "content": [part]}, user("?")]})
    assert asked.messages[0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_marks_can_be_taken_out() -> None:
    marked = {"type": "text", "text": "?", "cache_control": MARK}
    asked = request(user([marked]), assistant("A"), tools=[{**TOOL, "cache_control": MARK}])
    bare = unmarked(asked)
    assert "cache_control" not in repr((bare.messages, bare.tools))
    assert bare.dropped == ("cache_control",)
    assert unmarked(bare) is bare
