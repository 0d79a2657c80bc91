"""The official clients of each API against upstreams of each other: what they understand is what was said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import anthropic
import openai
import pytest
from tests.dialects.samples import PIXEL
from tests.dialects.sdk_clients import (
    anthropic_client,
    async_anthropic_client,
    async_openai_client,
    openai_client,
)
from tests.dialects.sdk_types import check_body
from tests.dialects.upstreams import ARGUMENTS, ERRORS, REASONING, REFUSALS, STREAMS, TEXT, WHOLES

from kvstet.dialects.dialect import DialectName, StreamReader, dialect_named, dialect_of_path
from kvstet.dialects.failures import failure_in_body
from kvstet.dialects.request import Request
from kvstet.dialects.whole import reply_of

DIALECTS: tuple[DialectName, ...] = ("chat", "messages", "responses")
CLIENTS = pytest.mark.parametrize("client", DIALECTS)
UPSTREAMS = pytest.mark.parametrize("upstream", DIALECTS)

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
FUNCTION = {"name": "read", "description": "Reads.", "parameters": SCHEMA}
IMAGE_URL = f"data:image/png;base64,{PIXEL}"

BODIES: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "m",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Read."},
                    {"type": "image_url", "image_url": {"url": IMAGE_URL}},
                ],
            }
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
    },
    "messages": {
        "model": "m",
        "max_tokens": 1000,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Read."},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
                ],
            }
        ],
        "tools": [{"name": "read", "description": "Reads.", "input_schema": SCHEMA}],
    },
    "responses": {
        "model": "m",
        "input": [
            {
                "type": "message",
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "Read."},
                    {"type": "input_image", "image_url": IMAGE_URL, "detail": "auto"},
                ],
            }
        ],
        "tools": [{"type": "function", **FUNCTION, "strict": False}],
    },
}


@dataclass
class Upstream:
    """A server of one dialect behind a translation; remembers what it was asked."""

    dialect: DialectName
    streamed: bytes
    whole: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        client, own = dialect_of_path(path), dialect_named(self.dialect)
        assert client is not None
        request = client.read_request(body)
        self.bodies.append(own.write_request(request).body)
        if self.status != 200:
            failure = failure_in_body(self.status, json.dumps(self.whole).encode())
            return failure.status, json.dumps(client.write_error(failure)).encode()
        if not request.terms.is_streamed:
            reply = reply_of(own.reply_reader().whole(self.whole))
            return 200, json.dumps(client.write_reply(request, reply)).encode()
        reader, writer = StreamReader(own), client.reply_writer(request)
        deltas = [*reader.feed(self.streamed), *reader.finish()]
        return 200, b"".join(map(writer.feed, deltas))


@dataclass
class Understood:
    """What a client made of a reply."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    reason: str | None = None
    num_input_tokens: int | None = None
    num_cached_tokens: int | None = None
    num_output_tokens: int | None = None


def expected(client: DialectName) -> Understood:
    calls = [(f"call_{number}", "read", json.loads(said)) for number, said in enumerate(ARGUMENTS, 1)]
    reason = {"chat": "tool_calls", "messages": "tool_use", "responses": "completed"}[client]
    return Understood(TEXT, REASONING, "", calls, reason, 100, 60, 20)


@CLIENTS
@UPSTREAMS
def test_a_stream_is_understood(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, STREAMS[upstream])
    assert asked(client, server, stream=True) == expected(client)


@CLIENTS
@UPSTREAMS
async def test_a_stream_is_understood_by_the_asynchronous_client(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, STREAMS[upstream])
    assert await asked_async(client, server, stream=True) == expected(client)


@CLIENTS
@UPSTREAMS
def test_a_whole_reply_is_understood(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, b"", WHOLES[upstream])
    assert asked(client, server, stream=False) == expected(client)


@CLIENTS
@UPSTREAMS
async def test_a_whole_reply_is_understood_by_the_asynchronous_client(
    client: DialectName, upstream: DialectName
) -> None:
    server = Upstream(upstream, b"", WHOLES[upstream])
    assert await asked_async(client, server, stream=False) == expected(client)


@CLIENTS
@UPSTREAMS
def test_the_upstream_is_asked_what_the_client_asked(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, STREAMS[upstream])
    asked(client, server, stream=True)
    (body,) = server.bodies
    check_body(upstream, body)
    assert body["stream"] is True
    key = "input" if upstream == "responses" else "messages"
    content = body[key][0]["content"]
    wanted = BODIES[upstream]
    assert content == wanted[key][0]["content"]
    assert body["tools"][0] == wanted["tools"][0]


@CLIENTS
@UPSTREAMS
def test_a_refusal_is_understood(client: DialectName, upstream: DialectName) -> None:
    understood = asked(client, Upstream(upstream, REFUSALS[upstream]), stream=True)
    assert (understood.refusal, understood.text) == (
        ("", "I will not.") if client == "messages" else ("I will not.", "")
    )
    if client == "messages":
        assert understood.reason == "refusal"


@CLIENTS
@UPSTREAMS
def test_an_error_in_the_middle_of_a_stream_is_raised(client: DialectName, upstream: DialectName) -> None:
    with pytest.raises((openai.APIError, anthropic.APIError), match="The engine is on fire"):
        asked(client, Upstream(upstream, ERRORS[upstream]), stream=True)


@CLIENTS
@UPSTREAMS
def test_a_stream_that_breaks_off_is_an_error(client: DialectName, upstream: DialectName) -> None:
    broken = STREAMS[upstream][: len(STREAMS[upstream]) // 2]
    with pytest.raises((openai.APIError, anthropic.APIError), match="The upstream"):
        asked(client, Upstream(upstream, broken), stream=True)


OVERFLOWS = {
    "chat": {"error": {"message": "m", "type": "invalid_request_error", "code": "context_length_exceeded"}},
    "messages": {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "prompt is too long: 210000 tokens > 200000 maximum"},
    },
    "responses": {"error": {"message": "m", "type": "invalid_request_error", "code": "context_length_exceeded"}},
}


@CLIENTS
@UPSTREAMS
def test_a_prompt_that_is_too_long_is_told_as_the_client_knows_it(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, b"", OVERFLOWS[upstream], status=400)
    with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)) as caught:
        asked(client, server, stream=True)
    if client == "messages":
        assert "prompt is too long: " in str(caught.value)
        assert upstream != "messages" or "210000 tokens > 200000 maximum" in str(caught.value)
    else:
        assert isinstance(caught.value, openai.BadRequestError)
        assert caught.value.code == "context_length_exceeded"


@CLIENTS
@UPSTREAMS
def test_a_limit_of_requests_is_told_as_one(client: DialectName, upstream: DialectName) -> None:
    server = Upstream(upstream, b"", {"error": {"type": "rate_limit_error", "message": "Slow down."}}, status=429)
    with pytest.raises((openai.RateLimitError, anthropic.RateLimitError), match="Slow down"):
        asked(client, server, stream=False)


def test_the_helper_of_the_chat_client_puts_the_stream_together() -> None:
    """It is strict about the order and the form of chunks."""
    server = Upstream("messages", STREAMS["messages"])
    with openai_client(server).chat.completions.stream(**BODIES["chat"]) as events:
        message = events.get_final_completion().choices[0].message
    assert message.content == TEXT
    assert [call.function.arguments for call in message.tool_calls or ()] == [*ARGUMENTS]


def test_the_helper_of_the_responses_client_puts_the_stream_together() -> None:
    server = Upstream("messages", STREAMS["messages"])
    with openai_client(server).responses.stream(**BODIES["responses"]) as events:
        kinds = [event.type for event in events]
        response = events.get_final_response()
    assert response.output_text == TEXT
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_bodies_are_checked_in_earnest() -> None:
    for name in DIALECTS:
        check_body(name, BODIES[name])
        key = "input" if name == "responses" else "messages"
        with pytest.raises(ValueError, match="validation error"):
            check_body(name, {**BODIES[name], key: [{"role": "user", "content": [{"type": "text", "text": 3}]}]})


def asked(client: DialectName, server: Upstream, *, stream: bool) -> Understood:
    body = BODIES[client]
    match client:
        case "chat" if stream:
            options = {"stream_options": {"include_usage": True}}
            return understood_chunks([*openai_client(server).chat.completions.create(**body, stream=True, **options)])
        case "chat":
            return understood_completion(openai_client(server).chat.completions.create(**body))
        case "messages" if stream:
            with anthropic_client(server).messages.stream(**body) as events:
                return understood_message(events.get_final_message())
        case "messages":
            return understood_message(anthropic_client(server).messages.create(**body))
        case "responses" if stream:
            return understood_events([*openai_client(server).responses.create(**body, stream=True)])
        case "responses":
            return understood_response(openai_client(server).responses.create(**body))


async def asked_async(client: DialectName, server: Upstream, *, stream: bool) -> Understood:
    body = BODIES[client]
    match client:
        case "chat" if stream:
            options = {"stream_options": {"include_usage": True}}
            chunks = await async_openai_client(server).chat.completions.create(**body, stream=True, **options)
            return understood_chunks([chunk async for chunk in chunks])
        case "chat":
            return understood_completion(await async_openai_client(server).chat.completions.create(**body))
        case "messages" if stream:
            async with async_anthropic_client(server).messages.stream(**body) as events:
                return understood_message(await events.get_final_message())
        case "messages":
            return understood_message(await async_anthropic_client(server).messages.create(**body))
        case "responses" if stream:
            events = await async_openai_client(server).responses.create(**body, stream=True)
            return understood_events([event async for event in events])
        case "responses":
            return understood_response(await async_openai_client(server).responses.create(**body))


def understood_chunks(chunks: list[Any]) -> Understood:
    understood = Understood()
    calls: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            delta = choice.delta
            understood.text += delta.content or ""
            understood.reasoning += getattr(delta, "reasoning_content", None) or ""
            understood.refusal += delta.refusal or ""
            understood.reason = choice.finish_reason or understood.reason
            for call in delta.tool_calls or ():
                entry = calls.setdefault(call.index, ["", "", ""])
                entry[0] += call.id or ""
                entry[1] += call.function.name or ""
                entry[2] += call.function.arguments or ""
        if chunk.usage:
            count_chat(understood, chunk.usage)
    understood.calls = [(id, name, json.loads(said)) for _, (id, name, said) in sorted(calls.items())]
    return understood


def understood_completion(completion: Any) -> Understood:
    message = completion.choices[0].message
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    reasoning = getattr(message, "reasoning_content", None) or ""
    understood = Understood(message.content or "", reasoning, message.refusal or "", calls)
    understood.reason = completion.choices[0].finish_reason
    count_chat(understood, completion.usage)
    return understood


def count_chat(understood: Understood, usage: Any) -> None:
    understood.num_input_tokens, understood.num_output_tokens = usage.prompt_tokens, usage.completion_tokens
    # What the upstream did not tell is not told as 0.
    details = usage.prompt_tokens_details
    understood.num_cached_tokens = details.cached_tokens if details else None


def understood_message(message: Any) -> Understood:
    understood = Understood(reason=message.stop_reason)
    for block in message.content:
        match block.type:
            case "text":
                understood.text += block.text
            case "thinking":
                assert block.signature
                understood.reasoning += block.thinking
            case "tool_use":
                understood.calls.append((block.id, block.name, block.input))
    usage = message.usage
    read, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    understood.num_cached_tokens, understood.num_output_tokens = read, usage.output_tokens
    understood.num_input_tokens = usage.input_tokens + (read or 0) + (written or 0)
    return understood


def understood_events(events: list[Any]) -> Understood:
    """From the pieces, which have to agree with the whole."""
    assert [event.sequence_number for event in events] == [*range(len(events))]
    last = events[-1]
    if last.type == "response.failed":
        raise AssertionError("the client should have raised")
    understood = understood_response(last.response)
    pieces = {kind: "".join(e.delta for e in events if e.type == f"response.{kind}.delta") for kind in KINDS}
    assert pieces["output_text"] == understood.text
    assert pieces["reasoning_summary_text"] == understood.reasoning
    assert pieces["refusal"] == understood.refusal
    whole = [item.arguments for item in last.response.output if item.type == "function_call"]
    assert pieces["function_call_arguments"] == "".join(whole)
    return understood


KINDS = ("output_text", "reasoning_summary_text", "refusal", "function_call_arguments")


def understood_response(response: Any) -> Understood:
    understood = Understood(reason=response.status)
    for item in response.output:
        match item.type:
            case "message":
                understood.text += "".join(part.text for part in item.content if part.type == "output_text")
                understood.refusal += "".join(part.refusal for part in item.content if part.type == "refusal")
            case "reasoning":
                assert item.encrypted_content
                understood.reasoning += "".join(part.text for part in item.summary)
            case "function_call":
                understood.calls.append((item.call_id, item.name, json.loads(item.arguments)))
    if response.usage:
        understood.num_input_tokens, understood.num_output_tokens = (
            response.usage.input_tokens,
            response.usage.output_tokens,
        )
        understood.num_cached_tokens = response.usage.input_tokens_details.cached_tokens
    return understood


def test_a_request_without_tools_has_none_in_any_dialect() -> None:
    for name in DIALECTS:
        assert (
            "tools" not in dialect_named(name).write_request(Request(messages=({"role": "user", "content": "?"},))).body
        )
