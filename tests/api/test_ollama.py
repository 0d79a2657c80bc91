"""Ollama's dialect: what it answers, read bare and by Ollama's own client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import httpx  # Ollama's SDK has not moved on.
import httpx2
import pytest
from ollama import ResponseError
from tests.api.anthropic_harness import MessagesSite, calling, running_messages, thinking
from tests.api.harness import Held, as_new, freed, patiences, reply, running_models, served_by, tokens_of
from tests.api.ollama_harness import USER, WEATHER, async_client_of, chat, client_of, error_of, generate, lines_of

from kvstet.api import answering
from kvstet.api.models import OneModel
from kvstet.api.ports import ModelStatus
from kvstet.api.sse import EventStream
from kvstet.engine.fake_client import Hang, Refuse, Say, ScriptedEngine
from kvstet.engine.messages import TokenLogprobs
from kvstet.errors import EngineCrashed, QueueFull
from kvstet.types import Reuse

CALLING = calling("weather", {"city": "Rome", "days": 3})


@pytest.fixture(scope="module")
def shared_site() -> Iterator[MessagesSite]:
    with running_messages(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_site: MessagesSite) -> MessagesSite:
    """A server whose model says "Hello."; its engine is as good as new."""
    return as_new(shared_site)


def says(site: MessagesSite, text: str, **options: Any) -> None:
    site.engine.script = reply(text, **options)


# Whole answers


def test_a_chat_is_answered_with_a_message_and_its_costs(site: MessagesSite):
    says(site, "Hello.", reuse=Reuse(10, 5, 0, 7, 15))
    answer = chat(site, model="tiny")
    assert answer["model"] == "tiny"
    assert answer["message"] == {"role": "assistant", "content": "Hello."}
    assert (answer["done"], answer["done_reason"]) == (True, "stop")
    assert answer["prompt_eval_count"] == 22
    assert answer["prompt_eval_cached_count"] == 15
    assert answer["eval_count"] == len("Hello.") + 1
    assert answer["load_duration"] == 2_000_000
    assert answer["prompt_eval_duration"] == 500_000_000
    assert answer["eval_duration"] == 250_000_000
    assert answer["total_duration"] == 753_000_000
    assert answer["kvstet"]["reused"] == 10


def test_times_are_in_utc_and_say_so(site: MessagesSite):
    created = chat(site)["created_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", created)
    assert abs(datetime.fromisoformat(created).timestamp() - datetime.now().timestamp()) < 60


def test_a_limit_that_was_reached_is_told(site: MessagesSite):
    answer = chat(site, options={"num_predict": 3})
    assert answer["done_reason"] == "length"
    assert answer["message"]["content"] == "Hel"


def test_a_stop_string_ends_the_reply(site: MessagesSite):
    answer = chat(site, options={"stop": ["lo"]})
    assert (answer["message"]["content"], answer["done_reason"]) == ("Hel", "stop")


def test_calls_have_their_arguments_as_objects(site: MessagesSite):
    says(site, "Let me see." + CALLING + calling("weather", {"city": "Oslo"}))
    message = chat(site, tools=[WEATHER])["message"]
    assert message["content"] == "Let me see."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"index": 0, "name": "weather", "arguments": {"city": "Rome", "days": 3}},
        {"index": 1, "name": "weather", "arguments": {"city": "Oslo"}},
    ]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_numbers_in_arguments_keep_their_digits(site: MessagesSite):
    says(site, calling("weather", '{"n": 123456789012345678901234567890, "x": 0.10000000000000000001}'))
    body = site.post("/api/chat", {"messages": USER, "stream": False, "tools": [WEATHER]}).text
    assert '{"n":123456789012345678901234567890,"x":0.10000000000000000001}' in body


@pytest.mark.parametrize("arguments", ['{"city": "Ro', "[1]", "", '{"a": 1} {}', '{"a":' * 3000])
def test_arguments_that_are_no_object_are_an_empty_one(site: MessagesSite, arguments: str):
    says(site, calling("weather", arguments))
    (call,) = chat(site, tools=[WEATHER])["message"]["tool_calls"]
    assert call["function"]["arguments"] == {}


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_limit_cut_off_is_not_told(site: MessagesSite, stream: bool):
    says(site, "Look:" + CALLING)
    body = {"messages": USER, "tools": [WEATHER], "options": {"num_predict": 25}, "stream": stream}
    last = json.loads(site.post("/api/chat", body).text.splitlines()[-1])
    assert last["done_reason"] == "length"
    assert "tool_calls" not in last["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_the_model_did_not_close_is_told_at_the_end(site: MessagesSite, stream: bool):
    says(site, CALLING.removesuffix("\x05"))
    body = {"messages": USER, "tools": [WEATHER], "stream": stream}
    last = json.loads(site.post("/api/chat", body).text.splitlines()[-1])
    assert last["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome", "days": 3}


def test_thinking_stands_beside_the_text(site: MessagesSite):
    says(site, thinking("Hm.") + "Hello.")
    assert chat(site)["message"] == {"role": "assistant", "content": "Hello.", "thinking": "Hm."}
    answer = generate(site)
    assert (answer["response"], answer["thinking"]) == ("Hello.", "Hm.")


def test_a_reply_that_is_begun_anew_is_told_once(site: MessagesSite):
    async def crash(request: Any) -> Any:
        async for event in Say(tokens_of(thinking("Hm.") + "Hello" + CALLING), token_seconds=0.001)(request):
            yield event
            if getattr(event, "token", None) == 5:
                break
        async for event in reply("Hello.")(request):
            yield event

    site.engine.script = crash
    answer = chat(site, tools=[WEATHER])
    assert answer["message"] == {"role": "assistant", "content": "Hello."}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_given_to_those_who_ask(site: MessagesSite, stream: bool):
    known = TokenLogprobs(-0.5, ((ord("H"), -0.5), (ord("J"), -1.5)))
    says(site, "H", logprobs=[known, TokenLogprobs(-0.1, ())])
    body = {"messages": USER, "stream": stream, "logprobs": True, "top_logprobs": 2}
    lines = [json.loads(line) for line in site.post("/api/chat", body).text.splitlines()]
    told = [entry for line in lines for entry in line.get("logprobs", ())]
    assert told[0] == {
        "token": "H",
        "logprob": -0.5,
        "bytes": [72],
        "top_logprobs": [
            {"token": "H", "logprob": -0.5, "bytes": [72]},
            {"token": "J", "logprob": -1.5, "bytes": [74]},
        ],
    }
    assert site.engine.requests[0].num_logprobs == 2
    assert "".join(line["message"]["content"] for line in lines) == "H"


# Streams


def test_a_chat_is_streamed_unless_told_otherwise(site: MessagesSite):
    says(site, thinking("Hm.") + "Hello." + CALLING, token_seconds=0.001)
    lines = lines_of(site.post("/api/chat", {"messages": USER, "tools": [WEATHER]}))
    messages = [line["message"] for line in lines]
    assert all(message["role"] == "assistant" for message in messages)
    assert "".join(message.get("thinking", "") for message in messages) == "Hm."
    assert "".join(message["content"] for message in messages) == "Hello."
    (calls,) = (message["tool_calls"] for message in messages if "tool_calls" in message)
    assert calls[0]["function"]["arguments"] == {"city": "Rome", "days": 3}
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 5


def test_the_last_line_of_a_stream_tells_the_costs(site: MessagesSite):
    streamed = lines_of(site.post("/api/chat", {"messages": USER}))[-1]
    told = chat(site)
    assert streamed["message"] == {"role": "assistant", "content": ""}
    assert streamed.keys() == told.keys()
    assert streamed["eval_count"] == told["eval_count"]
    assert streamed["done_reason"] == "stop"


def test_arguments_over_several_lines_are_one_line_of_the_stream(site: MessagesSite):
    says(site, calling("weather", '{\n  "city":\n"Rome"\r\n}'))
    lines = lines_of(site.post("/api/chat", {"messages": USER, "tools": [WEATHER]}))
    assert lines[0]["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}


def test_a_stream_that_fails_ends_with_the_error(site: MessagesSite):
    says(site, "Hel", error=EngineCrashed("The engine died."))
    lines = lines_of(site.post("/api/chat", {"messages": USER}))
    assert lines[-1] == {"error": "The engine died."}
    assert not any(line.get("done") for line in lines)


def test_while_nothing_comes_a_stream_sends_lines_that_say_nothing(site: MessagesSite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answering, "EventStream", partial(EventStream, ping_seconds=0.02))
    site.engine.script = held = Held(reply("Hello."))
    with client_of(site) as client:
        coming = client.chat("tiny", USER, stream=True)
        parts = [next(coming)]
        held.go.set()
        parts += coming
    assert parts[0].message.content == ""
    assert not parts[0].done
    assert "".join(part.message.content or "" for part in parts) == "Hello."


# Prompts


def test_a_prompt_is_answered(site: MessagesSite):
    answer = generate(site, system="Be kind.")
    assert (answer["response"], answer["done_reason"]) == ("Hello.", "stop")
    assert site.prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_prompt_is_streamed_unless_told_otherwise(site: MessagesSite):
    says(site, "Hello.", token_seconds=0.001)
    lines = lines_of(site.post("/api/generate", {"prompt": "Hi"}))
    assert "".join(line["response"] for line in lines) == "Hello."
    assert len(lines) > 3
    assert lines[-1]["done"]


def test_a_raw_prompt_is_all_that_the_model_reads(site: MessagesSite):
    says(site, thinking("no") + "Hello.")
    answer = generate(site, prompt="Once upon", raw=True)
    assert site.prompt == "Once upon"
    assert answer["response"] == "\x01no\x02Hello."


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {}),
        ("/api/generate", {"prompt": "", "keep_alive": -1}),
        ("/api/chat", {}),
        ("/api/chat", {"messages": [], "keep_alive": "5m"}),
    ],
)
def test_a_request_that_says_nothing_loads_the_model(site: MessagesSite, path: str, body: dict[str, Any]):
    answer = site.post(path, {"model": "tiny", **body}).json()
    assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert site.engine.requests == []


def test_a_template_is_ignored_and_the_answer_says_so(site: MessagesSite):
    assert generate(site, template="{{ .Prompt }}")["kvstet"]["ignored"] == ["template"]
    assert site.prompt.startswith("<|im_start|>user\nHi")
    assert "ignored" not in generate(site, template="")["kvstet"]


# Models


def test_the_models_are_listed(site: MessagesSite):
    (model,) = site.get("/api/tags").json()["models"]
    assert (model["name"], model["model"], model["size"]) == ("tiny", "tiny", 2_000_000)
    assert re.fullmatch("[0-9a-f]{64}", model["digest"])
    assert model["details"] == {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "1.0M",
        "quantization_level": "F16",
    }


@pytest.mark.parametrize(
    ("description", "level"),
    [
        ("llama 8B Q4_K - Medium", "Q4_K_M"),
        ("qwen3moe 30B.A3B IQ2_XS - 2.3125 bpw", "IQ2_XS"),
        ("gpt-oss 20B MXFP4 MoE", "MXFP4"),
        ("llama 1B Q8_0", "Q8_0"),
        ("llama 1B all F32", "F32"),
        ("something else", "unknown"),
    ],
)
def test_the_quantization_is_told_as_ollama_writes_it(site: MessagesSite, description: str, level: str):
    site.engine.info = replace(site.engine.info, description=description)
    assert site.get("/api/tags").json()["models"][0]["details"]["quantization_level"] == level


def test_running_models_are_those_that_are_loaded(site: MessagesSite):
    (model,) = site.get("/api/ps").json()["models"]
    assert (model["name"], model["context_length"]) == ("tiny", 4096)
    site.engine.is_ready = False
    assert site.get("/api/ps").json() == {"models": []}


def test_a_model_shows_what_clients_plan_with(site: MessagesSite):
    shown = site.post("/api/show", {"model": "tiny"}).json()
    assert shown["model_info"]["general.architecture"] == "llama"
    assert shown["model_info"]["llama.context_length"] == 4096
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["template"] == site.renderer.template_source


OTHER = ModelStatus(("other", "second"), None, None)


class TwoModels(OneModel):
    """Besides the model that is loaded, one that never was."""

    def statuses(self) -> Sequence[ModelStatus]:
        return super().status(None), OTHER

    def status(self, name: str | None) -> ModelStatus:
        return OTHER if name in OTHER.names else super().status(name)


def test_models_that_are_not_loaded_are_listed_and_shown_but_do_not_run():
    with running_models(TwoModels(served_by(ScriptedEngine(), aliases=("first",)))) as url:
        listed = httpx2.get(f"{url}/api/tags").json()["models"]
        assert [model["name"] for model in listed] == ["tiny", "first", "other", "second"]
        assert listed[0]["digest"] == listed[1]["digest"] != listed[2]["digest"]
        assert [model["name"] for model in httpx2.get(f"{url}/api/ps").json()["models"]] == ["tiny"]
        shown = httpx2.post(f"{url}/api/show", json={"name": "other"}).json()
        assert (shown["model_info"], shown["template"], shown["capabilities"]) == ({}, "", ["completion", "tools"])


def test_the_version_is_one_that_clients_take(site: MessagesSite):
    major, minor, patch = site.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor), int(patch)) >= (0, 6, 4)


@pytest.mark.parametrize("name", ["pull", "push", "create", "copy", "embed", "embeddings"])
def test_what_is_not_there_says_so(site: MessagesSite, name: str):
    status, message = error_of(site.post(f"/api/{name}", {"model": "tiny"}))
    assert status == 501
    assert message.startswith("This server ")


@pytest.mark.parametrize("path", ["/api/blobs/sha256:0", "/api/nothing"])
def test_what_nobody_knows_is_not_found(site: MessagesSite, path: str):
    assert error_of(site.post(path, {})) == (404, f"There is nothing at POST {path}.")


def test_a_wrong_method_is_refused_in_ollamas_words(site: MessagesSite):
    assert error_of(site.get("/api/chat"))[0] == 405


# Ollama's own client


def test_the_client_chats(site: MessagesSite):
    with client_of(site) as client:
        answer = client.chat("tiny", USER)
    assert answer.message.content == "Hello."
    assert answer.done_reason == "stop"
    assert answer.prompt_eval_count == len(site.engine.requests[0].tokens)
    assert answer.eval_duration == 250_000_000


def test_the_client_streams(site: MessagesSite):
    says(site, thinking("Hm.") + "Hello.", token_seconds=0.001)
    with client_of(site) as client:
        parts = list(client.chat("tiny", USER, stream=True, think=True))
    assert "".join(part.message.thinking or "" for part in parts) == "Hm."
    assert "".join(part.message.content or "" for part in parts) == "Hello."
    assert parts[-1].done
    assert "[thinking True]" in site.prompt


def test_a_call_and_its_result_go_through_the_client(site: MessagesSite):
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
          city: Where.
        """
        return f"sunny in {city}"

    says(site, thinking("Rome?") + calling("weather", {"city": "Rome"}))
    with client_of(site) as client:
        message = client.chat("tiny", USER, tools=[weather]).message
        assert message.tool_calls is not None
        (call,) = message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rome"})
        says(site, "It is sunny.")
        result = {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
        assert client.chat("tiny", [*USER, message, result], tools=[weather]).message.content == "It is sunny."
    assert (
        "<|im_start|>assistant\n<think>Rome?</think>"
        '<call call00000>weather {"city": "Rome"}</call><|im_end|>\n'
        "<|im_start|>tool\n(weather call00000)sunny in Rome<|im_end|>\n"
    ) in site.prompt


def test_the_client_generates(site: MessagesSite):
    with client_of(site) as client:
        assert client.generate("tiny", "Hi").response == "Hello."
        assert "".join(part.response for part in client.generate("tiny", "Hi", stream=True)) == "Hello."
        assert client.generate("tiny").done_reason == "load"


def test_the_client_asks_about_models(site: MessagesSite):
    with client_of(site) as client:
        assert [model.model for model in client.list().models] == ["tiny"]
        assert [model.model for model in client.ps().models] == ["tiny"]
        assert client.show("tiny").capabilities == ["completion", "tools", "thinking"]


@pytest.mark.parametrize("ask", ["pull", "embed", "delete", "copy", "create"])
def test_the_client_understands_refusals(site: MessagesSite, ask: str):
    calls: dict[str, Any] = {
        "pull": lambda client: client.pull("other"),
        "embed": lambda client: client.embed("tiny", "text"),
        "delete": lambda client: client.delete("tiny"),
        "copy": lambda client: client.copy("tiny", "other"),
        "create": lambda client: client.create("other", from_="tiny"),
    }
    with client_of(site) as client, pytest.raises(ResponseError) as caught:
        calls[ask](client)
    assert caught.value.status_code == 501
    assert caught.value.error.startswith("This server ")


def test_the_client_understands_errors(site: MessagesSite):
    site.engine.script = Refuse(QueueFull("Too many."))
    with client_of(site) as client:
        with pytest.raises(ResponseError) as caught:
            client.chat("tiny", USER)
        assert (caught.value.status_code, caught.value.error) == (429, "Too many.")
        with pytest.raises(ResponseError) as caught:
            list(client.chat("tiny", USER, stream=True))
        assert (caught.value.status_code, caught.value.error) == (429, "Too many.")


def test_the_client_understands_errors_within_streams(site: MessagesSite):
    says(site, "Hel", error=EngineCrashed("The engine died."))
    with client_of(site) as client, pytest.raises(ResponseError, match=r"The engine died\."):
        list(client.chat("tiny", USER, stream=True))


async def test_the_asynchronous_client_chats_streams_and_generates(site: MessagesSite):
    says(site, "Hello." + CALLING)
    async with async_client_of(site) as client:
        answer = await client.chat("tiny", USER, tools=[WEATHER])
        assert answer.message.content == "Hello."
        parts = [part async for part in await client.chat("tiny", USER, tools=[WEATHER], stream=True)]
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert calls[0].function.arguments == {"city": "Rome", "days": 3}
        assert (await client.generate("tiny", "Hi", format="json")).response.startswith("Hello.")
        with pytest.raises(ResponseError, match="References are not supported"):
            await client.generate("tiny", "Hi", format={"$ref": "x"})


# Hang-ups


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_gives_up_frees_its_tokens(site: MessagesSite, stream: bool):
    site.engine.script = Hang()
    for seconds in patiences(site.engine):
        with client_of(site, timeout=seconds) as client, pytest.raises(httpx.TimeoutException):
            list(client.chat("tiny", USER, stream=stream))
    assert freed(site.engine)


def test_closing_a_stream_frees_its_tokens(site: MessagesSite):
    says(site, "x" * 10_000, token_seconds=0.005)
    with client_of(site) as client:
        stream = client.chat("tiny", USER, stream=True)
        next(stream)
        stream.close()
    assert freed(site.engine)


async def test_a_cancelled_task_frees_its_tokens(site: MessagesSite):
    site.engine.script = Hang()
    async with async_client_of(site) as client:
        for seconds in patiences(site.engine):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.chat("tiny", USER), seconds)
    assert await asyncio.to_thread(freed, site.engine)
