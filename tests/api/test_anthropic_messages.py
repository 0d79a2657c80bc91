"""Through the official SDK, as clients do it, and event by event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from tests.api.anthropic_harness import USER, MessagesSite, calling, events_in, running_messages, thinking
from tests.api.harness import Held, as_new, reply, tokens_of
from tests.api.test_reruns import Rerun

from kvstet.api import answering
from kvstet.api.anthropic.signatures import is_ours
from kvstet.api.sse import EventStream
from kvstet.engine.fake_client import Refuse, Say, ScriptedEngine
from kvstet.errors import ContextOverflow, DeadlineExceeded, EngineCrashed, KvstetError, QueueFull, ShuttingDown
from kvstet.types import DEFAULT_SAMPLING, Reuse

PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
NUM_PROMPT = len(tokens_of(PROMPT))
LS = {"name": "ls", "description": "Lists files.", "input_schema": {"type": "object"}}
FULL_REPLY = thinking("Look\nfirst.") + "I look." + calling("ls", {"path": "ü"}) + calling("pwd", {})


@pytest.fixture(scope="module")
def shared_messages_site() -> Iterator[MessagesSite]:
    with running_messages(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_messages_site: MessagesSite) -> MessagesSite:
    """A server whose model says "Hello."; its engine is as good as new."""
    return as_new(shared_messages_site)


def block_types(content: list[Any]) -> list[str]:
    return [block["type"] if isinstance(block, dict) else block.type for block in content]


def check_full_reply(message: Any) -> None:
    """The message must say what FULL_REPLY says."""
    assert block_types(message.content) == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, ls, pwd = message.content
    assert thought.thinking == "Look\nfirst."
    assert is_ours(thought.thinking, thought.signature)
    assert text.text == "I look."
    assert (ls.name, ls.input, pwd.name, pwd.input) == ("ls", {"path": "ü"}, "pwd", {})
    assert ls.id.startswith("toolu_")
    assert ls.id != pwd.id
    assert (message.stop_reason, message.stop_sequence) == ("tool_use", None)


def test_a_question_is_answered(site: MessagesSite):
    with site.anthropic() as client:
        answer = client.messages.create(model="any-name", max_tokens=100, messages=USER)
    assert block_types(answer.content) == ["text"]
    assert answer.content[0].text == "Hello."
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "any-name")
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_")
    assert site.prompt == PROMPT


@pytest.mark.parametrize("token_seconds", [0.0, 0.001], ids=["at once", "one by one"])
def test_a_stream_says_all_that_a_whole_answer_says(site: MessagesSite, token_seconds: float):
    site.engine.script = reply(FULL_REPLY, token_seconds=token_seconds)
    with site.anthropic() as client:
        whole = client.beta.messages.create(model="m", max_tokens=200, messages=USER, tools=[LS])
        with client.beta.messages.stream(model="m", max_tokens=200, messages=USER, tools=[LS]) as stream:
            streamed = stream.get_final_message()
    check_full_reply(whole)
    check_full_reply(streamed)
    assert streamed.usage == whole.usage


def test_the_async_sdk_works_with_and_without_streaming(site: MessagesSite):
    site.engine.script = reply(FULL_REPLY)

    async def talk(client: AsyncAnthropic) -> tuple[Any, Any]:
        whole = await client.messages.create(model="m", max_tokens=200, messages=USER)
        async with client.messages.stream(model="m", max_tokens=200, messages=USER) as stream:
            return whole, await stream.get_final_message()

    async def both() -> tuple[Any, Any]:
        async with site.async_anthropic() as client:
            return await talk(client)

    for message in asyncio.run(both()):
        check_full_reply(message)


def test_the_events_of_a_stream_come_in_the_apis_order(site: MessagesSite):
    site.engine.script = reply(thinking("Hm.") + "Yes." + calling("ls", {"a": 1}), reuse=Reuse(8, 2, 0, 40, 12))
    start, *blocks, delta, stop = site.events(model="tiny-2")
    signature = blocks[2]["delta"].pop("signature")
    call_id = blocks[7]["content_block"].pop("id")
    message = start["message"]
    assert message.pop("id").startswith("msg_")
    assert start["type"] == "message_start"
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "tiny-2",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": message["usage"],
    }
    assert message["usage"].pop("output_tokens") >= 1
    assert message["usage"] == {
        "input_tokens": 40,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 10,
    }
    assert blocks == [
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "thinking", "thinking": "", "signature": ""},
        },
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "Hm."}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Yes."}},
        {"type": "content_block_stop", "index": 1},
        {
            "type": "content_block_start",
            "index": 2,
            "content_block": {"type": "tool_use", "name": "ls", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 2,
            "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'},
        },
        {"type": "content_block_stop", "index": 2},
    ]
    assert is_ours("Hm.", signature)
    assert call_id.startswith("toolu_")
    assert (delta["type"], stop) == ("message_delta", {"type": "message_stop"})
    assert delta["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert delta["usage"]["output_tokens"] == site.engine.stats().num_generated_tokens
    assert {"timings", "kvstet"} <= set(delta)
    assert delta["kvstet"]["reused"] == 8


def test_usage_tells_what_was_cached_and_adds_up_to_the_prompt(site: MessagesSite):
    site.engine.script = reply("Hello.", reuse=Reuse(8, 2, 3, NUM_PROMPT - 13, 13))
    answer = site.ask()
    assert answer["usage"] == {
        "input_tokens": NUM_PROMPT - 13,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 13,
        "output_tokens": len("Hello.") + 1,
    }
    assert answer["timings"]["cache_n"] == 13
    assert (answer["kvstet"]["loaded"], answer["kvstet"]["fidelity"]) == (2, "approximate")


def test_text_that_is_only_white_space_makes_no_block(site: MessagesSite):
    site.engine.script = reply("\n" + thinking("Hm.") + "\n\n" + calling("ls", {}) + " \n", token_seconds=0.001)
    assert block_types(site.ask()["content"]) == ["thinking", "tool_use"]
    starts = [event for event in site.events() if event["type"] == "content_block_start"]
    assert [(event["index"], event["content_block"]["type"]) for event in starts] == [(0, "thinking"), (1, "tool_use")]


def test_white_space_before_text_belongs_to_it(site: MessagesSite):
    site.engine.script = reply(thinking("Hm.") + "\n\n  Yes.\n", token_seconds=0.001)
    assert site.ask()["content"][1] == {"type": "text", "text": "\n\n  Yes.\n"}


def test_a_reply_that_says_nothing_has_no_blocks(site: MessagesSite):
    site.engine.script = reply("")
    answer = site.ask()
    assert (answer["content"], answer["stop_reason"]) == ([], "end_turn")
    assert [event["type"] for event in site.events()] == ["message_start", "message_delta", "message_stop"]


def test_a_limit_of_no_tokens_computes_the_prompt_only(site: MessagesSite):
    answer = site.ask(max_tokens=0)
    assert (answer["content"], answer["stop_reason"]) == ([], "max_tokens")
    assert site.engine.requests[0].max_new_tokens == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_token_limit_ends_the_reply(site: MessagesSite, stream: bool):
    with site.anthropic() as client, client.messages.stream(model="m", max_tokens=3, messages=USER) as events:
        message = (
            events.get_final_message() if stream else client.messages.create(model="m", max_tokens=3, messages=USER)
        )
    assert message.content[0].text == "Hel"
    assert message.stop_reason == "max_tokens"


def test_a_reply_that_fills_the_context_says_so(site: MessagesSite):
    site.engine.script = reply("Hello.", reason="length")
    assert site.ask()["stop_reason"] == "model_context_window_exceeded"


@pytest.mark.parametrize("token_seconds", [0.0, 0.001], ids=["at once", "one by one"])
def test_a_stop_sequence_is_named_and_never_shown(site: MessagesSite, token_seconds: float):
    site.engine.script = Say(tokens_of("One, two, three, four"), token_seconds=token_seconds)
    answer = site.ask(stop_sequences=[" thr", "", "never"])
    assert answer["content"] == [{"type": "text", "text": "One, two,"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", " thr")
    *_, delta, _ = events = site.events(stop_sequences=[" thr"])
    assert delta["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": " thr"}
    assert "".join(event["delta"].get("text", "") for event in events if "index" in event and "delta" in event) == (
        "One, two,"
    )


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "", "{'a': 1}", "[" * 5_000], ids=lambda text: text[:10])
def test_arguments_that_are_no_object_leave_the_input_empty(site: MessagesSite, arguments: str):
    site.engine.script = reply(calling("ls", arguments))
    assert site.ask(max_tokens=200_000)["content"][0]["input"] == {}


def test_a_call_that_is_cut_off_is_closed(site: MessagesSite):
    site.engine.script = reply(calling("ls", {"path": "a long one"}))
    events = site.events(max_tokens=12)
    assert [event["type"] for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[-2]["delta"]["stop_reason"] == "max_tokens"


def test_thinking_comes_back_into_the_prompt(site: MessagesSite):
    site.engine.script = reply(thinking("Look first.") + "I look." + calling("ls", {"path": "."}))
    with site.anthropic() as client:
        answer = client.messages.create(model="m", max_tokens=200, messages=USER, tools=[LS])
        result = {"type": "tool_result", "tool_use_id": answer.content[2].id, "content": "a.txt"}
        said = {"role": "assistant", "content": answer.content}
        history = [*USER, said, {"role": "user", "content": [result]}]
        client.messages.create(model="m", max_tokens=200, messages=history, tools=[LS])
    call = answer.content[2].id
    assert (
        "<|im_start|>assistant\n<think>Look first.</think>I look."
        f'<call {call}>ls {{"path": "."}}</call><|im_end|>\n<|im_start|>tool\n(ls {call})a.txt<|im_end|>\n'
    ) in site.prompt


def test_thinking_that_is_not_to_be_shown_comes_back_all_the_same(site: MessagesSite):
    site.engine.script = reply(thinking("Für mich.") + "Yes.")
    adaptive = {"type": "adaptive", "display": "omitted"}
    answer = site.ask(thinking=adaptive)
    assert answer["content"][0]["thinking"] == ""
    assert "mich" not in json.dumps(site.events(thinking=adaptive))
    site.ask(messages=[*USER, {"role": "assistant", "content": answer["content"]}, *USER])
    assert "<think>Für mich.</think>Yes." in site.prompt


def test_edits_of_the_context_are_reported_as_not_made(site: MessagesSite):
    edits = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}
    assert site.ask(context_management=edits)["context_management"] == {"applied_edits": []}
    assert site.events(context_management=edits)[-2]["context_management"] == {"applied_edits": []}
    assert "context_management" not in site.ask()
    count = {"messages": USER, "context_management": edits}
    counted = site.post("/v1/messages/count_tokens", count).json()
    assert counted == {"input_tokens": NUM_PROMPT, "context_management": {"original_input_tokens": NUM_PROMPT}}


def test_tokens_are_counted_as_they_would_be_sent(site: MessagesSite):
    site.engine.script = reply("Hello.")
    with site.anthropic() as client:
        counted = client.messages.count_tokens(model="m", messages=USER, tools=[LS], system="Be brief.")
        answer = client.messages.create(model="m", max_tokens=10, messages=USER, tools=[LS], system="Be brief.")
        beta = client.beta.messages.count_tokens(model="m", messages=USER)
    assert counted.input_tokens == answer.usage.input_tokens
    assert beta.input_tokens == NUM_PROMPT


def test_counting_needs_no_engine_and_has_no_limit(site: MessagesSite):
    response = site.post("/v1/messages/count_tokens?beta=true", {"messages": [{"role": "user", "content": "x" * 5000}]})
    assert response.json()["input_tokens"] == 5000 + NUM_PROMPT - len("Hi")
    assert site.engine.requests == []


def test_sampling_follows_the_request(site: MessagesSite):
    site.ask()
    assert site.engine.requests[-1].sampling == DEFAULT_SAMPLING
    site.ask(temperature=0, top_p=0.5, top_k=7, service_tier="auto", metadata={"user_id": "x"}, speed="fast")
    assert site.engine.requests[-1].sampling == replace(DEFAULT_SAMPLING, temperature=0.0, top_p=0.5, top_k=7)


@pytest.mark.parametrize(
    "wanted",
    [
        {"output_config": {"format": {"type": "json_schema", "schema": {"const": 1}}, "effort": None}},
        {"output_format": {"type": "json_schema", "schema": {"const": 1}}},
    ],
    ids=["output_config", "output_format"],
)
def test_an_output_format_becomes_a_grammar(site: MessagesSite, wanted: dict[str, Any]):
    site.ask(**wanted)
    assert site.engine.requests[0].sampling.grammar == "root ::= ['const']"


def test_a_whole_answer_may_be_begun_anew_and_a_stream_may_not(site: MessagesSite):
    site.ask()
    site.events()
    assert [request.is_streamed for request in site.engine.requests] == [False, True]


@pytest.mark.parametrize("pause_seconds", [0.0, 0.02], ids=["at once", "later"])
def test_of_a_reply_that_was_begun_anew_only_the_second_try_is_told(site: MessagesSite, pause_seconds: float):
    site.engine.script = Rerun(thinking("Wrong") + calling("ls", {}), "Right.", pause_seconds)
    answer = site.ask()
    assert answer["content"] == [{"type": "text", "text": "Right."}]
    assert answer["stop_reason"] == "end_turn"


def test_a_long_prompt_is_bridged_by_pings(site: MessagesSite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answering, "EventStream", partial(EventStream, ping_seconds=0.02))
    site.engine.script = held = Held(reply("Hello."))
    lines: list[str] = []
    body = {"model": "m", "max_tokens": 9, "messages": USER, "stream": True}
    with site.http() as client, client.stream("POST", "/v1/messages", json=body) as response:
        for line in response.iter_lines():
            lines.append(line)
            if lines.count("event: ping") == 2:
                held.go.set()
    types = [event["type"] for event in events_in("\n".join([*lines, ""]))]
    assert types[:2] == ["ping", "ping"]
    assert [kind for kind in types if kind != "ping"][:3] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
    ]
    with site.anthropic() as client, client.messages.stream(model="m", max_tokens=9, messages=USER) as stream:
        assert stream.get_final_text() == "Hello."


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (QueueFull("Full."), 429, "rate_limit_error"),
        (EngineCrashed("Died."), 503, "overloaded_error"),
        (ShuttingDown("Bye."), 503, "overloaded_error"),
        (DeadlineExceeded("Late."), 504, "timeout_error"),
        (RuntimeError("secret"), 500, "api_error"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
@pytest.mark.parametrize("stream", [True, False])
def test_errors_have_anthropics_envelope(site: MessagesSite, error: KvstetError, status: int, kind: str, stream: bool):
    site.engine.script = Refuse(error)
    with site.anthropic() as client, pytest.raises(anthropic.APIStatusError) as caught:
        client.messages.create(model="m", max_tokens=9, messages=USER, stream=stream)
    assert caught.value.status_code == status
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"type", "error"}
    assert caught.value.body["error"]["type"] == kind
    assert "secret" not in str(caught.value.body)
    assert ("retry-after" in caught.value.response.headers) == (status in (429, 503))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("from_engine", [True, False])
def test_a_prompt_over_the_context_is_told_in_the_words_clients_look_for(
    site: MessagesSite, stream: bool, from_engine: bool
):
    size = 9 if from_engine else 5000
    if from_engine:
        site.engine.script = Refuse(ContextOverflow(num_prompt_tokens=5000 + NUM_PROMPT - 2, max_prompt_tokens=4096))
    messages = [{"role": "user", "content": "x" * size}]
    with site.anthropic() as client, pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(model="m", max_tokens=9, messages=messages, stream=stream)
    words = f"prompt is too long: {5000 + NUM_PROMPT - 2} tokens > 4096 maximum"
    assert caught.value.body == {"type": "error", "error": {"type": "invalid_request_error", "message": words}}


def test_what_fails_in_the_middle_of_a_stream_is_an_error_that_the_sdk_raises(site: MessagesSite):
    site.engine.script = Say(tokens_of("Hel"), error=EngineCrashed("The engine died."), token_seconds=0.005)
    parts: list[str] = []
    with site.anthropic() as client:
        with (
            pytest.raises(anthropic.APIStatusError, match=r"The engine died\."),
            client.messages.stream(model="m", max_tokens=9, messages=USER) as stream,
        ):
            parts.extend(stream.text_stream)
        response = site.post("/v1/messages", {"max_tokens": 9, "messages": USER, "stream": True})
    assert "".join(parts) == "Hel"
    assert events_in(response.text)[-1] == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "The engine died."},
    }


def test_a_wrong_method_is_told_in_the_envelope(site: MessagesSite):
    response = site.get("/v1/messages")
    assert response.status_code == 405
    assert response.json()["type"] == "error"
