"""What clients do wrong, and how they leave: each is answered clearly or freed at once, and the server serves on."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from openai import AuthenticationError, BadRequestError
from tests.cli.harness import KEY, Body, Served, eventually, head_of, serving, user

TEMPLATE = """
{%- for message in messages -%}
{%- if "mustard" in message.content -%}{{ raise_exception("no mustard, please") }}{%- endif -%}
<|im_start|>{{ message.role }}{{ "\\n" }}{{ message.content }}<|im_end|>{{ "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant{{ "\\n" }}{%- endif -%}
"""

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MEGABYTE = 1 << 20
pytestmark = pytest.mark.timeout(300)

ENDLESS = {"max_tokens": 1900, "ignore_eos": True}
NUM_LONG = 1500
COMPUTED, GENERATED = 'kvstet_prompt_tokens_total{source="computed"}', "kvstet_generated_tokens_total"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    template = folder / "strict.jinja"
    template.write_text(TEMPLATE)
    options = ("--chat-template", str(template), "--api-key", KEY, "--api-key", "other", "--max-body", "2")
    with serving(folder, *options) as served:
        yield served


def serves_on(served: Served) -> bool:
    return served.complete("1, 2, 3, 4,", max_tokens=2)["choices"][0]["text"] == " 5"


# Requests that cannot be served


def error_of(served: Served, path: str, body: Body | bytes, status: int = 400) -> Body:
    response = served.post(path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(os.urandom(MEGABYTE), id="random"),
        pytest.param(b"\0" * MEGABYTE, id="zeros"),
        pytest.param(b'{"tools": [' + b'{"a":' * (MEGABYTE // 5), id="nested"),
        pytest.param(b'{"messages": [{"role": "user", "content": "' + b"x" * MEGABYTE, id="unfinished"),
        pytest.param(b'{"messages": [}', id="broken"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_body_that_is_not_json_is_refused(served: Served, body: bytes):
    error = error_of(served, CHAT, body)
    assert error["message"].startswith(
        ("The body is not valid JSON in UTF-8: ", "The body is nested more than 100 levels deep.")
    )
    assert len(error["message"]) < 300
    assert serves_on(served)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, None),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "alien", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": user("Hi"), "temperature": -1}, "temperature"),
        ({"messages": user("Hi"), "temperature": "hot"}, "temperature"),
        ({"messages": user("Hi"), "max_tokens": 1.5}, "max_tokens"),
        ({"messages": user("Hi"), "n": 1000}, "n"),
        ({"messages": user("Hi"), "logit_bias": {"99999999": 1}}, "logit_bias"),
    ],
)
def test_an_absurd_field_is_named(served: Served, body: Body, param: str | None):
    error = error_of(served, CHAT, body)
    assert error["param"] == param
    assert serves_on(served)


def test_a_grammar_that_cannot_be_used_is_refused(served: Served):
    error = error_of(served, CHAT, {"messages": user("Hi"), "grammar": "root ::= ("})
    assert error["code"] == "invalid_grammar"
    assert serves_on(served)


def test_a_prompt_over_the_context_is_told_with_the_numbers(served: Served):
    text = "word " * (MEGABYTE // 5)
    num_tokens = len(served.post("/tokenize", {"content": text}).json()["tokens"])
    with served.sdk() as client, pytest.raises(BadRequestError) as refusal:
        client.completions.create(model="m", prompt=text)
    assert refusal.value.code == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in refusal.value.message
    assert f"the prompt has {num_tokens} tokens" in refusal.value.message
    assert serves_on(served)


def test_a_conversation_over_the_context_is_refused_too(served: Served):
    with served.sdk() as client, pytest.raises(BadRequestError) as refusal:
        client.chat.completions.create(model="m", messages=user("word " * 3000), stream=True)
    assert refusal.value.code == "context_length_exceeded"
    assert serves_on(served)


def test_a_template_that_raises_is_told_in_its_words(served: Served):
    for stream in (False, True):
        error = error_of(served, CHAT, {"messages": user("Ham with mustard"), "stream": stream})
        assert error["code"] == "chat_template_error"
        assert "no mustard, please" in error["message"]
    assert served.chat("Ham")["choices"][0]["message"]["content"]


def test_a_body_over_the_limit_is_refused(served: Served):
    error = error_of(served, CHAT, b" " * (2 * MEGABYTE + 1), 413)
    assert error["code"] == "request_too_large"
    assert serves_on(served)


def test_an_unknown_path_and_a_wrong_method_are_told(served: Served):
    assert "POST /v1/embeddings" in error_of(served, "/v1/embeddings", {}, 404)["message"]
    assert "GET" in error_of(served, "/v1/models", {}, 405)["message"]


def test_a_key_is_asked_for(served: Served):
    with served.sdk("wrong") as client, pytest.raises(AuthenticationError, match="API key"):
        client.models.list()
    for key in (KEY, "other"):
        with served.sdk(key) as client:
            assert client.models.list().data
    with served.http() as client:
        del client.headers["authorization"]
        assert client.get("/health").status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.post(TEXT, json={"prompt": "Hi"}).status_code == 401


def test_what_was_refused_is_counted_and_leaves_no_word_in_the_log(served: Served):
    name = 'kvstet_requests_total{outcome="client_error",route="/v1/chat/completions"}'
    num_before, num_lines = served.metrics().get(name, 0), len(served.text)
    error_of(served, CHAT, b"{")
    assert served.metric(name) == num_before + 1
    assert len(served.text) == num_lines


# Clients that hang up


def long_prompt(name: str) -> str:
    """A prompt of more than `NUM_LONG` tokens, which begins like no other."""
    return name + " word" * NUM_LONG


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_during_the_reply_frees_it(served: Served, stream: bool):
    before = served.metric(GENERATED)
    with served.asked(TEXT, prompt=f"A story ({stream}):", stream=stream, **ENDLESS) as connection:
        if stream:
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: served.metric(GENERATED) > before + 3)
        assert served.num_running == 1
    assert eventually(lambda: served.num_running == 0)
    assert served.metric(GENERATED) - before < 1000
    assert serves_on(served)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_during_a_long_prompt_frees_it(served: Served, stream: bool):
    before = served.metric(COMPUTED)
    with served.asked(TEXT, prompt=long_prompt(f"Prompt {stream}"), stream=stream, max_tokens=1):
        assert eventually(lambda: served.metric(COMPUTED) > before)
        assert served.num_running == 1
    assert eventually(lambda: served.num_running == 0)
    assert served.metric(COMPUTED) - before < NUM_LONG
    assert serves_on(served)


def test_what_a_client_that_hung_up_had_computed_is_kept(served: Served):
    before = served.metric(COMPUTED)
    prompt = long_prompt("Kept")
    with served.asked(TEXT, prompt=prompt, max_tokens=1):
        assert eventually(lambda: served.metric(COMPUTED) > before + 100)
    assert eventually(lambda: served.num_running == 0)
    num_computed = served.metric(COMPUTED) - before
    answer = served.complete(prompt[:300], max_tokens=1)
    assert num_computed < NUM_LONG
    assert answer["kvstet"]["computed"] < answer["usage"]["prompt_tokens"] / 2


def test_hanging_up_while_waiting_leaves_the_queue(served: Served):
    before = served.metric(GENERATED)
    with ExitStack() as connections:
        for n in range(6):
            connections.enter_context(served.asked(TEXT, prompt=f"Endless story {n}:", **ENDLESS))
        assert eventually(lambda: served.metric("kvstet_waiting_requests") == 2)
        assert served.num_running == 4
    assert eventually(lambda: served.num_running == served.metric("kvstet_waiting_requests") == 0)
    assert served.metric(GENERATED) - before < 4 * 1000
    assert serves_on(served)


def test_hanging_up_in_the_middle_of_a_body_asks_nothing(served: Served):
    host, port = served.url.removeprefix("http://").split(":")
    before = served.metric(COMPUTED)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head_of(TEXT, host, 1000) + b'{"prompt": "Hi')
    assert served.metric(COMPUTED) == before
    assert serves_on(served)
