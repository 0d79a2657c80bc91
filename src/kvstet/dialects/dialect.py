"""The seam: what each of the three APIs can be asked for, and how they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from kvstet.dialects import chat, messages, responses
from kvstet.dialects.failures import anthropic_error, openai_error
from kvstet.dialects.reply import Delta, Failure
from kvstet.dialects.request import Request, Written
from kvstet.dialects.sse import SseDecoder, SseEvent
from kvstet.dialects.values import Object
from kvstet.dialects.whole import Reply
from kvstet.errors import InvalidRequest

DialectName = Literal["chat", "messages", "responses"]


class ReplyReader(Protocol):
    """Reads one reply. After `finish`, or after a `ReplyEnd` or `Failure`, nothing more comes."""

    @property
    def is_complete(self) -> bool:
        """The reply has come to its end, be it an error; a stream that breaks off before that is truncated."""
        ...

    def feed(self, event: SseEvent) -> list[Delta]:
        """What the next event of a stream says. Never raises: nonsense is a `Failure`."""
        ...

    def finish(self) -> list[Delta]:
        """No more events will come. A truncated stream gives a `Failure`."""
        ...

    def whole(self, body: Mapping[str, Any]) -> list[Delta]:
        """What a reply that is not streamed says. Never raises: nonsense is a `Failure`."""
        ...


class ReplyWriter(Protocol):
    """Writes one reply as a stream."""

    def feed(self, delta: Delta) -> bytes:
        """Server-sent events, or nothing. After a `ReplyEnd` or `Failure` the stream is at its end."""
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API, as JSON objects and events. Has no state."""

    name: DialectName
    path: str
    """Where a request is posted to, ``/v1`` included."""
    read_request: Callable[[Object], Request] = field(repr=False)
    """InvalidRequest where it cannot be understood, or needs what only the vendor's own server has."""
    write_request: Callable[[Request], Written] = field(repr=False)
    reply_reader: Callable[[], ReplyReader] = field(repr=False)
    reply_writer: Callable[[Request], ReplyWriter] = field(repr=False)
    """For a client that sent the request: its tools and terms say how it wants to be answered."""
    write_reply: Callable[[Request, Reply], dict[str, Any]] = field(repr=False)
    """A whole reply, not streamed. A reply that failed is told with `write_error` instead."""
    write_error: Callable[[Failure], dict[str, Any]] = field(repr=False)
    """The body that goes with ``failure.status``."""


_CHAT = Dialect(
    "chat",
    "/v1/chat/completions",
    chat.read_request,
    chat.write_request,
    chat.ChatReader,
    chat.ChatWriter,
    chat.write_reply,
    openai_error,
)
_MESSAGES = Dialect(
    "messages",
    "/v1/messages",
    messages.read_request,
    messages.write_request,
    messages.MessagesReader,
    messages.MessagesWriter,
    messages.write_reply,
    anthropic_error,
)
_RESPONSES = Dialect(
    "responses",
    "/v1/responses",
    responses.read_request,
    responses.write_request,
    responses.ResponsesReader,
    responses.ResponsesWriter,
    responses.write_reply,
    openai_error,
)

_DIALECTS: Mapping[str, Dialect] = {each.name: each for each in (_CHAT, _MESSAGES, _RESPONSES)}

_PATHS: Mapping[str, DialectName] = {
    "/chat/completions": "chat",
    "/messages": "messages",
    "/messages/count_tokens": "messages",
    "/responses": "responses",
}
_NO_DIALECTS = "/threads/"
"""Of OpenAI's Assistants, which have messages as well."""


def dialect_named(name: str) -> Dialect:
    """InvalidRequest where there is none of this name."""
    dialect = _DIALECTS.get(name)
    if dialect is None:
        raise InvalidRequest(f"There is no dialect {name!r}; there are {', '.join(_DIALECTS)}.")
    return dialect


def dialect_of_path(path: str) -> Dialect | None:
    """Whose path it is, with any prefix and query; None: no endpoint of a dialect."""
    plain = path.partition("?")[0].rstrip("/")
    if _NO_DIALECTS in plain:
        return None
    return next((_DIALECTS[name] for end, name in _PATHS.items() if plain.endswith(end)), None)


class StreamReader:
    """Reads the bytes of a streamed reply, cut anywhere."""

    def __init__(self, dialect: Dialect) -> None:
        self._events = SseDecoder()
        self._reader = dialect.reply_reader()

    def __repr__(self) -> str:
        return f"StreamReader({self._reader!r})"

    @property
    def is_complete(self) -> bool:
        return self._reader.is_complete

    def feed(self, data: bytes) -> list[Delta]:
        return [delta for event in self._events.feed(data) for delta in self._reader.feed(event)]

    def finish(self) -> list[Delta]:
        """The connection is closed. A truncated stream gives a `Failure`."""
        last = [delta for event in self._events.finish() for delta in self._reader.feed(event)]
        return [*last, *self._reader.finish()]
