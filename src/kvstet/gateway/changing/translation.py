"""Between a client's dialect and the upstream's: requests, replies as they stream, and errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from kvstet.dialects.dialect import Dialect, StreamReader, dialect_named
from kvstet.dialects.failures import failure_in_body, unreadable
from kvstet.dialects.reply import Delta, Failure, ReplyEnd
from kvstet.dialects.request import Request
from kvstet.dialects.seal_memory import SealMemory
from kvstet.dialects.sse import is_event_stream
from kvstet.dialects.values import body_of, to_json
from kvstet.dialects.whole import Reply, ReplyBuilder, reply_of
from kvstet.errors import InvalidRequest
from kvstet.gateway.copy import MAX_COPY_BYTES
from kvstet.gateway.headers import (
    WITHOUT,
    Credential,
    Fields,
    end_to_end,
    key_in,
    onward,
    value_of,
    with_body,
    with_key,
    without,
)
from kvstet.gateway.line import Response, UpstreamBroke
from kvstet.gateway.outgoing import Returned, Returning
from kvstet.gateway.passage import Body, Call
from kvstet.gateway.upstream import Place, Upstream
from kvstet.providers.provider import Provider

_CLIENTS_ONLY = (b"anthropic-", b"openai-", b"x-stainless-")
"""Beginnings of fields that mean something to the vendor of the client's dialect only."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request's body for the upstream."""

    body: Body = field(repr=False)
    returning: Returning
    """How its response is told the client."""
    dropped: tuple[str, ...]
    """What did not survive, as dotted names."""


@dataclass(frozen=True, slots=True)
class Translation:
    """To one upstream."""

    upstream: Upstream
    provider: Provider
    memory: SealMemory = field(default_factory=SealMemory)
    """Of the reasoning that clients of the Chat API cannot hold."""

    def spoken(self, call: Call) -> Dialect | None:
        """What is spoken with the upstream instead of the client's dialect; None: that one."""
        if call.dialect is None or call.dialect.name in self.upstream.bases:
            return None
        return dialect_named(next(iter(self.upstream.bases)))

    def translated(self, call: Call, spoken: Dialect, body: Body, model_of: Callable[[str], str]) -> Translated:
        """Raises InvalidRequest."""
        client = call.dialect
        assert client is not None, "only what has a dialect is translated"
        request, keep = client.read_request(body), _nothing
        if client.name == "chat":
            # Other clients hold what they are given.
            request, keep = self.memory.restored(request, call.owner), partial(self.memory.keep, owner=call.owner)
        terms = replace(request.terms, includes_usage=True if request.terms.is_streamed else None)
        written = spoken.write_request(replace(request, model=model_of(request.model), terms=terms))
        return Translated(written.body, Retelling(spoken, client, request, keep), written.dropped)

    def addressed(self, call: Call, spoken: Dialect, num_bytes: int) -> tuple[Place, Fields]:
        """Where it goes, with which fields; the client's key is moved to where the upstream wants it."""
        place, credential = self.upstream.place(spoken.name, spoken.path.encode(), b""), self._credential(call, spoken)
        fields = [pair for pair in onward(call.fields, place.host, None) if not pair[0].startswith(_CLIENTS_ONLY)]
        # What comes back is read here, and no one else's encoding is needed for that.
        fields = with_body(without(fields, b"accept-encoding", b"accept", b"content-type", WITHOUT), num_bytes)
        fields += [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in self.provider.headers.items()]
        return place, fields if credential is None else with_key(fields, credential)

    def _credential(self, call: Call, spoken: Dialect) -> Credential | None:
        key = key_in(call.fields).decode("latin-1")
        own = self.upstream.credential(spoken.name)
        return own if own or not key else Credential.of(*self.provider.key_field(spoken.name, key))


def _nothing(reply: Reply) -> None:
    """Is kept of replies to clients that hold what they are given."""


class Retelling:
    """A response of one dialect, told in another."""

    def __init__(self, spoken: Dialect, client: Dialect, request: Request, keep: Callable[[Reply], None]) -> None:
        """``keep`` gets each reply before the client sees its end, since it may send its next request then."""
        self._spoken, self._client, self._request, self._keep = spoken, client, request, keep

    def __repr__(self) -> str:
        return f"Retelling({self._spoken.name} as {self._client.name})"

    async def returned(self, response: Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        fields = _fields_of(response)
        if response.status >= 300:
            return self._failed(failure_in_body(response.status, await _whole(pieces)), fields)
        is_stream = is_event_stream(value_of(response.fields, b"content-type").decode("latin-1"))
        deltas = _streamed(self._spoken, pieces) if is_stream else self._told(pieces)
        if self._request.terms.is_streamed:
            fields = [*fields, (b"content-type", b"text/event-stream; charset=utf-8")]
            return Returned(200, fields, self._events(deltas))
        reply = reply_of([delta async for delta in deltas])
        self._keep(reply)
        if reply.failure is not None:
            return self._failed(reply.failure, fields)
        return _whole_answer(200, self._client.write_reply(self._request, reply), fields)

    def _failed(self, failure: Failure, fields: Fields) -> Returned:
        return _whole_answer(failure.status, self._client.write_error(failure), fields)

    async def _events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        writer, told = self._client.reply_writer(self._request), ReplyBuilder()
        try:
            async for delta in deltas:
                told.add(delta)
                if isinstance(delta, ReplyEnd):
                    self._keep(told.reply)
                if data := writer.feed(delta):
                    yield data
        finally:
            if told.reply.end is None:
                self._keep(told.reply)

    async def _told(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Delta, None]:
        """Of a response that is not streamed."""
        content = await _whole(pieces)
        try:
            body = body_of(content)
        except InvalidRequest:
            yield unreadable("sent a reply that is no JSON")
            return
        for delta in self._spoken.reply_reader().whole(body):
            yield delta


async def _streamed(spoken: Dialect, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Delta, None]:
    """Raises UpstreamBroke at the end of a stream that was cut off: a client must not take it for whole."""
    reader, num_waiting_bytes = StreamReader(spoken), 0
    async for piece in pieces:
        deltas = reader.feed(piece)
        num_waiting_bytes = 0 if deltas else num_waiting_bytes + len(piece)
        if num_waiting_bytes > MAX_COPY_BYTES:
            raise UpstreamBroke(f"more than {MAX_COPY_BYTES:,} bytes that say nothing")
        for delta in deltas:
            yield delta
    for delta in reader.finish():
        if isinstance(delta, Failure):
            raise UpstreamBroke("the stream ended before the reply did")
        yield delta


async def _whole(pieces: AsyncGenerator[bytes, None]) -> bytes:
    content = bytearray()
    async for piece in pieces:
        content += piece
        if len(content) > MAX_COPY_BYTES:
            raise UpstreamBroke(f"more than {MAX_COPY_BYTES:,} bytes in one reply")
    return bytes(content)


def _whole_answer(status: int, body: Body, fields: Fields) -> Returned:
    content = to_json(body).encode()

    async def pieces() -> AsyncGenerator[bytes, None]:
        yield content

    own = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    return Returned(status, [*fields, *own], pieces())


def _fields_of(response: Response) -> Fields:
    """The fields that are not of the body."""
    return [pair for pair in end_to_end(response.fields) if not pair[0].lower().startswith(b"content-")]
