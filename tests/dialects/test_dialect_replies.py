from __future__ import annotations

import json
from typing import Any

import pytest
from tests.dialects.samples import ENCRYPTED, SIGNED, request, tool, user
from tests.dialects.upstreams import ARGUMENTS, REASONING, STREAMS, TEXT, WHOLES

from kvstet.dialects.dialect import StreamReader, dialect_named
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    Failure,
    ReasoningDelta,
    ReasoningSeal,
    RefusalDelta,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.request import Request, Terms
from kvstet.dialects.sequence import Sequencer
from kvstet.dialects.sse import SseDecoder
from kvstet.dialects.tools import custom_tool, namespaced_tool
from kvstet.dialects.whole import Call, Reply, reply_of
from kvstet.types import Usage

BEGIN, END = ReplyBegin("m"), ReplyEnd("stop")


def chat_deltas(*deltas: dict[str, Any], finish: str | None = "stop", done: bool = True) -> list[Delta]:
    """What a Chat reader makes of these deltas of a choice."""
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}] if finish else []
    data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + ("data: [DONE]\n\n" if done else "")
    reader = StreamReader(dialect_named("chat"))
    return [*reader.feed(data.encode()), *reader.finish()]


def fragment(arguments: str | None = None, **more: Any) -> dict[str, Any]:
    name = more.pop("name", None)
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{**more, "function": function}]}


def calls(deltas: list[Delta]) -> list[tuple[str, str, str]]:
    return [(call.id, call.name, call.arguments) for call in reply_of(deltas).calls]


TWO = [("a", "read", '{"p": 1}'), ("b", "list", '{"p": 2}')]


class TestChatCalls:
    def test_id_and_name_come_once(self) -> None:
        deltas = chat_deltas(
            fragment("", index=0, id="a", name="read"),
            fragment('{"p": ', index=0),
            fragment("1}", index=0),
            fragment("", index=1, id="b", name="list"),
            fragment('{"p": 2}', index=1),
        )
        assert calls(deltas) == TWO
        assert reply_of(deltas).end == ReplyEnd("tool_calls")

    def test_id_and_name_come_every_time(self) -> None:
        deltas = chat_deltas(
            fragment('{"p": ', index=0, id="a", name="read"),
            fragment("1}", index=0, id="a", name="read"),
            fragment('{"p": 2}', index=1, id="b", name="list"),
        )
        assert calls(deltas) == TWO

    def test_fragments_come_in_turn(self) -> None:
        deltas = chat_deltas(
            fragment('{"p"', index=0, id="a", name="read"),
            fragment('{"p"', index=1, id="b", name="list"),
            fragment(": 1}", index=0),
            fragment(": 2}", index=1),
        )
        assert calls(deltas) == TWO

    def test_there_is_no_index(self) -> None:
        deltas = chat_deltas(
            fragment('{"p": ', id="a", name="read"),
            fragment("1}"),
            fragment('{"p": 2}', id="b", name="list"),
        )
        assert calls(deltas) == TWO

    def test_every_call_has_index_0(self) -> None:
        deltas = chat_deltas(
            fragment('{"p": 1}', index=0, id="a", name="read"), fragment('{"p": 2}', index=0, id="b", name="list")
        )
        assert calls(deltas) == TWO

    def test_the_name_comes_after_the_id(self) -> None:
        deltas = chat_deltas(fragment('{"p"', index=0, id="a"), fragment(": 1}", index=0, name="read"))
        assert calls(deltas) == TWO[:1]

    def test_an_id_that_is_missing_is_made_up(self) -> None:
        ((id, name, _),) = calls(chat_deltas(fragment("{}", index=0, name="read")))
        assert id.startswith("call_")
        assert name == "read"

    def test_arguments_come_as_an_object(self) -> None:
        deltas = chat_deltas(
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "read", "arguments": {"p": 1}}}]}
        )
        assert calls(deltas) == [("a", "read", '{"p":1}')]

    def test_a_call_ends_when_the_next_begins_if_it_is_whole(self) -> None:
        deltas = chat_deltas(
            fragment('{"p": 1}', index=0, id="a", name="read"), fragment('{"p": 2}', index=1, id="b", name="list")
        )
        assert deltas.index(CallEnd(0)) < deltas.index(CallBegin(1, "b", "list"))

    def test_a_reply_that_calls_is_not_told_as_stopped(self) -> None:
        deltas = chat_deltas(fragment("{}", index=0, id="a", name="read"), finish="stop")
        assert deltas[-1] == ReplyEnd("tool_calls")


class TestChatReader:
    def test_openrouter_says_reasoning_twice_and_is_read_once(self) -> None:
        sealed = {**SIGNED, "index": 0}
        deltas = chat_deltas(
            {"reasoning": "Hm", "reasoning_details": [{"type": "reasoning.text", "text": "Hm", "index": 0}]},
            {"reasoning_details": [sealed]},
            {"content": "A"},
        )
        assert deltas[1:4] == [ReasoningDelta("Hm"), ReasoningSeal(SIGNED), TextDelta("A")]

    def test_mistral_thinks_in_parts_of_the_content(self) -> None:
        thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}
        deltas = chat_deltas({"content": [thought, {"type": "text", "text": "A"}]})
        assert deltas[1:3] == [ReasoningDelta("Hm"), TextDelta("A")]

    def test_a_stream_without_done_is_whole_if_it_gave_a_reason(self) -> None:
        assert chat_deltas({"content": "A"}, done=False)[-1] == ReplyEnd("stop")

    def test_a_stream_without_a_reason_is_whole_if_it_is_done(self) -> None:
        assert chat_deltas({"content": "A"}, finish=None)[-1] == ReplyEnd("stop")

    def test_a_stream_with_neither_is_truncated(self) -> None:
        reader = StreamReader(dialect_named("chat"))
        assert reader.feed(b'data: {"choices":[{"index":0,"delta":{"content":"A"}}]}\n\n')[-1] == TextDelta("A")
        assert not reader.is_complete
        (failure,) = reader.finish()
        assert isinstance(failure, Failure)
        assert failure.status == 502

    def test_only_the_first_choice_is_read(self) -> None:
        reader = StreamReader(dialect_named("chat"))
        chunk = {"choices": [{"index": 1, "delta": {"content": "B"}}, {"index": 0, "delta": {"content": "A"}}]}
        assert reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())[1:] == [TextDelta("A")]

    def test_usage_is_read_from_any_chunk(self) -> None:
        chunk = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        reader = StreamReader(dialect_named("chat"))
        told = UsageNews(Usage(num_input_tokens=5, num_output_tokens=2))
        assert reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())[1:] == [told]

    def test_llama_cpps_timings_tell_what_was_cached(self) -> None:
        chunk = {"choices": [], "timings": {"cache_n": 90, "prompt_n": 10, "predicted_n": 3}}
        reader = StreamReader(dialect_named("chat"))
        (news,) = reader.feed(f"data: {json.dumps(chunk)}\n\n".encode())[1:]
        assert isinstance(news, UsageNews)
        assert (news.usage.num_input_tokens, news.usage.num_cache_read_tokens) == (100, 90)


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
@pytest.mark.parametrize("form", ["stream", "whole"])
def test_each_vendors_reply_says_the_same(name: str, form: str) -> None:
    if form == "whole":
        reply = reply_of(dialect_named(name).reply_reader().whole(WHOLES[name]))
    else:
        reader = StreamReader(dialect_named(name))
        reply = reply_of([*reader.feed(STREAMS[name]), *reader.finish()])
    assert (reply.model, reply.reasoning, reply.text) == ("m-1", REASONING, TEXT)
    said = [(call.id, call.name, json.loads(call.arguments)) for call in reply.calls]
    assert said == [(f"call_{n}", "read", json.loads(arguments)) for n, arguments in enumerate(ARGUMENTS, 1)]
    assert reply.end == ReplyEnd("tool_calls")
    assert (reply.usage.num_input_tokens, reply.usage.num_cache_read_tokens) == (100, 60)
    seals = {
        "chat": (),
        "messages": ({**SIGNED, "text": REASONING},),
        "responses": ({**ENCRYPTED, "data": "Z0FBQUE=", "summary": REASONING},),
    }
    assert reply.details == seals[name]


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_a_stream_cut_anywhere_before_its_end_is_truncated(name: str) -> None:
    last = {
        "chat": b'"finish_reason": "tool_calls"',
        "messages": b'"stop_reason": "tool_use"',
        "responses": b"response.completed",
    }
    stop = STREAMS[name].index(last[name])
    for end in range(0, stop, 97):
        reader = StreamReader(dialect_named(name))
        deltas = [*reader.feed(STREAMS[name][:end]), *reader.finish()]
        assert isinstance(deltas[-1], Failure)
        assert not any(isinstance(delta, ReplyEnd) for delta in deltas)


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_nothing_follows_the_end(name: str) -> None:
    reader = StreamReader(dialect_named(name))
    assert isinstance(reader.feed(STREAMS[name])[-1], ReplyEnd)
    assert reader.feed(STREAMS[name]) == []
    assert reader.finish() == []


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_an_event_that_is_no_json_is_a_failure(name: str) -> None:
    (failure,) = StreamReader(dialect_named(name)).feed(b"data: {not json\n\n")
    assert isinstance(failure, Failure)
    assert "no JSON" in failure.message


def test_anthropics_stop_sequence_is_told() -> None:
    body = {**WHOLES["messages"], "content": [], "stop_reason": "stop_sequence", "stop_sequence": "END"}
    reply = reply_of(dialect_named("messages").reply_reader().whole(body))
    assert reply.end == ReplyEnd("stop", "END")
    assert dialect_named("messages").write_reply(Request(), reply)["stop_reason"] == "stop_sequence"


def test_an_imitator_puts_all_of_a_block_into_its_first_event() -> None:
    events = [
        {"type": "message_start", "message": {"model": "m"}},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "tool_use", "id": "a", "name": "read", "input": {"p": 1}},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_stop"},
    ]
    data = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    reply = reply_of(StreamReader(dialect_named("messages")).feed(data.encode()))
    assert reply.calls == (Call("a", "read", '{"p":1}'),)


def test_what_a_responses_stream_did_not_tell_in_pieces_is_taken_from_its_end() -> None:
    data = f"data: {json.dumps({'type': 'response.completed', 'response': WHOLES['responses']})}\n\n"
    reply = reply_of(StreamReader(dialect_named("responses")).feed(data.encode()))
    assert (reply.text, reply.reasoning, len(reply.calls)) == (TEXT, REASONING, 2)


def test_an_incomplete_response_tells_why() -> None:
    body = {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}, "output": []}
    assert dialect_named("responses").reply_reader().whole(body)[-1] == ReplyEnd("content_filter")
    assert dialect_named("responses").reply_reader().whole({"status": "incomplete", "output": []})[-1] == ReplyEnd(
        "length"
    )


class TestSequencer:
    def fed(self, *deltas: Delta) -> list[Delta]:
        sequence = Sequencer()
        return [out for delta in deltas for out in sequence.feed(delta)]

    def test_calls_that_alternate_come_one_after_the_other(self) -> None:
        a, b = CallBegin(0, "a", "x"), CallBegin(1, "b", "y")
        mixed = [
            a,
            b,
            ArgumentsDelta(0, "1"),
            ArgumentsDelta(1, "2"),
            ArgumentsDelta(0, "3"),
            CallEnd(1),
            CallEnd(0),
            END,
        ]
        assert self.fed(*mixed) == [
            a,
            ArgumentsDelta(0, "1"),
            ArgumentsDelta(0, "3"),
            CallEnd(0),
            b,
            ArgumentsDelta(1, "2"),
            CallEnd(1),
            END,
        ]

    def test_the_first_call_is_never_held_back(self) -> None:
        sequence = Sequencer()
        assert sequence.feed(CallBegin(0, "a", "x")) == [CallBegin(0, "a", "x")]
        assert sequence.feed(ArgumentsDelta(0, "1")) == [ArgumentsDelta(0, "1")]

    def test_text_within_a_call_comes_behind_it(self) -> None:
        a = CallBegin(0, "a", "x")
        assert self.fed(a, TextDelta("t"), ArgumentsDelta(0, "1"), CallEnd(0), END) == [
            a,
            ArgumentsDelta(0, "1"),
            CallEnd(0),
            TextDelta("t"),
            END,
        ]

    def test_what_is_open_is_closed_at_the_end(self) -> None:
        a, b = CallBegin(0, "a", "x"), CallBegin(1, "b", "y")
        assert self.fed(a, b, END) == [a, CallEnd(0), b, CallEnd(1), END]


def written(name: str, request: Request, *deltas: Delta) -> list[dict[str, Any]]:
    writer = dialect_named(name).reply_writer(request)
    events = SseDecoder().feed(b"".join(map(writer.feed, deltas)))
    return [json.loads(event.data) for event in events if event.data != "[DONE]"]


def test_a_responses_client_gets_its_custom_tool_and_its_namespace_back() -> None:
    tools = (
        custom_tool({"name": "apply_patch"}, "tools[0]"),
        namespaced_tool({"name": "spawn"}, {"name": "agents"}, "tools[1]"),
    )
    events = written(
        "responses",
        Request(tools=tools),
        CallBegin(0, "a", "apply_patch"),
        ArgumentsDelta(0, '{"input": "*** \\"Be'),
        ArgumentsDelta(0, 'gin\\""}'),
        CallEnd(0),
        CallBegin(1, "b", "agents__spawn"),
        ArgumentsDelta(1, "{}"),
        CallEnd(1),
        ReplyEnd("tool_calls"),
    )
    custom, plain = events[-1]["response"]["output"]
    assert (custom["type"], custom["name"], custom["input"]) == ("custom_tool_call", "apply_patch", '*** "Begin"')
    assert (plain["type"], plain["name"], plain["namespace"]) == ("function_call", "spawn", "agents")


def test_a_chat_client_gets_its_custom_tool_back() -> None:
    tools = (custom_tool({"name": "patch"}, "tools[0]"),)
    reply = Reply(calls=(Call("a", "patch", '{"input":"x"}'),), end=ReplyEnd("tool_calls"))
    body = dialect_named("chat").write_reply(Request(tools=tools), reply)
    called = {"id": "a", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    assert body["choices"][0]["message"]["tool_calls"] == [called]
    chunks = written(
        "chat", Request(tools=tools), CallBegin(0, "a", "patch"), ArgumentsDelta(0, '{"input":"x"}'), CallEnd(0), END
    )
    assert chunks[1]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **called}]


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
def test_a_client_gets_its_own_name_of_a_tool_back(name: str) -> None:
    long = "mcp__" + "server_" * 12 + "tool"
    asked = request(user("?"), tools=[tool(long)])
    upstream = dialect_named("chat").write_request(asked).body["tools"][0]["function"]["name"]
    assert upstream != long
    events = written(name, asked, CallBegin(0, "a", upstream), CallEnd(0), END)
    assert long in json.dumps(events)


def test_usage_is_told_to_a_chat_client_that_asked_for_it_and_to_no_other() -> None:
    news = UsageNews(Usage(num_input_tokens=3, num_output_tokens=2))
    for wanted in (True, False):
        chunks = written("chat", Request(terms=Terms(includes_usage=wanted)), BEGIN, TextDelta("A"), news, END)
        assert [bool(chunk.get("usage")) for chunk in chunks][-1] is wanted


def test_what_is_not_known_of_the_usage_is_not_told_as_zero() -> None:
    reply = Reply(text="A", usage=Usage(num_input_tokens=3, num_output_tokens=2), end=END)
    assert "prompt_tokens_details" not in dialect_named("chat").write_reply(Request(), reply)["usage"]
    assert dialect_named("messages").write_reply(Request(), reply)["usage"]["cache_read_input_tokens"] is None
    nothing = Reply(text="A", end=END)
    assert "usage" not in dialect_named("chat").write_reply(Request(), nothing)


def test_white_space_alone_makes_no_block() -> None:
    events = written("messages", Request(), BEGIN, TextDelta("\n\n"), CallBegin(0, "a", "x"), CallEnd(0), END)
    blocks = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert blocks == ["tool_use"]
    later = written("messages", Request(), BEGIN, TextDelta("\n"), TextDelta("A"), END)
    assert [event["delta"]["text"] for event in later if event["type"] == "content_block_delta"] == ["\nA"]


def test_every_thinking_block_has_a_signature() -> None:
    events = written("messages", Request(), BEGIN, ReasoningDelta("Hm"), TextDelta("A"), END)
    kinds = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "signature_delta", "text_delta"]


def test_redacted_thinking_does_not_seal_what_was_shown_before_it() -> None:
    redacted = {"type": "reasoning.encrypted", "data": "xyz", "format": SIGNED["format"]}
    events = written("messages", Request(), BEGIN, ReasoningDelta("Hm"), ReasoningSeal(redacted), END)
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in blocks] == ["thinking", "redacted_thinking"]
    assert blocks[1]["data"] == "xyz"


def test_a_refusal_ends_a_message_as_one() -> None:
    events = written("messages", Request(), BEGIN, RefusalDelta("No."), END)
    assert events[-2]["delta"]["stop_reason"] == "refusal"


def test_an_error_is_told_to_codex_and_to_the_sdk() -> None:
    events = written("responses", Request(), BEGIN, TextDelta("A"), Failure(500, "Fire."))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "Fire."}


def test_the_message_of_a_reply_can_be_sent_again() -> None:
    reply = reply_of(StreamReader(dialect_named("messages")).feed(STREAMS["messages"]))
    message = reply.message
    body = dialect_named("messages").write_request(request(user("?"), message, model="claude-opus-5")).body
    assert body["messages"][1]["content"] == WHOLES["messages"]["content"]
