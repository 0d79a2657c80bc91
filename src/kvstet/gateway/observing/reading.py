"""What a request that has passed says: the conversation, the reply, its usage, and the vendor's own word on the cache.

Works on copies, after the fact; whatever cannot be read is told by `Unreadable` or left unknown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from typing import Any, cast

from kvstet.api.body import decode
from kvstet.dialects.dialect import Dialect, StreamReader
from kvstet.dialects.encoding import decoded
from kvstet.dialects.failures import failure_in_body
from kvstet.dialects.request import Request
from kvstet.dialects.sse import SseDecoder, is_event_stream
from kvstet.dialects.values import from_json, items, obj, to_json
from kvstet.dialects.whole import Reply, reply_of
from kvstet.edits.snapshot import Snapshot, snapshot_of
from kvstet.errors import RequestError, Unreadable
from kvstet.gateway.copy import MAX_COPY_BYTES
from kvstet.gateway.headers import Fields, texts_of, value_of
from kvstet.gateway.passage import Passage
from kvstet.gateway.session import said_session
from kvstet.providers.usage import usage_of
from kvstet.types import Usage

_DIAGNOSES = ("cache_miss_reason", "prompt_cache_diagnostics")
"""Fields in which Anthropic and OpenAI say why a cache missed."""

_MAX_DIAGNOSIS_CHARACTERS = 400


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
    body = json_object(passage.sent.content, [] if passage.is_changed else call.fields)
    request = request_of(passage.spoken, body)
    session = passage.session or said_session(texts_of(call.fields), body)
    snapshot = snapshot_of(request.messages, request.tools, model=request.model, session=session)
    return Asked(body, request, snapshot)


def json_object(content: bytes, fields: Fields) -> dict[str, Any]:
    """A body as JSON. Raises Unreadable."""
    plain = decoded(content, value_of(fields, b"content-encoding").decode("latin-1"), MAX_COPY_BYTES)
    try:
        return cast("dict[str, Any]", decode(plain, dict))
    except RequestError:
        raise Unreadable("no JSON object, or nested too deeply") from None


def request_of(dialect: Dialect, body: Mapping[str, Any]) -> Request:
    """In the neutral form. Raises Unreadable."""
    try:
        return dialect.read_request(body)
    except RequestError as error:
        # The error's own sentence may quote the request, and prompts do not belong into logs.
        raise Unreadable(f"not understood, at {error.param or 'its beginning'}") from None


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
    if is_event_stream(fields.get("content-type", "")):
        reader = StreamReader(passage.spoken)
        reply = reply_of([*reader.feed(content), *reader.finish()])
        usage = _completed(reply.usage, usage_of({}, fields))
        return Answered(replace(reply, usage=usage), _diagnosis(_events(content), content))
    status = passage.status or 0
    if status >= 400:
        return Answered(reply_of([failure_in_body(status, content)]), None)
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
                yield from_json(event.data)
            except ValueError:
                continue


def _diagnosis(events: Iterator[object] | list[dict[str, Any]], content: bytes) -> str | None:
    """The last one; most replies have none, and then nothing is looked at twice."""
    if not any(name.encode() in content for name in _DIAGNOSES):
        return None
    found = [value for event in events for value in _values(event) if value is not None]
    if not found:
        return None
    said = found[-1] if isinstance(found[-1], str) else to_json(found[-1])
    # It stands in a line of the log.
    return " ".join(said[:_MAX_DIAGNOSIS_CHARACTERS].split())


def _values(tree: object) -> Iterator[object]:
    """Of the fields that hold a diagnosis, anywhere. Not recursive: a reply may be nested as deeply as it likes."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        waiting += items(value)
        for name, inner in obj(value).items():
            if name in _DIAGNOSES:
                yield inner
            else:
                waiting.append(inner)
