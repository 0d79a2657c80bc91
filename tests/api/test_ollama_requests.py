"""Ollama's dialect: how its requests are understood, and which are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.anthropic_harness import MessagesSite, running_messages
from tests.api.harness import as_new
from tests.api.ollama_harness import USER, WEATHER, chat, error_of, generate

from kvstet.engine.fake_client import ScriptedEngine
from kvstet.types import DEFAULT_SAMPLING, Sampling


@pytest.fixture(scope="module")
def shared_site() -> Iterator[MessagesSite]:
    with running_messages(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_site: MessagesSite) -> MessagesSite:
    return as_new(shared_site)


def sampling_of(site: MessagesSite, **fields: Any) -> Sampling:
    chat(site, **fields)
    return site.engine.requests[-1].sampling


def refusal(site: MessagesSite, path: str, **fields: Any) -> str:
    """Why a request is refused, which must have asked nothing of the engine."""
    status, message = error_of(site.post(path, fields))
    assert status == 400
    assert site.engine.requests == []
    return message


def test_options_choose_tokens(site: MessagesSite):
    options = {
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.7,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repeat_penalty": 1.1,
        "repeat_last_n": 33,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 42,
    }
    assert sampling_of(site, options=options | {"num_ctx": 2048, "num_gpu": 1, "mirostat": 0}) == Sampling(**options)
    assert sampling_of(site) == DEFAULT_SAMPLING
    assert sampling_of(site, options=None) == DEFAULT_SAMPLING


@pytest.mark.parametrize(("asked", "limit"), [(5, 5), (-1, None), (-2, None), (0, None), (None, None)])
def test_num_predict_limits_the_reply(site: MessagesSite, asked: int | None, limit: int | None):
    chat(site, options={"num_predict": asked})
    assert site.engine.requests[0].max_new_tokens == limit


@pytest.mark.parametrize("stop", ["lo", ["", "lo", "lo"]])
def test_stop_strings_may_be_one_or_many(site: MessagesSite, stop: object):
    assert chat(site, options={"stop": stop})["message"]["content"] == "Hel"


@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [
        ("json", "root ::= ['type']"),
        ({"type": "object", "properties": {}}, "root ::= ['properties', 'type']"),
        ({}, "root ::= []"),
        ("", None),
        (None, None),
    ],
)
def test_a_format_is_a_grammar(site: MessagesSite, wanted: object, grammar: str | None):
    assert sampling_of(site, format=wanted).grammar == grammar
    generate(site, format=wanted)
    assert site.engine.requests[-1].sampling.grammar == grammar


@pytest.mark.parametrize(
    ("think", "shown"),
    [
        (None, ""),
        (True, "[thinking True]"),
        (False, "[thinking False]"),
        ("high", "[effort high][thinking True]"),
        ("none", "[effort none][thinking False]"),
    ],
)
def test_thinking_is_asked_of_the_template(site: MessagesSite, think: object, shown: str):
    chat(site, think=think)
    assert site.prompt.endswith(f"Hi<|im_end|>\n{shown}<|im_start|>assistant\n")
    generate(site, think=think)
    assert site.prompt.endswith(f"Hi<|im_end|>\n{shown}<|im_start|>assistant\n")


def test_tools_stand_in_the_prompt(site: MessagesSite):
    chat(site, tools=[WEATHER, {"type": "function", "function": {"name": "bare"}}])
    assert '"description": "Tells the weather."' in site.prompt
    assert '"name": "bare"' in site.prompt
    assert site.renderer.parser_tools[-1] == ["weather", "bare"]


def calling(*names: str, **more: Any) -> dict[str, Any]:
    calls = [{"function": {"name": name, "arguments": {"at": number}}} for number, name in enumerate(names)]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def answering(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content, **more}


def test_results_belong_to_the_first_open_call_of_their_tool(site: MessagesSite):
    results = [answering("B", tool_name="b"), answering("A2", tool_name="a"), answering("A1", tool_name="a")]
    chat(site, messages=[*USER, calling("a", "b", "a"), *results])
    assert "(b call00001)B" in site.prompt
    assert "(a call00000)A2" in site.prompt
    assert "(a call00002)A1" in site.prompt


def test_results_without_a_name_answer_the_calls_in_their_order(site: MessagesSite):
    chat(site, messages=[*USER, calling("a", "b"), answering("A"), answering("B"), answering("lost")])
    assert "(a call00000)A" in site.prompt
    assert "(b call00001)B" in site.prompt
    assert "tool\nlost" in site.prompt


def test_ids_that_a_client_sends_are_kept(site: MessagesSite):
    call = {"id": "mine", "function": {"name": "a", "arguments": {}}}
    asked = {"role": "assistant", "tool_calls": [call]}
    chat(site, messages=[*USER, asked, answering("A", tool_call_id="mine")])
    assert "<call mine>a {}</call>" in site.prompt
    assert "(a mine)A" in site.prompt


def test_calls_are_numbered_through_the_conversation(site: MessagesSite):
    chat(site, messages=[*USER, calling("a"), answering("1"), calling("a"), answering("2")])
    assert "(a call00000)1" in site.prompt
    assert "(a call00001)2" in site.prompt


def test_thoughts_come_back_to_the_model(site: MessagesSite):
    chat(site, messages=[*USER, {"role": "assistant", "content": "Hello.", "thinking": "Hm."}, *USER])
    assert "<|im_start|>assistant\n<think>Hm.</think>Hello.<|im_end|>" in site.prompt


def test_a_longer_chat_begins_as_the_shorter_one_did(site: MessagesSite):
    told: list[dict[str, Any]] = [*USER, calling("a"), answering("1", tool_name="a")]
    chat(site, messages=told, tools=[WEATHER])
    shorter = site.prompt.partition("[{")[0]
    chat(site, messages=[*told, {"role": "assistant", "content": "Done."}, *USER], tools=[WEATHER])
    assert site.prompt.startswith(shorter)


def test_images_are_refused(site: MessagesSite):
    for path, body in (
        ("/api/chat", {"messages": [{"role": "user", "content": "What?", "images": ["aGk="]}]}),
        ("/api/generate", {"prompt": "What?", "images": ["aGk="]}),
    ):
        assert "takes text only" in refusal(site, path, **body)


def test_empty_images_are_none(site: MessagesSite):
    chat(site, messages=[{"role": "user", "content": "Hi", "images": []}])
    generate(site, images=[], suffix="", context=[])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"suffix": "the end"}, "suffix is not supported"),
        ({"context": [1, 2]}, "context is not supported"),
        ({"raw": True, "system": "Be kind."}, "neither system nor template"),
        ({"raw": True, "template": "{{ .Prompt }}"}, "neither system nor template"),
        ({"format": "xml"}, "format is 'json' or a JSON schema"),
        ({"format": {"$ref": "#/x"}}, "References are not supported"),
    ],
)
def test_prompts_that_cannot_be_served_are_refused(site: MessagesSite, body: dict[str, Any], reason: str):
    assert reason in refusal(site, "/api/generate", prompt="Hi", **body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content"),
        ({"messages": USER, "options": {"top_p": 2}}, "options.top_p"),
        ({"messages": USER, "options": {"temperature": "hot"}}, "options.temperature"),
        ({"messages": USER, "tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        ({"messages": USER, "think": 3}, "think"),
    ],
)
def test_a_field_that_makes_no_sense_is_named(site: MessagesSite, body: dict[str, Any], field: str):
    assert refusal(site, "/api/chat", **body).startswith(f"Invalid '{field}': ")


def test_a_prompt_that_is_too_long_is_refused_with_its_numbers(site: MessagesSite):
    message = refusal(site, "/api/chat", messages=[{"role": "user", "content": "x" * 5000}])
    assert "4096" in message


def test_a_body_that_is_no_json_is_refused(site: MessagesSite):
    assert error_of(site.post("/api/chat", b"{"))[0] == 400
    assert error_of(site.post("/api/show", b"tiny"))[0] == 400


def test_a_body_without_a_content_type_is_understood_as_curl_sends_it(site: MessagesSite):
    with site.http(headers={"content-type": "application/x-www-form-urlencoded"}) as client:
        body = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": false}'
        assert client.post("/api/chat", content=body).json()["message"]["content"] == "Hello."
