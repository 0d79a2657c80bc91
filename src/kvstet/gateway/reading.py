"""What a request that has passed says: the conversation, the reply, its usage, and the vendor's own word on the cache.

Works on copies, after the fact; whatever cannot be read is told by `Unreadable` or left unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import Any, cast

import msgspec

from kvstet.api.body import decode, mend_surrogates
from kvstet.dialects.dialect import Dialect, StreamReader
from kvstet.dialects.request import Request
from kvstet.dialects.sse import SseDecoder
from kvstet.dialects.whole import Reply, reply_of
from kvstet.edits.snapshot import Snapshot, snapshot_of
from kvstet.errors import RequestError, Unreadable
from kvstet.gateway.call import Passage
from kvstet.gateway.copy import MAX_COPY_BYTES, decoded
from kvstet.gateway.headers import Fields, texts_of, value_of
from kvstet.gateway.session import said_session
from kvstet.providers.usage import usage_of
from kvstet.types import Usage

_DIAGNOSES = ("cache_miss_reason", "prompt_cache_diagnostics")
"""Fields in which Anthropic and OpenAI say why a cache missed."""

_MAX_DIAGNOSIS_CHARACTERS = 400

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read."""

    body: dict[str, Any] = field(repr=False)
    request: Request = field(repr=False)
    snapshot: Snapshot = field(repr=False)


def asked_of(passage: Passage) -> Asked:
    """What was sent on. Raises Unreadable."""
    call = passage.call
    assert passage.spoken is not None, "only requests of a dialect are observed"
    body = json_object(passage.sent.content, call.fields if passage.original is None else [])
    request = request_of(passage.spoken, body)
    session = said_session(texts_of(call.fields), body)
    snapshot = snapshot_of(request.messages, request.tools, model=request.model, session=session)
    return Asked(body, request, snapshot)


def json_object(content: bytes, fields: Fields) -> dict[str, Any]:
    """A body as JSON. Raises Unreadable."""
    plain = decoded(content, value_of(fields, b"content-encoding").decode("latin-1"), MAX_COPY_BYTES)
    try:
        return cast("dict[str, Any]", decode(plain, dict))
    except RequestError as error:
        raise Unreadable(type(error).__name__) from None


def request_of(dialect: Dialect, body: Mapping[str, Any]) -> Request:
    """In the neutral form. Raises Unreadable."""
    try:
        return dialect.read_request(body)
    except RequestError as error:
        raise Unreadable(str(error)) from None


@dataclass(frozen=True, slots=True)
class Answered:
    """A response, read."""

    reply: Reply = field(repr=False)
    diagnosis: str | None
    """Why the cache missed, as the vendor says it; None: it says nothing."""


def answered_of(passage: Passage) -> Answered:
    """What came back, as far as it came. Raises Unreadable."""
    assert passage.spoken is not None, "only requests of a dialect are observed"
    fields = texts_of(passage.received_fields)
    content = decoded(passage.received.content, fields.get("content-encoding", ""), MAX_COPY_BYTES)
    is_stream = fields.get("content-type", "").startswith(EVENT_STREAM)
    if is_stream:
        reader = StreamReader(passage.spoken)
        reply = reply_of([*reader.feed(content), *reader.finish()])
        usage = _completed(reply.usage, usage_of({}, fields))
        return Answered(replace(reply, usage=usage), _diagnosis(_events(content), content))
    status = passage.status or 0
    if status >= 400:
        return Answered(reply_of([passage.spoken.read_error(status, content)]), None)
    body = json_object(content, [])
    reply = reply_of(passage.spoken.reply_reader().whole(body))
    return Answered(replace(reply, usage=usage_of(body, fields)), _diagnosis([body], content))


def _completed(usage: Usage, headers_usage: Usage) -> Usage:
    """With what stands in headers only."""
    pairs = {each.name: (getattr(usage, each.name), getattr(headers_usage, each.name)) for each in fields_of(Usage)}
    return Usage(**{name: told if told is not None else other for name, (told, other) in pairs.items()})


def _events(content: bytes) -> Iterator[object]:
    decoder = SseDecoder()
    for event in [*decoder.feed(content), *decoder.finish()]:
        if any(name in event.data for name in _DIAGNOSES):
            try:
                yield msgspec.json.decode(mend_surrogates(event.data.encode()))
            except msgspec.DecodeError:
                continue


def _diagnosis(events: Iterator[object] | list[dict[str, Any]], content: bytes) -> str | None:
    """The last one; most replies have none, and then nothing is looked at twice."""
    if not any(name.encode() in content for name in _DIAGNOSES):
        return None
    found = [value for event in events for value in _values(event) if value is not None]
    if not found:
        return None
    text = found[-1] if isinstance(found[-1], str) else msgspec.json.encode(found[-1]).decode()
    return text[:_MAX_DIAGNOSIS_CHARACTERS]


def _values(tree: object) -> Iterator[object]:
    """Of the fields that hold a diagnosis, anywhere."""
    match tree:
        case dict():
            for name, value in cast("dict[str, object]", tree).items():
                if name in _DIAGNOSES:
                    yield value
                else:
                    yield from _values(value)
        case list():
            for value in cast("list[object]", tree):
                yield from _values(value)
        case _:
            return
