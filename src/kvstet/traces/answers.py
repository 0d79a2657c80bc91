"""What was sent back, as a trace tells it: the reply, its usage, kvstet's account, or the error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from kvstet.dialects.dialect import Dialect, StreamReader, dialect_of_path
from kvstet.dialects.encoding import decoded
from kvstet.dialects.sse import SseDecoder
from kvstet.dialects.values import from_json, obj, objects
from kvstet.dialects.whole import Reply, reply_of
from kvstet.errors import Unreadable
from kvstet.traces.format import Call, Plan, Response

HUNG_UP = 499
"""As nginx has it: the client hung up before the response began."""

EVENT_STREAM = "text/event-stream"

MAX_INFLATED_BYTES = 256 * 1024**2

_ACCOUNTS = (b'"usage"', b'"kvstet"')


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as far as it was sent."""

    path: str
    """Of the request."""
    status: int = HUNG_UP
    content_type: str = ""
    content: bytes = field(repr=False, default=b"")
    content_encoding: str = ""
    is_broken_off: bool = False
    first_seconds: float | None = None
    plan: Plan | None = field(repr=False, default=None)
    """Where it is known better than the content tells it."""
    tokens: tuple[int, ...] | None = field(repr=False, default=None)
    model: str = ""
    """Where it is known better."""

    @property
    def num_bytes(self) -> int:
        """That it holds, about."""
        return len(self.content) + 8 * len(self.tokens or ())


def response_of(answer: Answer, seq: int, t: float) -> Response:
    """The line of a trace. Never raises for what the content is."""
    content = plain(answer.content, answer.content_encoding)
    answer = dataclasses.replace(answer, content=content or b"", content_encoding="")
    is_reply = answer.status < 300
    told = _told(answer) if is_reply else {}
    dialect = dialect_of_path(answer.path) if is_reply else None
    reply = _reply(answer, dialect) if dialect is not None else Reply()
    return Response(
        seq=seq,
        t=t,
        status=answer.status,
        plan=_plan(answer, reply),
        tokens=list(answer.tokens) if answer.tokens is not None else None,
        model=answer.model or reply.model,
        usage=told.get("usage"),
        kvstet=told.get("kvstet"),
        first_seconds=answer.first_seconds,
        broken_off=is_reply and answer.is_broken_off,
        error_raw=None if is_reply else answer.content.decode("utf-8", "replace") or None,
    )


def plain(content: bytes, encoding: str) -> bytes | None:
    """A body without its Content-Encoding, as far as it goes; None: it cannot be read, or is too long."""
    try:
        return decoded(content, encoding, MAX_INFLATED_BYTES)
    except Unreadable:
        return None


def _plan(answer: Answer, reply: Reply) -> Plan | None:
    calls = [Call(name=call.name, args_raw=call.arguments, id=call.id) for call in reply.calls]
    if answer.plan is not None:
        # Ids are given to calls on the way to the client.
        named = zip(answer.plan.calls, calls, strict=True) if len(calls) == len(answer.plan.calls) else ()
        with_ids = [replace(call, id=other.id) for call, other in named]
        return replace(answer.plan, calls=with_ids or answer.plan.calls)
    text = reply.text or reply.refusal
    return Plan(reasoning=reply.reasoning, text=text, calls=calls) if text or reply.reasoning or calls else None


def _reply(answer: Answer, dialect: Dialect) -> Reply:
    if answer.content_type.startswith(EVENT_STREAM):
        reader = StreamReader(dialect)
        return reply_of([*reader.feed(answer.content), *reader.finish()])
    try:
        body = from_json(answer.content)
    except ValueError:
        return Reply()
    return reply_of(dialect.reply_reader().whole(obj(body)))


def _told(answer: Answer) -> dict[str, dict[str, Any]]:
    """``usage`` and ``kvstet``; what comes later in a stream completes or replaces what came first."""
    found: dict[str, dict[str, Any]] = {}
    for event in _events(answer):
        for fields in (event, *objects(list(event.values()))):
            for name in ("usage", "kvstet"):
                if isinstance(fields.get(name), Mapping):
                    found[name] = {**found.get(name, {}), **fields[name]}
    return found


def _events(answer: Answer) -> Iterator[Mapping[str, Any]]:
    """The JSON objects that may hold an account."""
    if answer.content_type.startswith(EVENT_STREAM):
        decoder = SseDecoder()
        texts = [event.data.encode() for event in (*decoder.feed(answer.content), *decoder.finish())]
    elif "ndjson" in answer.content_type:
        texts = answer.content.splitlines()
    else:
        texts = [answer.content]
    for text in texts:
        if any(name in text for name in _ACCOUNTS):
            try:
                yield obj(msgspec.json.decode(text))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
