"""The official SDKs work through the gateway, whatever dialect the upstream speaks."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from tests.gateway.gateway_harness import Answer, Gate, Recorder, built_gateway, serving
from tests.gateway.scripted import CALL, JSON, STREAM, STREAMED, TEXT, THOUGHT, WHOLE, vendor

DIRECTIONS = [
    (client, upstream) for client in ("chat", "responses", "messages") for upstream in ("chat", "responses", "messages")
]
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
KEY = "sk-client-key"


@contextmanager
def to(upstream: str, plan: Any, **options: Any) -> Iterator[tuple[Recorder, Gate]]:
    recorder = Recorder(plan=plan)
    with serving(recorder) as url, built_gateway(url, dialects=(upstream,), **options) as gate:
        yield recorder, gate


def openai_client(gate: Gate) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0)


def anthropic_client(gate: Gate) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=gate.url, api_key=KEY, max_retries=0)


CHAT_ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": "read", "parameters": SCHEMA}}],
}
RESPONSES_ASKED: dict[str, Any] = {
    "model": "m",
    "instructions": "Be brief.",
    "input": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "name": "read", "parameters": SCHEMA, "strict": False}],
}
MESSAGES_ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 1000,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"name": "read", "input_schema": SCHEMA}],
}


def seen_chat(reply: Any) -> dict[str, Any]:
    message = reply.choices[0].message
    return {
        "text": message.content,
        "thought": getattr(message, "reasoning_content", None),
        "calls": [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()],
        "end": reply.choices[0].finish_reason,
        "input": reply.usage.prompt_tokens,
        "read": reply.usage.prompt_tokens_details.cached_tokens,
    }


def seen_responses(reply: Any) -> dict[str, Any]:
    calls = [item for item in reply.output if item.type == "function_call"]
    thoughts = [part.text for item in reply.output if item.type == "reasoning" for part in item.summary or item.content]
    return {
        "text": reply.output_text,
        "thought": "".join(thoughts),
        "calls": [(call.name, json.loads(call.arguments)) for call in calls],
        "end": "tool_calls" if calls else "stop",
        "input": reply.usage.input_tokens,
        "read": reply.usage.input_tokens_details.cached_tokens,
    }


def seen_messages(reply: Any) -> dict[str, Any]:
    blocks = reply.content
    return {
        "text": "".join(block.text for block in blocks if block.type == "text"),
        "thought": "".join(block.thinking for block in blocks if block.type == "thinking"),
        "calls": [(block.name, block.input) for block in blocks if block.type == "tool_use"],
        "end": {"tool_use": "tool_calls", "end_turn": "stop"}[reply.stop_reason],
        "input": reply.usage.input_tokens + reply.usage.cache_read_input_tokens,
        "read": reply.usage.cache_read_input_tokens,
    }


EXPECTED = {
    "text": TEXT,
    "thought": THOUGHT,
    "calls": [(CALL["name"], json.loads(CALL["arguments"]))],
    "end": "tool_calls",
    "input": 100,
    "read": 80,
}


def asked_whole(client: str, gate: Gate) -> dict[str, Any]:
    match client:
        case "chat":
            with openai_client(gate) as sdk:
                return seen_chat(sdk.chat.completions.create(**CHAT_ASKED))
        case "responses":
            with openai_client(gate) as sdk:
                return seen_responses(sdk.responses.create(**RESPONSES_ASKED))
        case _:
            with anthropic_client(gate) as sdk:
                return seen_messages(sdk.messages.create(**MESSAGES_ASKED))


def asked_streaming(client: str, gate: Gate) -> dict[str, Any]:
    match client:
        case "chat":
            with openai_client(gate) as sdk:
                return _of_chunks(
                    list(sdk.chat.completions.create(**CHAT_ASKED, stream=True, stream_options={"include_usage": True}))
                )
        case "responses":
            with openai_client(gate) as sdk, sdk.responses.stream(**RESPONSES_ASKED) as stream:
                return seen_responses(stream.get_final_response())
        case _:
            with anthropic_client(gate) as sdk, sdk.messages.stream(**MESSAGES_ASKED) as stream:
                return seen_messages(stream.get_final_message())


async def asked_streaming_async(client: str, gate: Gate) -> dict[str, Any]:
    match client:
        case "chat":
            async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as sdk:
                stream = await sdk.chat.completions.create(
                    **CHAT_ASKED, stream=True, stream_options={"include_usage": True}
                )
                return _of_chunks([chunk async for chunk in stream])
        case "responses":
            async with (
                openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as sdk,
                sdk.responses.stream(**RESPONSES_ASKED) as stream,
            ):
                return seen_responses(await stream.get_final_response())
        case _:
            async with (
                anthropic.AsyncAnthropic(base_url=gate.url, api_key=KEY, max_retries=0) as sdk,
                sdk.messages.stream(**MESSAGES_ASKED) as stream,
            ):
                return seen_messages(await stream.get_final_message())


async def asked_whole_async(client: str, gate: Gate) -> dict[str, Any]:
    match client:
        case "chat":
            async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as sdk:
                return seen_chat(await sdk.chat.completions.create(**CHAT_ASKED))
        case "responses":
            async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=KEY, max_retries=0) as sdk:
                return seen_responses(await sdk.responses.create(**RESPONSES_ASKED))
        case _:
            async with anthropic.AsyncAnthropic(base_url=gate.url, api_key=KEY, max_retries=0) as sdk:
                return seen_messages(await sdk.messages.create(**MESSAGES_ASKED))


def _of_chunks(chunks: list[Any]) -> dict[str, Any]:
    """What the Chat API's chunks add up to."""
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    pieces = [call for delta in deltas for call in delta.tool_calls or ()]
    names = [piece.function.name for piece in pieces if piece.function.name]
    arguments = "".join(piece.function.arguments or "" for piece in pieces)
    usage = next(chunk.usage for chunk in chunks if chunk.usage)
    return {
        "text": "".join(delta.content or "" for delta in deltas),
        "thought": "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas),
        "calls": [(name, json.loads(arguments)) for name in names],
        "end": next(chunk.choices[0].finish_reason for chunk in reversed(chunks) if chunk.choices),
        "input": usage.prompt_tokens,
        "read": usage.prompt_tokens_details.cached_tokens,
    }


@pytest.mark.parametrize(("client", "upstream"), DIRECTIONS)
def test_official_sdks_get_text_reasoning_and_calls(client: str, upstream: str):
    with to(upstream, vendor(upstream, calls=True)) as (recorder, gate):
        assert asked_whole(client, gate) == EXPECTED
        assert asked_streaming(client, gate) == EXPECTED
        assert asyncio.run(asked_whole_async(client, gate)) == EXPECTED
        assert asyncio.run(asked_streaming_async(client, gate)) == EXPECTED
    for request in recorder.requests:
        assert_asks_alike(upstream, json.loads(request.body))


def assert_asks_alike(upstream: str, body: dict[str, Any]) -> None:
    """System prompt, question and tool are there in the upstream's own places."""
    text = json.dumps(body)
    assert text.count("Be brief.") == text.count('"Hi"') == 1
    (tool,) = body["tools"]
    match upstream:
        case "chat":
            assert tool["function"]["parameters"] == SCHEMA
            assert body["messages"][-1]["content"] == "Hi" or "Hi" in json.dumps(body["messages"][-1])
        case "responses":
            assert (tool["name"], tool["parameters"]) == ("read", SCHEMA)
            assert "input" in body
        case _:
            assert tool["input_schema"] == SCHEMA
            assert body["max_tokens"] > 0
            assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("client", "upstream", "name"), [("chat", "messages", b"x-api-key"), ("messages", "chat", b"authorization")]
)
def test_the_clients_key_goes_where_the_upstream_wants_it(client: str, upstream: str, name: bytes):
    with to(upstream, vendor(upstream)) as (recorder, gate):
        asked_whole(client, gate)
    fields = dict(recorder.last.fields)
    value = f"Bearer {KEY}" if name == b"authorization" else KEY
    assert fields[name] == value.encode()
    assert len({b"x-api-key", b"authorization"} & set(fields)) == 1
    assert not any(field.startswith((b"anthropic-", b"x-stainless-")) for field in fields)


ERRORS = {429: "RateLimitError", 401: "AuthenticationError", 500: "InternalServerError"}
ACROSS = [(client, upstream) for client, upstream in DIRECTIONS if client != upstream]


@pytest.mark.parametrize(("client", "upstream"), ACROSS)
def test_errors_are_told_in_the_clients_words(client: str, upstream: str):
    inner = {"type": "some_error", "message": "So it is.", "code": None, "param": None}
    body = json.dumps({"type": "error", "error": inner} if upstream == "messages" else {"error": inner}).encode()
    sdk = anthropic if client == "messages" else openai
    with to(upstream, None) as (recorder, gate):
        for status, error in ERRORS.items():
            recorder.answer = Answer(status, [*JSON, (b"retry-after", b"3")], (body,))
            ask = asked_whole if status == 401 else asked_streaming
            with pytest.raises(getattr(sdk, error)) as caught:
                ask(client, gate)
            assert "So it is." in caught.value.message
            assert caught.value.response.headers["retry-after"] == "3"


@pytest.mark.parametrize(("client", "upstream"), ACROSS)
def test_a_stream_that_is_cut_off_is_no_reply(client: str, upstream: str):
    """Although the upstream's connection ended as it should: the end of its reply is missing."""
    content = STREAMED[upstream](calls=True)
    asked = {"chat": CHAT_ASKED, "responses": RESPONSES_ASKED, "messages": MESSAGES_ASKED}[client]
    path = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}[client]
    half = Answer(200, STREAM, (content[: len(content) // 2],))
    with to(upstream, lambda _: half) as (_, gate), pytest.raises(httpx2.RemoteProtocolError):
        gate.post(path, json.dumps({**asked, "stream": True}).encode())


def test_a_request_that_cannot_be_read_is_refused_in_the_clients_words():
    with to("chat", vendor("chat")) as (recorder, gate):
        answer = gate.post("/v1/messages", b'{"model": 1, "messages": 7}')
        assert answer.status_code == 400
        assert answer.json()["type"] == "error"
        packed = gzip.compress(json.dumps(MESSAGES_ASKED).encode())
        assert gate.post("/v1/messages", packed, headers={"content-encoding": "gzip"}).status_code == 400
        assert gate.post("/v1/messages/count_tokens", b"{}").status_code == 404
    assert recorder.requests == []


def test_models_have_other_names_upstream():
    with to("chat", vendor("chat"), models={"m": "their-model"}) as (recorder, gate):
        reply = asked_whole("messages", gate)
        assert json.loads(recorder.last.body)["model"] == "their-model"
        assert reply["text"] == TEXT
        asked_whole("chat", gate)
        assert json.loads(recorder.last.body)["model"] == "their-model"


def next_step(message: dict[str, Any]) -> list[dict[str, Any]]:
    """As most Chat clients go on: with the calls, and without the reasoning."""
    (call,) = message["tool_calls"]
    said = {"role": "assistant", "content": message["content"], "tool_calls": [call]}
    return [*CHAT_ASKED["messages"], said, {"role": "tool", "tool_call_id": call["id"], "content": "It is empty."}]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_chat_clients_keep_the_thinking_that_they_cannot_hold(is_streamed: bool):
    with to("messages", vendor("messages", calls=True)) as (recorder, gate):
        with openai_client(gate) as sdk:
            if is_streamed:
                with sdk.chat.completions.stream(**CHAT_ASKED) as stream:
                    message = stream.get_final_completion().choices[0].message
            else:
                message = sdk.chat.completions.create(**CHAT_ASKED).choices[0].message
            messages: Any = next_step(message.model_dump(mode="json"))
            sdk.chat.completions.create(**{**CHAT_ASKED, "messages": messages})
        replied = json.loads(recorder.last.body)["messages"][1]
        with openai.OpenAI(base_url=f"{gate.url}/v1", api_key="sk-another", max_retries=0) as other:
            other.chat.completions.create(**{**CHAT_ASKED, "messages": messages})
        told = json.loads(recorder.last.body)["messages"][1]
    assert replied["role"] == told["role"] == "assistant"
    assert replied["content"][0] == {"type": "thinking", "thinking": THOUGHT, "signature": "c2ln"}
    assert [block["type"] for block in told["content"]] == ["text", "tool_use"]


@pytest.mark.parametrize(("client", "upstream"), ACROSS)
def test_half_an_emoji_survives(client: str, upstream: str):
    """Clients written in JavaScript cut texts anywhere, and then send what they cut with each request."""
    asked = {"chat": CHAT_ASKED, "responses": RESPONSES_ASKED, "messages": MESSAGES_ASKED}[client]
    path = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}[client]
    half = json.dumps(asked).replace('"Hi"', '"Hi \\ud83d"').encode()
    whole = json.dumps(WHOLE[upstream]()).replace("Hello", "Hello \\ude00").encode()
    with to(upstream, lambda _: Answer(200, JSON, (whole,))) as (recorder, gate):
        answer = gate.post(path, half)
    assert "Hi \ud83d" in json.dumps(json.loads(recorder.last.body)).encode().decode("unicode_escape")
    assert answer.status_code == 200
    assert b"Hello \\ude00" in answer.content


def test_the_clients_session_is_told_although_the_upstream_is_not():
    """What names it may have no place in the upstream's dialect."""
    user = {"metadata": {"user_id": "one"}}
    with to("chat", vendor("chat")) as (_, gate):
        for question in ("Hi", "Ho"):
            asked = {**MESSAGES_ASKED, **user, "messages": [{"role": "user", "content": question}]}
            gate.post("/v1/messages", json.dumps(asked).encode())
        first, second = gate.rows()
    assert first["session"] == second["session"]


def test_messages_of_openais_assistants_are_not_anthropics():
    with to("chat", vendor("chat")) as (recorder, gate):
        assert gate.post("/v1/threads/thread_1/messages", b"{ }").status_code == 200
    assert (recorder.last.target, recorder.last.body) == (b"/v1/threads/thread_1/messages", b"{ }")


def test_a_word_to_the_gateway_does_not_reach_the_upstream():
    with to("chat", vendor("chat")) as (recorder, gate):
        gate.post("/v1/messages", json.dumps(MESSAGES_ASKED).encode(), headers={"x-kvstet-without": "model"})
    assert b"x-kvstet-without" not in dict(recorder.last.fields)


def test_a_stream_that_goes_on_and_says_nothing_is_broken_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kvstet.gateway.changing.translation.MAX_COPY_BYTES", 100_000)
    endless = Answer(200, STREAM, (b"data: ", *[b"x" * 10_000] * 20, b"\n\n"))
    with to("messages", lambda _: endless) as (_, gate), pytest.raises(httpx2.RemoteProtocolError):
        gate.post("/v1/chat/completions", json.dumps({**CHAT_ASKED, "stream": True}).encode())


def test_images_reach_the_upstream():
    pixel = "iVBORw0KGgoAAAANSUhEUg=="
    source = {"type": "base64", "media_type": "image/png", "data": pixel}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    with to("chat", vendor("chat")) as (recorder, gate), anthropic_client(gate) as sdk:
        sdk.messages.create(model="m", max_tokens=10, messages=[{"role": "user", "content": content}])
    (message,) = json.loads(recorder.last.body)["messages"]
    assert message["content"][0]["image_url"]["url"] == f"data:image/png;base64,{pixel}"


def test_what_was_lost_is_told():
    with to("chat", vendor("chat")) as (_, gate):
        body = {**MESSAGES_ASKED, "context_management": {"edits": []}}
        gate.post("/v1/messages", json.dumps(body).encode())
        (row,) = gate.rows()
    assert "context_management" in row["not_translated"]
    assert (row["dialect"], row["upstream_dialect"]) == ("messages", "chat")
    assert row["usage"]["cache_read"] == 80
