"""``kvstet_reply``: a request that says what the reply shall be, in every dialect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
from tests.api.harness import Site, as_new, running
from tests.api.played_engine import PlayedEngine
from tests.api.traces import account_of

from kvstet.chat.builtin import builtin_template
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.engine.fake_client import ScriptedEngine

TOKENIZER = ByteTokenizer(eos="<|im_end|>")
END = TOKENIZER.special_tokens["<|im_end|>"]
PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "string"}}}
BASH = {"type": "function", "function": {"name": "bash", "description": "Runs.", "parameters": PARAMETERS}}
SAID = {"reasoning": "Hm.", "text": "Let me see.", "calls": [{"name": "bash", "args_raw": '{"cmd": "ls"}'}]}
GENERATED = (
    "<think>\nHm.\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "bash", "arguments": {"cmd": "ls"}}\n</tool_call><|im_end|>'
)


def text_of(tokens: Any) -> str:
    return b"".join(map(TOKENIZER.piece, tokens)).decode()


def bytes_of(text: str) -> list[int]:
    return TOKENIZER.tokenize(text, add_special=False, parse_special=True).tolist()


@pytest.fixture(scope="module")
def shared_forcing_site() -> Iterator[Site]:
    renderer = Renderer(builtin_template("chatml-tools"), TOKENIZER, ledger=Ledger())
    with running(ScriptedEngine(), renderer, TOKENIZER) as site:
        yield site


@pytest.fixture
def forcing(shared_forcing_site: Site) -> Site:
    return as_new(shared_forcing_site)


def ask(site: Site, path: str = "/v1/chat/completions", *, status: int = 200, **fields: Any) -> Any:
    response = site.post(path, fields)
    assert response.status_code == status, response.text
    return response.json()


def user(text: str = "Hi") -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_a_chat_says_what_it_is_told_to(forcing: Site):
    (choice,) = ask(forcing, messages=user(), tools=[BASH], kvstet_reply=SAID)["choices"]
    (request,) = forcing.engine.requests
    assert text_of(request.forced) == GENERATED
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == "Let me see."
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "bash", "arguments": '{"cmd": "ls"}'}
    assert choice["finish_reason"] == "tool_calls"


def test_a_stream_says_the_same(forcing: Site):
    body = {"messages": user(), "tools": [BASH], "stream": True, "kvstet_reply": SAID}
    lines = forcing.post("/v1/chat/completions", body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Hm."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Let me see."
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]][-1] == "tool_calls"


def test_messages_say_what_they_are_told_to(forcing: Site):
    tool = {"name": "bash", "description": "Runs.", "input_schema": PARAMETERS}
    answer = ask(forcing, "/v1/messages", messages=user(), tools=[tool], max_tokens=4096, kvstet_reply=SAID)
    assert [block["type"] for block in answer["content"]] == ["thinking", "text", "tool_use"]
    assert answer["content"][2]["input"] == {"cmd": "ls"}
    assert answer["stop_reason"] == "tool_use"


def test_responses_say_what_they_are_told_to(forcing: Site):
    tool = {"type": "function", "name": "bash", "description": "Runs.", "parameters": PARAMETERS}
    answer = ask(forcing, "/v1/responses", input="Hi", tools=[tool], kvstet_reply=SAID)
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    assert answer["output"][2]["arguments"] == '{"cmd": "ls"}'
    assert answer["status"] == "completed"


def test_ollama_says_what_it_is_told_to(forcing: Site):
    answer = ask(forcing, "/api/chat", messages=user(), tools=[BASH], stream=False, kvstet_reply=SAID)
    assert answer["message"]["content"] == "Let me see."
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == {"cmd": "ls"}
    assert answer["done_reason"] == "stop"


def test_a_text_goes_on_as_it_is_told_to(forcing: Site):
    (choice,) = ask(forcing, "/v1/completions", prompt="one,", kvstet_reply={"text": " two"})["choices"]
    assert (choice["text"], choice["finish_reason"]) == (" two", "stop")


def test_a_text_calls_nothing(forcing: Site):
    error = ask(forcing, "/v1/completions", status=400, prompt="one,", kvstet_reply=SAID)["error"]
    assert error["param"] == "kvstet_reply"


def test_tokens_are_said_as_they_are(forcing: Site):
    tokens = [*bytes_of("ab"), END]
    (choice,) = ask(forcing, messages=user(), kvstet_reply={"tokens": tokens})["choices"]
    assert list(forcing.engine.requests[0].forced) == tokens
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "stop")


def test_tokens_without_an_end_are_a_reply_that_was_cut(forcing: Site):
    (choice,) = ask(forcing, messages=user(), kvstet_reply={"tokens": bytes_of("ab")})["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("ab", "length")


def test_limit_and_stop_strings_hold_as_ever(forcing: Site):
    (cut,) = ask(forcing, messages=user(), max_tokens=3, kvstet_reply={"text": "abcdef"})["choices"]
    (stopped,) = ask(forcing, messages=user(), stop="de", kvstet_reply={"text": "abcdef"})["choices"]
    assert (cut["message"]["content"], cut["finish_reason"]) == ("abc", "length")
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("abc", "stop")


def test_nothing_is_drawn_so_no_grammar_is_made(forcing: Site):
    ask(forcing, messages=user(), tools=[BASH], tool_choice="required", kvstet_reply=SAID)
    assert forcing.engine.requests[0].sampling.grammar is None
    with patch.object(Renderer, "call_grammar", side_effect=AssertionError("made")):
        ask(forcing, messages=user(), tools=[BASH], kvstet_reply=SAID)


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ({"tokens": [TOKENIZER.num_tokens]}, "no token"),
        ({"tokens": [-1]}, "no token"),
        ({"tokens": []}, "length >= 1"),
        ({"tokens": [1], "text": "a"}, "either tokens, or"),
        ({"txt": "a"}, "unknown field"),
        ({"calls": [{"name": "bash", "args_raw": "{"}]}, "no way to write"),
        ({"text": "a <tool_call> b </think>", "reasoning": "</think>"}, "no way to write"),
    ],
)
def test_what_cannot_be_said_is_refused(forcing: Site, reply: dict[str, Any], says: str):
    error = ask(forcing, status=400, messages=user(), tools=[BASH], kvstet_reply=reply)["error"]
    assert says in error["message"]
    assert str(error["param"]).startswith("kvstet_reply")
    assert not forcing.engine.requests


def test_without_tools_there_are_no_calls(forcing: Site):
    error = ask(forcing, status=400, messages=user(), kvstet_reply=SAID)["error"]
    assert "no way to write" in error["message"]


def test_a_reply_that_does_not_fit_is_refused(forcing: Site):
    long = "x" * forcing.engine.info.context_length
    error = ask(forcing, status=400, messages=user(), kvstet_reply={"text": long})["error"]
    assert error["code"] == "context_length_exceeded"
    assert ask(forcing, messages=user(), max_tokens=1, kvstet_reply={"text": long})["usage"]["completion_tokens"] == 1


def test_what_goes_on_from_it_computes_only_what_is_new():
    """To the token: behind the prompt and the reply, all but the token that ended it are there."""
    engine = PlayedEngine(context_length=1 << 16, vocab_size=TOKENIZER.num_tokens, end=END)
    renderer = Renderer(builtin_template("chatml-tools"), TOKENIZER, ledger=Ledger())
    with running(engine, renderer, TOKENIZER) as site:
        messages = user("List the files.")
        ask(site, messages=messages, tools=[BASH], kvstet_reply=SAID)
        before = engine.requests[-1]
        call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": '{"cmd":"ls"}'}}
        told = {"role": "assistant", "content": "Let me see.", "reasoning_content": "Hm.", "tool_calls": [call]}
        messages += [told, {"role": "tool", "tool_call_id": "c1", "content": "a.py"}]
        answer = site.post("/v1/chat/completions", {"messages": messages, "tools": [BASH], "max_tokens": 1})
    num_had = len(before.tokens) + len(before.forced) - 1
    num_asked = len(engine.requests[-1].tokens)
    assert engine.requests[-1].tokens[: num_had + 1].tolist() == [*before.tokens.tolist(), *before.forced]
    assert account_of(answer)["computed"] == num_asked - num_had
