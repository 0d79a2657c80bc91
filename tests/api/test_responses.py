"""Through the official SDK, as clients do it, and event by event."""

from __future__ import annotations

import asyncio
import json
import lzma
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.api.anthropic_harness import calling, thinking
from tests.api.harness import as_new, eventually, reply, tokens_of
from tests.api.responses_harness import AGENTS, LS, PATCH, ResponsesSite, events_in, running_responses, types_of
from tests.api.test_reruns import Rerun

from kvstet.engine.fake_client import Hang, Refuse, Say, ScriptedEngine
from kvstet.errors import DeadlineExceeded, EngineCrashed, KvstetError, QueueFull
from kvstet.types import DEFAULT_SAMPLING, Reuse

PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
NUM_PROMPT = len(tokens_of(PROMPT))
FULL_REPLY = thinking("Look\nfirst.") + "I look." + calling("ls", {"path": "ü"}) + calling("ls", {})
CODEX = Path(__file__).parents[1] / "data/traces/codex-requests.jsonl.xz"

MESSAGE_EVENTS = [
    "output_item.added",
    "content_part.added",
    "output_text.delta",
    "output_text.done",
    "content_part.done",
    "output_item.done",
]
REASONING_EVENTS = [
    "output_item.added",
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
]
CALL_EVENTS = [
    "output_item.added",
    "function_call_arguments.delta",
    "function_call_arguments.done",
    "output_item.done",
]


@pytest.fixture(scope="module")
def shared_responses_site() -> Iterator[ResponsesSite]:
    with running_responses(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_responses_site: ResponsesSite) -> ResponsesSite:
    """A server whose model says "Hello."; its engine is as good as new."""
    return as_new(shared_responses_site)


def check_full_reply(output: list[Any]) -> None:
    """The items must say what FULL_REPLY says."""
    thought, message, first, second = output
    assert [part.text for part in thought.summary] == ["Look\nfirst."]
    assert (message.role, message.status, message.content[0].text) == ("assistant", "completed", "I look.")
    assert (first.name, first.arguments, first.status) == ("ls", '{"path": "\\u00fc"}', "completed")
    assert (second.name, second.arguments) == ("ls", "{}")
    assert first.call_id.startswith("call_")
    assert first.call_id != second.call_id
    assert [item.id.split("_")[0] for item in output] == ["rs", "msg", "fc", "fc"]
    assert len({item.id for item in output}) == 4


def test_a_question_is_answered(site: ResponsesSite):
    with site.sdk() as client:
        answer = client.responses.create(model="any-name", input="Hi")
    assert answer.output_text == "Hello."
    assert (answer.status, answer.model, answer.object) == ("completed", "any-name", "response")
    assert (answer.error, answer.incomplete_details) == (None, None)
    assert answer.id.startswith("resp_")
    assert site.prompt == PROMPT


def test_a_stream_tells_the_same(site: ResponsesSite):
    with site.sdk() as client, client.responses.stream(model="any-name", input="Hi") as stream:
        events = list(stream)
        answer = stream.get_final_response()
    assert answer.output_text == "Hello."
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello."


def test_the_async_sdk_works_with_and_without_streaming(site: ResponsesSite):
    async def both() -> tuple[str, str]:
        async with site.async_sdk() as client:
            answer = await client.responses.create(model="m", input="Hi")
            stream = await client.responses.create(model="m", input="Hi", stream=True)
            parts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            return answer.output_text, "".join(parts)

    assert asyncio.run(both()) == ("Hello.", "Hello.")


def test_a_reply_has_an_item_for_all_that_it_says(site: ResponsesSite):
    site.engine.script = reply(FULL_REPLY)
    with site.sdk() as client:
        answer = client.responses.create(model="m", input="Hi", tools=[LS])
        stream = list(client.responses.create(model="m", input="Hi", tools=[LS], stream=True))
    check_full_reply(answer.output)
    check_full_reply(stream[-1].response.output)
    check_full_reply([event.item for event in stream if event.type == "response.output_item.done"])


def test_events_come_in_the_apis_order_with_their_places(site: ResponsesSite):
    site.engine.script = reply(FULL_REPLY, token_seconds=0.001)
    events = site.events(tools=[LS])
    items = [*REASONING_EVENTS, *MESSAGE_EVENTS, *CALL_EVENTS, *CALL_EVENTS]
    assert types_of(events) == ["created", "in_progress", *items, "completed"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    output = events[-1]["response"]["output"]
    for event in events[2:-1]:
        item = event.get("item") or {"id": event["item_id"]}
        assert item["id"] == output[event["output_index"]]["id"]
    added = [event["item"]["status"] for event in events if event["type"] == "response.output_item.added"]
    assert added == ["in_progress"] * 4


@pytest.mark.parametrize(
    ("kind", "index", "whole"),
    [
        ("reasoning_summary_text", 0, {"text": "Look\nfirst."}),
        ("output_text", 1, {"text": "I look."}),
        ("function_call_arguments", 2, {"arguments": '{"path": "\\u00fc"}'}),
    ],
)
def test_deltas_add_up_to_what_is_done(site: ResponsesSite, kind: str, index: int, whole: dict[str, str]):
    site.engine.script = reply(FULL_REPLY, token_seconds=0.001)
    events = [event for event in site.events(tools=[LS]) if event.get("output_index") == index]
    deltas = [event["delta"] for event in events if event["type"] == f"response.{kind}.delta"]
    (done,) = (event for event in events if event["type"] == f"response.{kind}.done")
    assert len(deltas) > 3
    (text,) = whole.values()
    assert "".join(deltas) == text
    assert whole.items() <= done.items()


def test_a_stream_begins_before_the_prompt_is_computed():
    with running_responses(ScriptedEngine(Hang())) as site, site.sdk() as client:
        stream = client.responses.create(model="m", input="Hi", stream=True)
        assert [next(stream).type, next(stream).type] == ["response.created", "response.in_progress"]
        stream.close()


def test_the_response_says_what_was_asked(site: ResponsesSite):
    asked = {
        "instructions": "Be brief.",
        "max_output_tokens": 100,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "key",
        "reasoning": {"effort": "low", "summary": "auto"},
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": 1}}, "verbosity": "low"},
        "tool_choice": {"type": "function", "name": "ls"},
        "tools": [LS, {"type": "web_search"}],
        "top_p": 0.9,
        "truncation": "auto",
        "user": "me",
    }
    answer = site.ask(**asked, service_tier="flex", stream_options={"include_obfuscation": True}, unknown=[1])
    assert {name: answer[name] for name in asked} == asked
    created = site.events(**asked)[0]["response"]
    assert {name: created[name] for name in asked} == asked


def test_a_request_that_says_nothing_has_the_defaults(site: ResponsesSite):
    answer = site.ask()
    assert {name: answer[name] for name in ("tools", "tool_choice", "text", "truncation", "store", "metadata")} == {
        "tools": [],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "truncation": "disabled",
        "store": True,
        "metadata": {},
    }
    assert site.engine.requests[0].sampling == DEFAULT_SAMPLING


def test_usage_and_costs_are_told(site: ResponsesSite):
    site.engine.script = reply(thinking("Hm.") + "Hello.", reuse=Reuse(8, 2, 0, NUM_PROMPT - 10, 12))
    answer = site.ask()
    num_new = len(thinking("Hm.") + "Hello.") + 1
    assert answer["usage"] == {
        "input_tokens": NUM_PROMPT,
        "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
        "output_tokens": num_new,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": NUM_PROMPT + num_new,
    }
    assert answer["kvstet"]["reused"] == 8
    assert answer["timings"]["cache_n"] == 10
    last = site.events()[-1]["response"]
    assert last["usage"] == answer["usage"]
    assert {"kvstet", "timings"} <= set(last)


def test_sampling_follows_the_request(site: ResponsesSite):
    site.ask(temperature=0, top_p=0.5, top_k=7, min_p=0.1, seed=42)
    wanted = replace(DEFAULT_SAMPLING, temperature=0.0, top_p=0.5, top_k=7, min_p=0.1, seed=42)
    assert site.engine.requests[0].sampling == wanted


@pytest.mark.parametrize(
    ("form", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "root ::= ['type']"),
        ({"type": "json_schema", "name": "x", "schema": {"const": 1}}, "root ::= ['const']"),
    ],
)
def test_a_text_format_becomes_a_grammar(site: ResponsesSite, form: dict[str, Any], grammar: str | None):
    site.ask(text={"format": form})
    assert site.engine.requests[0].sampling.grammar == grammar


def test_effort_reaches_the_template(site: ResponsesSite):
    site.ask(reasoning={"effort": "low", "summary": None})
    assert "[effort low]" in site.prompt
    site.ask(reasoning={"effort": "none"})
    assert "[thinking False]" in site.prompt


def test_a_token_limit_makes_a_response_incomplete(site: ResponsesSite):
    for answer in (site.ask(max_output_tokens=3), site.events(max_output_tokens=3)[-1]["response"]):
        assert answer["status"] == "incomplete"
        assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
        assert answer["output"][0]["status"] == "incomplete"
        assert answer["output"][0]["content"][0]["text"] == "Hel"
    assert types_of(site.events(max_output_tokens=3))[-1] == "incomplete"


def test_a_stop_string_ends_the_reply(site: ResponsesSite):
    answer = site.ask(stop=["lo"])
    assert (answer["status"], answer["output"][0]["content"][0]["text"]) == ("completed", "Hel")


def test_a_call_that_was_cut_off_is_incomplete(site: ResponsesSite):
    site.engine.script = Say(tokens_of(calling("ls", '{"path": "a')[:-1]), reason="length")
    (item,) = site.ask(tools=[LS])["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"path": "a')


def test_a_reply_that_says_nothing_has_no_items(site: ResponsesSite):
    site.engine.script = reply("")
    assert site.ask()["output"] == []
    assert types_of(site.events()) == ["created", "in_progress", "completed"]


def test_a_custom_tools_input_is_plain_text(site: ResponsesSite):
    text = 'say "hi"\n\\ü😀'
    site.engine.script = reply(calling("apply_patch", {"input": text}), token_seconds=0.001)
    with site.sdk() as client:
        (item,) = client.responses.create(model="m", input="Hi", tools=[PATCH]).output
    assert (item.type, item.name, item.input) == ("custom_tool_call", "apply_patch", text)
    assert item.call_id.startswith("call_")
    events = site.events(tools=[PATCH])
    assert types_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert len(deltas) == len(text)
    assert "".join(deltas) == text
    assert events[-3]["input"] == text


def test_a_tool_of_a_namespace_is_called_by_both_its_names(site: ResponsesSite):
    site.engine.script = reply(calling("agents__spawn", {}) + calling("spawn", {}))
    items = site.ask(tools=[AGENTS])["output"]
    assert [(item["namespace"], item["name"]) for item in items] == [("agents", "spawn")] * 2
    assert '"name": "agents__spawn"' in site.prompt


def test_a_tool_search_is_left_to_the_client(site: ResponsesSite):
    site.engine.script = reply(calling("tool_search", {"query": "files"}))
    tools = [{"type": "tool_search", "execution": "client"}, {**LS, "defer_loading": True}]
    (item,) = site.ask(tools=tools)["output"]
    assert (item["type"], item["execution"], item["arguments"]) == ("tool_search_call", "client", {"query": "files"})
    assert '"ls"' not in site.prompt


def test_no_tools_are_called_where_none_may_be(site: ResponsesSite):
    site.ask(tools=[LS], tool_choice="none")
    assert '"name": "ls"' in site.prompt


def test_hosted_tools_are_ignored(site: ResponsesSite):
    site.ask(tools=[{"type": "web_search"}, {"type": "mcp", "server_label": "x"}, {"type": "local_shell"}])
    assert site.prompt == PROMPT


def test_reasoning_comes_back_from_its_seal_alone(site: ResponsesSite):
    site.engine.script = reply(thinking("Déjà\nvu.") + "Yes.")
    with site.sdk() as client:
        answer = client.responses.create(
            model="m", input="Hi", include=["reasoning.encrypted_content"], store=False, reasoning={"summary": "auto"}
        )
    thought, message = (item.model_dump(exclude_none=True) for item in answer.output)
    site.ask(
        [{"role": "user", "content": "Hi"}, {**thought, "summary": []}, message, {"role": "user", "content": "So?"}]
    )
    assert "<think>Déjà\nvu.</think>Yes.<|im_end|>" in site.prompt


def test_no_seal_is_sent_unasked(site: ResponsesSite):
    site.engine.script = reply(thinking("Hm."))
    assert "encrypted_content" not in site.ask()["output"][0]


def test_a_conversation_goes_on_from_a_stored_response(site: ResponsesSite):
    site.engine.scripts.append(reply(thinking("Hm.") + "One." + calling("ls", {})))
    with site.sdk() as client:
        first = client.responses.create(model="m", input="Hi", instructions="Be brief.", tools=[LS])
        assert "<|im_start|>system\nBe brief.<|im_end|>" in site.prompt
        call_id = first.output[-1].call_id
        second = client.responses.create(
            model="m",
            previous_response_id=first.id,
            input=[{"type": "function_call_output", "call_id": call_id, "output": "a.txt"}],
            tools=[LS],
        )
        third = client.responses.create(model="m", previous_response_id=second.id, input="And?", stream=True)
        *_, last = third
    assert "Be brief." not in site.prompt
    assert site.prompt == (
        "<|im_start|>user\nHi<|im_end|>\n"
        f"<|im_start|>assistant\n<think>Hm.</think>One.<call {call_id}>ls {{}}</call><|im_end|>\n"
        f"<|im_start|>tool\n( {call_id})a.txt<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert last.response.previous_response_id == second.id


def test_a_stored_response_is_had_again_and_deleted(site: ResponsesSite):
    with site.sdk() as client:
        answer = client.responses.create(model="m", input="Hi")
        again = client.responses.retrieve(answer.id)
        assert again.model_dump() == answer.model_dump()
        client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            client.responses.retrieve(answer.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.input_items.list(answer.id)
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="And?", previous_response_id=answer.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_what_is_streamed_is_stored_too(site: ResponsesSite):
    last = site.events()[-1]["response"]
    assert site.get(f"/responses/{last['id']}").json() == last
    with site.http() as client:
        gone = client.delete(f"/v1/responses/{last['id']}").json()
    assert gone == {"id": last["id"], "object": "response", "deleted": True}


def test_what_is_not_to_be_stored_is_not(site: ResponsesSite):
    id = site.ask(store=False)["id"]
    assert site.get(f"/v1/responses/{id}").status_code == 404
    assert site.events(store=False)[-1]["response"]["store"] is False


def test_input_items_are_listed_in_pages(site: ResponsesSite):
    first = site.ask([{"role": "user", "content": text} for text in "abc"])
    with site.sdk() as client:
        second = client.responses.create(model="m", input="d", previous_response_id=first["id"])
        newest = client.responses.input_items.list(second.id, limit=2)
        texts = [item.content[0].text for item in client.responses.input_items.list(second.id, order="asc", limit=2)]
    assert [item.content[0].text for item in newest.data] == ["d", "Hello."]
    assert newest.has_more
    assert texts == ["a", "b", "c", "Hello.", "d"]
    path = f"/v1/responses/{second.id}/input_items"
    assert site.get(f"{path}?after=nowhere").status_code == 400
    assert site.get(f"{path}?limit=0").status_code == 400
    assert site.get(f"{path}?order=up").status_code == 400


def test_items_are_referred_to_by_their_ids(site: ResponsesSite):
    site.engine.script = reply("Forty-two.")
    said = site.ask()["output"][0]["id"]
    site.ask([{"type": "item_reference", "id": said}, {"role": "user", "content": "Why?"}])
    assert "<|im_start|>assistant\nForty-two.<|im_end|>\n<|im_start|>user\nWhy?" in site.prompt
    assert "not found" in site.refused([{"type": "item_reference", "id": "msg_1"}])["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long_is_a_400(site: ResponsesSite, stream: bool):
    with site.sdk() as client, pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        client.responses.create(model="m", input="x" * 5000, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "input")
    assert site.engine.requests == []


def test_truncation_drops_the_oldest_turns_and_keeps_the_head(site: ResponsesSite):
    turns: list[dict[str, Any]] = [{"role": "developer", "content": "Be brief."}]
    for number in range(6):
        turns += [
            {"role": "user", "content": f"{number}" + "x" * 700},
            {"type": "function_call", "call_id": f"c{number}", "name": "ls", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{number}", "output": f"out {number} " + "y" * 300},
        ]
    site.ask(turns, truncation="auto")
    assert site.prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>")
    assert "out 5" in site.prompt
    assert "out 0" not in site.prompt
    kept = len(site.engine.requests[0].tokens)
    assert 4096 - 1100 < kept < 4096
    first_result = site.prompt.index("<|im_start|>tool")
    assert "<call" in site.prompt[:first_result]
    assert site.refused([*turns, {"role": "user", "content": "z" * 5000}], truncation="auto")["code"] == (
        "context_length_exceeded"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFull("Too many wait."), 429),
        (EngineCrashed("It died."), 503),
        (DeadlineExceeded("Too late."), 504),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_at_once_is_a_plain_error(
    site: ResponsesSite, error: KvstetError, status: int, stream: bool
):
    site.engine.script = Refuse(error)
    response = site.post("/v1/responses", {"input": "Hi", "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["message"] == str(error)


def test_a_stream_that_breaks_off_says_so(site: ResponsesSite):
    site.engine.script = Say(tokens_of("Hel"), error=EngineCrashed("It died."), token_seconds=0.005)
    events = site.events()
    assert types_of(events)[-2:] == ["error", "failed"]
    failed = events[-1]["response"]
    assert failed["error"] == {"code": "engine_crashed", "message": "It died."}
    assert failed["output"][0]["content"][0]["text"] == "Hel"
    assert site.get(f"/v1/responses/{failed['id']}").status_code == 404
    with site.sdk() as client, pytest.raises(openai.APIError, match=r"It died\."):
        list(client.responses.create(model="m", input="Hi", stream=True))


def test_nothing_is_left_of_a_try_that_was_begun_anew(site: ResponsesSite):
    site.engine.script = Rerun(thinking("Hm.") + "Wrong H", "ello.", 0.02)
    (message,) = site.ask()["output"]
    assert message["content"][0]["text"] == "ello."


def test_a_client_that_hangs_up_ends_the_work():
    with running_responses(ScriptedEngine(Say(tokens_of("x" * 10_000), token_seconds=0.005))) as site:
        with site.sdk() as client:
            stream = client.responses.create(model="m", input="Hi", stream=True)
            for event in stream:
                if event.type == "response.output_text.delta":
                    break
            stream.close()
        assert eventually(lambda: len(site.engine.cancelled) == 1)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "alien", "content": "Hi"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input[0].type"),
        ({"input": [{"type": ["x"]}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": 7}]}, "input[0].output"),
        ({"input": [{"type": "reasoning", "summary": [{"type": "summary_text"}]}]}, "input[0].summary[0].text"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0]"),
        ({"input": [{"type": "tool_search_output", "tools": 5}]}, "input[0].tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [{"name": "x"}]}, "tools[0].type"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name"),
        ({"tools": [{"type": "function", "name": "x", "parameters": 5}]}, "tools[0].parameters"),
        ({"tool_choice": {"type": "function", "name": "rm"}, "tools": [LS]}, "tool_choice"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "rm"}]}},
            "tool_choice",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"temperature": -1}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "some"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_used_is_a_400_that_names_it(
    site: ResponsesSite, fields: dict[str, Any], param: str, stream: bool
):
    response = site.post("/v1/responses", {"input": "Hi", "stream": stream, **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert site.engine.requests == []


def test_all_that_codex_sent_is_understood(site: ResponsesSite):
    site.engine.info = replace(site.engine.info, context_length=10**6)
    bodies = lzma.decompress(CODEX.read_bytes()).decode().split("\n")
    assert len(bodies) == 26
    for body in bodies:
        response = site.post("/v1/responses", body.encode())
        assert response.status_code == 200, response.text
        events = events_in(response.text)
        assert types_of(events) == ["created", "in_progress", *MESSAGE_EVENTS, "completed"]
        assert len(site.prompt) > 20_000


def test_codexs_conversation_grows_only_at_its_end(site: ResponsesSite):
    site.engine.info = replace(site.engine.info, context_length=10**6)
    bodies = [json.loads(body) for body in lzma.decompress(CODEX.read_bytes()).decode().split("\n")[:4]]
    prompts: list[str] = []
    for body in bodies:
        site.post("/v1/responses", body)
        # The tools stand behind the messages in the template of these tests.
        prompts.append(site.prompt.split("<|im_end|>\n[")[0])
    assert all(longer.startswith(prompt) for prompt, longer in pairwise(prompts))
    assert prompts[1].count("<|im_start|>assistant") == 1
    assert "multi_agent_v1__spawn_agent" in site.prompt
