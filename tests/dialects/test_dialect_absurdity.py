"""Nothing that a client or a server sends makes the dialects fail otherwise than they say."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dialects.recorded import recorded
from tests.dialects.samples import SESSION
from tests.dialects.upstreams import STREAMS, WHOLES

from kvstet.dialects.dialect import StreamReader, dialect_named, dialect_of_path
from kvstet.dialects.reply import Failure, ReplyEnd
from kvstet.dialects.request import Request
from kvstet.dialects.sse import SseDecoder
from kvstet.dialects.values import body_of, to_json
from kvstet.dialects.whole import reply_of
from kvstet.errors import InvalidRequest, RequestError

NAMES = ("chat", "messages", "responses")
ABSURD: tuple[Any, ...] = (
    None,
    True,
    -1,
    3.5,
    1e308,
    10**400,
    "",
    "x",
    "\ud83d",
    [],
    [[]],
    {},
    {"type": []},
    [None],
    [{}],
)

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything within a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in entries for place in places(inner, (*path, key)))]


def with_nonsense(value: Any, place: tuple[Any, ...], nonsense: Any) -> Any:
    if not place:
        return nonsense
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = nonsense
    return changed


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_request_with_nonsense_anywhere_is_read_or_refused(name: str, data: st.DataObject) -> None:
    body = dialect_named(name).write_request(SESSION).body
    place = data.draw(st.sampled_from([place for place in places(body) if place]))
    changed = with_nonsense(body, place, data.draw(st.sampled_from(ABSURD) | json_like))
    try:
        request = dialect_named(name).read_request(changed)
    except RequestError:
        return
    for other in NAMES:
        try:
            written = dialect_named(other).write_request(request).body
        except InvalidRequest:
            continue
        dialect_named(other).read_request(written)


@pytest.mark.parametrize("name", ["claude", "codex", "opencode"])
def test_a_recorded_request_with_nonsense_anywhere_is_read_or_refused(name: str) -> None:
    _, body = list(recorded(name))[2]
    dialect = dialect_named({"claude": "messages", "codex": "responses", "opencode": "chat"}[name])
    body["tools"] = body["tools"][:2]
    for number, place in enumerate(places(body)[1:]):
        changed = with_nonsense(body, place, ABSURD[number % len(ABSURD)])
        try:
            request = dialect.read_request(changed)
            for other in NAMES:
                dialect_named(other).write_request(request)
        except RequestError:
            continue


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_whole_reply_with_nonsense_anywhere_is_read(name: str, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from([place for place in places(WHOLES[name]) if place]))
    body = with_nonsense(WHOLES[name], place, data.draw(st.sampled_from(ABSURD) | json_like))
    reply = reply_of(dialect_named(name).reply_reader().whole(body))
    assert (reply.end is None) is (reply.failure is not None)
    for other in NAMES:
        dialect_named(other).write_reply(Request(), reply)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_a_stream_with_nonsense_anywhere_is_read_and_written(name: str, data: st.DataObject) -> None:
    events = [json.loads(event.data) for event in SseDecoder().feed(STREAMS[name]) if event.data != "[DONE]"]
    number = data.draw(st.integers(0, len(events) - 1))
    place = data.draw(st.sampled_from(places(events[number])))
    events[number] = with_nonsense(events[number], place, data.draw(st.sampled_from(ABSURD) | json_like))
    reader = StreamReader(dialect_named(name))
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    deltas = [*reader.feed(stream), *reader.finish()]
    assert [isinstance(delta, ReplyEnd | Failure) for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    for other in NAMES:
        writer = dialect_named(other).reply_writer(Request())
        SseDecoder().feed(b"".join(map(writer.feed, deltas)))


@pytest.mark.parametrize("name", NAMES)
@given(data=st.binary(max_size=200))
def test_any_bytes_as_a_stream_are_a_failure(name: str, data: bytes) -> None:
    reader = StreamReader(dialect_named(name))
    assert any(isinstance(delta, Failure) for delta in [*reader.feed(data), *reader.finish()])


@given(st.binary(max_size=200))
def test_any_bytes_as_a_body_are_read_or_refused(data: bytes) -> None:
    try:
        body = body_of(data)
    except InvalidRequest:
        return
    assert isinstance(body, dict)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("messages", [None, [], "x", 3, [3], [{}], [{"role": "king"}], [{"role": []}]])
def test_no_messages_are_refused(name: str, messages: object) -> None:
    key = "input" if name == "responses" else "messages"
    with pytest.raises(InvalidRequest):
        dialect_named(name).read_request({key: messages if messages != "x" or name != "responses" else None})


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        body_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    with pytest.raises(InvalidRequest, match="cannot be written"):
        dialect_named("messages").read_request(
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "x", "input": {"a": deep}}],
                    }
                ]
            }
        )
    (failure,) = StreamReader(dialect_named("chat")).feed(b'data: {"a":' + b"[" * 100_000 + b"\n\n")
    assert isinstance(failure, Failure)


def test_a_limit_beyond_all_sense_is_as_if_it_were_not_given() -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 10**400}
    assert dialect_named("chat").read_request(body).terms.max_output_tokens is None


def test_half_of_a_surrogate_pair_is_passed_on() -> None:
    """Clients written in JavaScript cut strings at any UTF-16 unit."""
    body = body_of(b'{"messages": [{"role": "user", "content": "cut \\ud83d"}]}')
    for name in NAMES:
        written = dialect_named(name).write_request(dialect_named("chat").read_request(body)).body
        assert "\\ud83d" in to_json(written)


@pytest.mark.parametrize("digits", ["123456789012345678901234567890", "-18446744073709551617", "0.1"])
def test_numbers_are_written_as_they_were_read(digits: str) -> None:
    for mark in ("", "\\ud83d"):
        assert to_json(body_of(f'{{"{mark}":{digits}}}'.encode())) == f'{{"{mark}":{digits}}}'


@pytest.mark.parametrize("digits", ["1e400", "-1e400", "NaN", "Infinity", "9" * 5000])
def test_a_number_that_cannot_be_held_is_refused_and_not_written_as_another(digits: str) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        body_of(f'{{"a":{digits}}}'.encode())
    (failure,) = StreamReader(dialect_named("chat")).feed(f'data: {{"a":{digits}}}\n\n'.encode())
    assert isinstance(failure, Failure)


def test_messages_of_openais_assistants_are_no_requests_of_a_dialect() -> None:
    assert dialect_of_path("/v1/threads/thread_1/messages") is None
    found = dialect_of_path("/anthropic/v1/messages?beta=true")
    assert found is not None and found.name == "messages"


def test_a_tool_without_a_name_is_named_in_the_error() -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "tools": [{"type": "function", "function": {}}]}
    with pytest.raises(InvalidRequest) as caught:
        dialect_named("chat").read_request(body)
    assert caught.value.param == "tools[0].function.name"
