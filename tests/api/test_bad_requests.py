"""Bodies that cannot be served: each a clear 4xx, and the server serves on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from tests.api.harness import ScriptedEngine, Site, reply, running

from kvstet.engine.fake_client import Refuse
from kvstet.errors import (
    ContextOverflow,
    DeadlineExceeded,
    EngineCrashed,
    GrammarError,
    InvalidRequest,
    KvstetError,
    OutOfCells,
    QueueFull,
    ShuttingDown,
)

USER = [{"role": "user", "content": "Hi"}]


def error_of(response: httpx2.Response) -> dict[str, Any]:
    """The error, which must have OpenAI's envelope."""
    body = response.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def serves_on(site: Site) -> bool:
    site.engine.script = reply("Hello.")
    return site.post("/v1/chat/completions", {"messages": USER}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [}',
        b"[]",
        b"null",
        b'"text"',
        os.urandom(1024 * 1024),
        b"\x00" * 1024 * 1024,
        b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "Hi"}], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages": [{"role": "user", "content": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}]}",
        b'{"messages": [{"role": "user", "content": "Hi"}]} trailing',
        b'{"messages": [{"role": "user", "content": "Hi"}], "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:40]),
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
def test_what_is_not_a_request_is_a_400(site: Site, path: str, body: bytes):
    response = site.post(path, body)
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"
    assert site.engine.requests == []
    assert serves_on(site)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "alien", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"tools": {}}, "tools"),
        ({"tools": [1]}, "tools[0]"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e9}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": 2**31}, "top_k"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 2**70}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"5": "a"}}, "logit_bias[...]"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        ({"chat_template_kwargs": 5}, "chat_template_kwargs"),
    ],
    ids=str,
)
def test_an_absurd_field_is_named(site: Site, fields: dict[str, Any], param: str):
    response = site.post("/v1/chat/completions", {"messages": USER, **fields})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert param.split("[", maxsplit=1)[0].split(".", maxsplit=1)[0] in error["message"]
    assert site.engine.requests == []


def test_the_sdk_raises_its_own_errors(site: Site):
    with site.sdk() as client, pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model="m", messages=USER, temperature=-1)
    assert caught.value.param == "temperature"


@pytest.mark.parametrize("stream", [True, False])
def test_a_prompt_over_the_context_is_told_with_the_numbers(site: Site, stream: bool):
    messages = [{"role": "user", "content": "x" * 5000}]
    response = site.post("/v1/chat/completions", {"messages": messages, "stream": stream})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == "messages"
    assert "maximum context length is 4096 tokens" in error["message"]
    assert serves_on(site)


@pytest.mark.parametrize("prompt", ["x" * 5000, [1] * 5000, ["x", "x" * 5000]], ids=["text", "tokens", "list"])
def test_a_text_over_the_context_is_told_under_its_own_name(site: Site, prompt: object):
    error = error_of(site.post("/v1/completions", {"prompt": prompt}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


def test_a_prompt_that_leaves_no_room_for_a_reply_is_refused_unless_none_is_asked_for(site: Site):
    error = error_of(site.post("/v1/completions", {"prompt": [1] * 4096}))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert site.post("/v1/completions", {"prompt": [1] * 4096, "max_tokens": 0}).status_code == 200
    assert site.post("/v1/completions", {"prompt": [1] * 4095}).status_code == 200


def test_a_template_that_raises_is_a_400_with_its_words(site: Site):
    response = site.post("/v1/chat/completions", {"messages": [{"role": "tool", "content": "bad"}]})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "chat_template_error"
    assert "no such tool" in error["message"]
    assert serves_on(site)


def test_a_schema_that_cannot_be_a_grammar_is_a_400(site: Site):
    response = site.post("/v1/chat/completions", {"messages": USER, "json_schema": {"$ref": "x"}})
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_grammar"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("No."), 400, "invalid_request_error"),
        (GrammarError("No."), 400, "invalid_grammar"),
        (ContextOverflow(num_prompt_tokens=9, max_prompt_tokens=8), 400, "context_length_exceeded"),
        (QueueFull("Full."), 429, "queue_full"),
        (EngineCrashed("Died."), 503, "engine_crashed"),
        (ShuttingDown("Bye."), 503, "shutting_down"),
        (DeadlineExceeded("Late."), 504, "deadline_exceeded"),
        (OutOfCells("No room."), 500, "internal_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_what_the_engine_raises_has_its_status(site: Site, error: KvstetError, status: int, code: str, stream: bool):
    site.engine.script = Refuse(error)
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": stream})
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert error_of(response)["message"] == str(error)
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_retry_after_is_in_whole_seconds(site: Site):
    error = QueueFull("Full.")
    error.retry_after_seconds = 2.3
    site.engine.script = Refuse(error)
    assert site.post("/v1/chat/completions", {"messages": USER}).headers["retry-after"] == "3"


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_is_a_500_that_leaks_nothing_and_is_logged(site: Site, stream: bool, caplog: pytest.LogCaptureFixture):
    site.engine.script = Refuse(RuntimeError("secret detail"))
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": stream})
    assert response.status_code == 500
    request_id = response.headers["x-request-id"]
    assert "secret" not in response.text
    assert request_id in error_of(response)["message"]
    assert f"request {request_id} failed: RuntimeError" in caplog.text
    assert "in __call__" in caplog.text
    assert "secret detail" not in caplog.text
    assert serves_on(site)


def test_a_bug_in_the_middle_of_a_stream_leaks_nothing(site: Site, caplog: pytest.LogCaptureFixture):
    async def broken(request: Any):
        async for event in reply("Hello.")(request):
            yield event
            if event.__class__.__name__ == "Token":
                raise RuntimeError("secret detail")

    site.engine.script = broken
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": True, "x": 1})
    assert "secret" not in response.text
    assert "secret detail" in caplog.text


def test_an_unknown_path_is_a_404_in_the_envelope(site: Site):
    response = site.post("/v1/nothing", {})
    assert response.status_code == 404
    assert error_of(response)["message"] == "There is nothing at POST /v1/nothing."


def test_a_wrong_method_is_a_405_that_tells_the_right_one(site: Site):
    response = site.get("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["message"] == "GET /v1/chat/completions is not possible; use POST."


@pytest.fixture(scope="module")
def small_site() -> Iterator[Site]:
    """A server that takes bodies of 100 kB."""
    with running(ScriptedEngine(reply("Hello.")), max_body_bytes=100_000) as site:
        yield site


def test_a_body_over_the_limit_is_a_413(small_site: Site):
    response = small_site.post("/v1/chat/completions", b"x" * 100_001)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"
    assert small_site.post("/v1/chat/completions", b"x" * 100_000).status_code == 400


def test_a_body_of_unknown_length_is_cut_off_at_the_limit(small_site: Site):
    def endless() -> Iterator[bytes]:
        for _ in range(500):
            yield b"x" * 10_000

    with small_site.http() as client:
        response = client.post("/v1/chat/completions", content=endless())
    assert response.status_code == 413


def test_a_content_length_over_the_limit_is_refused_without_the_body(small_site: Site):
    with small_site.connect() as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n{}")
        connection.settimeout(5)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
