from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.samples import ENCRYPTED, SIGNED, replies, requests

from kvstet.dialects.dialect import Dialect, StreamReader, dialect_named
from kvstet.dialects.reply import Delta
from kvstet.dialects.request import Request, Terms
from kvstet.dialects.whole import Reply, reply_of

CLAUDE, GPT = "claude-opus-5", "gpt-5.6"


def again(dialect: Dialect, request: Request) -> Request:
    return dialect.read_request(dialect.write_request(request).body)


def comparable(terms: Terms) -> Terms:
    """Without what only one of the two sides says: a usage that is asked for in any case."""
    return replace(terms, includes_usage=None)


@given(requests(detail=SIGNED))
def test_a_request_means_the_same_after_chat(request: Request) -> None:
    back = again(dialect_named("chat"), request)
    assert back.messages == request.messages
    assert back.tools == request.tools
    assert comparable(back.terms) == request.terms
    assert back.dropped == ()


@given(requests(detail=ENCRYPTED, model=GPT))
def test_a_request_means_the_same_after_responses(request: Request) -> None:
    back = again(dialect_named("responses"), request)
    assert back.messages == request.messages
    assert back.tools == request.tools
    assert back.terms == request.terms


@given(requests(detail=SIGNED, model=CLAUDE))
def test_a_request_means_the_same_after_messages(request: Request) -> None:
    written = dialect_named("messages").write_request(request)
    back = dialect_named("messages").read_request(written.body)
    assert back.messages == request.messages
    assert back.tools == request.tools
    # A call cannot be demanded of a model that is to think.
    demands = request.terms.tool_choice is not None and request.terms.tool_choice.mode == "required"
    thinks = request.terms.reasoning is not None and request.terms.reasoning.effort != "none"
    expected = replace(request.terms, reasoning=None) if demands and thinks else request.terms
    assert ("reasoning" in written.dropped) is (demands and thinks)
    parallel = None if request.terms.tool_choice and request.terms.tool_choice.mode == "none" else False
    if request.terms.allows_parallel_calls is False:
        expected = replace(expected, allows_parallel_calls=parallel, tool_choice=back.terms.tool_choice)
    assert back.terms == expected


def written_stream(dialect: Dialect, request: Request, deltas: list[Delta]) -> bytes:
    writer = dialect.reply_writer(request)
    return b"".join(map(writer.feed, deltas))


def read_in_pieces(dialect: Dialect, data: bytes, places: list[int]) -> Reply:
    reader = StreamReader(dialect)
    cuts = sorted(place % (len(data) + 1) for place in places)
    pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    reply = reply_of([*(delta for piece in pieces for delta in reader.feed(piece)), *reader.finish()])
    assert reader.is_complete
    return reply


def meaning(reply: Reply) -> dict[str, Any]:
    assert reply.end is not None
    assert reply.failure is None
    return {
        "reasoning": reply.reasoning,
        "text": reply.text,
        "calls": [(call.id, call.name, call.arguments) for call in reply.calls],
        "reason": reply.end.reason,
        "usage": reply.usage,
    }


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
@given(deltas=replies(), places=st.lists(st.integers(0, 10_000), max_size=6))
def test_a_streamed_reply_means_the_same_however_it_is_cut(name: str, deltas: list[Delta], places: list[int]) -> None:
    dialect = dialect_named(name)
    data = written_stream(dialect, Request(terms=Terms(is_streamed=True, includes_usage=True)), deltas)
    assert meaning(read_in_pieces(dialect, data, places)) == meaning(reply_of(deltas))


@pytest.mark.parametrize("name", ["chat", "messages", "responses"])
@given(deltas=replies())
def test_a_whole_reply_means_the_same(name: str, deltas: list[Delta]) -> None:
    dialect, reply = dialect_named(name), reply_of(deltas)
    reader = dialect.reply_reader()
    back = reply_of(reader.whole(dialect.write_reply(Request(), reply)))
    assert meaning(back) == meaning(reply)
    assert reader.is_complete


@pytest.mark.parametrize("name", ["messages", "responses"])
@pytest.mark.parametrize("detail", [SIGNED, ENCRYPTED], ids=["anthropic", "openai"])
@given(data=st.data())
def test_a_foreign_seal_comes_back_through_the_client(name: str, detail: dict[str, Any], data: st.DataObject) -> None:
    """What a client of one vendor's API got from the other vendor, it sends back with its next request."""
    deltas = data.draw(replies(detail=detail))
    reply, dialect = reply_of(deltas), dialect_named(name)
    body = dialect.write_reply(Request(), reply)
    history = (
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": body["content"] or "."}]}
        if name == "messages"
        else {"input": [{"role": "user", "content": "?"}, *body["output"], {"role": "user", "content": "!"}]}
    )
    messages = dialect.read_request(history).messages
    returned = [detail for message in messages for detail in message.get("reasoning_details", ())]
    assert returned == list(reply.details)
    assert "".join(message.get("reasoning_content", "") for message in messages) == reply.reasoning
