"""Between a client's dialect and the upstream's: requests, replies as they stream, and errors."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace

import httpx

from kvstet.dialects.dialect import Dialect, StreamReader, dialect_named
from kvstet.dialects.reply import Delta, Failure, ReplyEnd
from kvstet.dialects.request import Request
from kvstet.dialects.seals import SealMemory, SealRecorder
from kvstet.dialects.values import body_of, to_json
from kvstet.dialects.whole import reply_of
from kvstet.errors import InvalidRequest
from kvstet.gateway.call import Call
from kvstet.gateway.copy import MAX_COPY_BYTES
from kvstet.gateway.headers import Credential, Fields, end_to_end, keys_in, onward, with_body, with_key, without
from kvstet.gateway.ports import Body
from kvstet.gateway.reading import EVENT_STREAM
from kvstet.gateway.returning import Returned, Returning
from kvstet.gateway.upstream import Place, Upstream, UpstreamBroke

_CLIENTS_ONLY = ("anthropic-", "openai-", "x-stainless-")
"""Beginnings of fields that mean something to the vendor of the client's dialect only."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A request's body for the upstream."""

    body: Body = field(repr=False)
    returning: Returning | None = None
    """How its response is told the client; None: it is in the client's own dialect."""
    dropped: tuple[str, ...] = ()
    """What did not survive, as dotted names."""


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where the upstream wants a key."""

    header: str
    scheme: str = ""

    def credential(self, key: str) -> Credential:
        return Credential(self.header.lower().encode(), f"{self.scheme} {key}".strip().encode("latin-1"))


@dataclass(frozen=True, slots=True)
class Translation:
    """To one upstream."""

    upstream: Upstream
    key_place: KeyPlace | None = None
    """None: where the upstream's dialect usually has it."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """That the upstream needs and a client of another dialect does not send."""
    memory: SealMemory = field(default_factory=SealMemory)
    """Of the reasoning that clients of the Chat API cannot hold."""

    def spoken(self, call: Call) -> Dialect | None:
        """What is spoken with the upstream instead of the client's dialect; None: that one."""
        if call.dialect is None or call.dialect.name in self.upstream.bases:
            return None
        return dialect_named(next(iter(self.upstream.bases)))

    def translated(self, call: Call, content: bytes, model_of: Callable[[str], str]) -> Translated:
        """Raises InvalidRequest."""
        spoken = self.spoken(call)
        assert call.dialect is not None and spoken is not None, "only what needs it is translated"
        request = call.dialect.read_request(body_of(content))
        recorder = None
        if call.dialect.name == "chat":
            # Other clients hold what they are given.
            request, recorder = self.memory.restored(request, call.owner), self.memory.recorder(call.owner)
        terms = replace(request.terms, includes_usage=True if request.terms.is_streamed else None)
        written = spoken.write_request(replace(request, model=model_of(request.model), terms=terms))
        return Translated(written.body, Retelling(spoken, call.dialect, request, recorder), written.dropped)

    def onward(self, call: Call, spoken: Dialect | None, num_bytes: int) -> tuple[Place, Fields]:
        """Where it goes, with which fields; the client's key is moved to where the upstream wants it."""
        assert spoken is not None
        place = self.upstream.place(spoken.name, spoken.path.encode(), b"")
        fields = onward(call.fields, place.host, self.upstream.credential)
        fields = [pair for pair in fields if not pair[0].decode("latin-1").startswith(_CLIENTS_ONLY)]
        # What comes back is read here, and no one else's encoding is needed for that.
        fields = with_body(without(fields, b"accept-encoding", b"accept", b"content-type"), num_bytes)
        fields += [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        fields += [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        if self.upstream.credential is None and (keys := keys_in(fields)):
            fields = with_key(fields, self._place_of_key(spoken).credential(_bare(keys[0])))
        return place, fields

    def _place_of_key(self, spoken: Dialect) -> KeyPlace:
        if self.key_place is not None:
            return self.key_place
        return KeyPlace("x-api-key") if spoken.name == "messages" else KeyPlace("authorization", "Bearer")


def _bare(key: bytes) -> str:
    text = key.decode("latin-1").strip()
    return text[7:].strip() if text[:7].lower() == "bearer " else text


class Retelling:
    """A response of one dialect, told in another."""

    def __init__(
        self, spoken: Dialect, client: Dialect, request: Request, recorder: SealRecorder | None = None
    ) -> None:
        """``recorder`` keeps what the client cannot hold."""
        self._spoken, self._client, self._request = spoken, client, request
        self._recorder = recorder

    def __repr__(self) -> str:
        return f"Retelling({self._spoken.name} as {self._client.name})"

    async def returned(self, response: httpx.Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        fields = _fields_of(response)
        if response.status_code >= 300:
            failure = self._spoken.read_error(response.status_code, await _whole(pieces))
            return self._failed(replace(failure, status=response.status_code), fields)
        is_stream = response.headers.get("content-type", "").startswith(EVENT_STREAM)
        if self._request.terms.is_streamed:
            deltas = _streamed(self._spoken, pieces) if is_stream else self._told(pieces)
            return Returned(
                200, [*fields, (b"content-type", b"text/event-stream; charset=utf-8")], self._events(deltas)
            )
        deltas = [delta async for delta in (_streamed(self._spoken, pieces) if is_stream else self._told(pieces))]
        for delta in deltas:
            self._record(delta)
        reply = reply_of(deltas)
        if reply.failure is not None:
            return self._failed(reply.failure, fields)
        return _whole_answer(200, self._client.write_reply(self._request, reply), fields)

    def _failed(self, failure: Failure, fields: Fields) -> Returned:
        return _whole_answer(failure.status, self._client.write_error(failure), fields)

    async def _events(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[bytes, None]:
        writer = self._client.reply_writer(self._request)
        try:
            async for delta in deltas:
                self._record(delta)
                if data := writer.feed(delta):
                    yield data
        finally:
            if self._recorder is not None:
                self._recorder.close()

    def _record(self, delta: Delta) -> None:
        """What is to be kept is there before the client sees the end, and may send its next request."""
        if self._recorder is not None:
            self._recorder.add(delta)
            if isinstance(delta, ReplyEnd):
                self._recorder.close()

    async def _told(self, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Delta, None]:
        """Of a response that is not streamed."""
        content = await _whole(pieces)
        try:
            body = body_of(content)
        except InvalidRequest:
            yield Failure(502, "The upstream's reply is not JSON.")
            return
        for delta in self._spoken.reply_reader().whole(body):
            yield delta


async def _streamed(spoken: Dialect, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[Delta, None]:
    """Raises UpstreamBroke at the end of a stream that was cut off: a client must not take it for whole."""
    reader = StreamReader(spoken)
    async for piece in pieces:
        for delta in reader.feed(piece):
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


def _fields_of(response: httpx.Response) -> Fields:
    """The fields that are not of the body."""
    kept = end_to_end(response.headers.raw)
    return [
        pair for pair in kept if not pair[0].lower().startswith(b"content-") and pair[0].lower() != b"transfer-encoding"
    ]
