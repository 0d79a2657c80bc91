"""Requests on their way to the upstream, and responses on their way back: bytes as they come, in both directions."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import Protocol

from starlette.types import Receive, Scope, Send

from kvstet.api.envelopes import ErrorAnswer
from kvstet.gateway.copy import MAX_COPY_BYTES, Copy
from kvstet.gateway.headers import wants_websocket
from kvstet.gateway.inbound import Inbound
from kvstet.gateway.line import Line, Response, pieces_of
from kvstet.gateway.outgoing import Outgoing, as_it_comes
from kvstet.gateway.passage import Passage, call_of
from kvstet.gateway.upstream import Upstream

_LAST_SECONDS = 2.0
"""For requests that were broken off at the end: that they were, and what they took, is to be told."""

_NO_WEBSOCKET = ErrorAnswer(
    426,
    "The gateway passes HTTP on, and no WebSockets: use HTTP, with server-sent events for streams.",
    "invalid_request_error",
    "websocket_not_supported",
)
"""The status at which Codex goes on with HTTP at once, instead of trying again (openai/codex, pull request 10824)."""


class Noting(Protocol):
    """Is told of requests that are over. Returns at once."""

    def note(self, passage: Passage) -> None: ...


class Preparing(Protocol):
    """Makes the request that is sent on of a client's, where that may be another one."""

    async def prepared(self, passage: Passage, inbound: Inbound) -> Outgoing:
        """Raises a RequestError, or a HTTPException, where the request can neither be changed nor passed as it is."""
        ...


class Forwarder:
    """The ASGI app behind all paths that are not the gateway's own."""

    def __init__(self, upstream: Upstream, line: Line, observer: Noting, preparing: Preparing | None = None) -> None:
        self._upstream = upstream
        self._line = line
        self._observer = observer
        self._preparing = preparing
        self._num_under_way = 0
        self._is_idle = asyncio.Event()

    def __repr__(self) -> str:
        return f"Forwarder({self._upstream.title})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if wants_websocket(scope["headers"]):
            await _NO_WEBSOCKET.response(scope["path"])(scope, receive, send)
            return
        call = call_of(scope)
        limit = MAX_COPY_BYTES if call.asks_model else 0
        passage = Passage(call, Copy(limit), Copy(limit), spoken=call.dialect)
        inbound = Inbound(receive)
        self._num_under_way += 1
        try:
            await inbound.until_gone(self._pass(passage, inbound, send))
        finally:
            passage.end()
            self._observer.note(passage)
            self._num_under_way -= 1
            if not self._num_under_way:
                self._is_idle.set()

    async def close(self) -> None:
        """Break off what is under way, until all of it was noted."""
        await self._line.close()
        self._is_idle.clear()
        if self._num_under_way:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_idle.wait(), _LAST_SECONDS)

    async def _pass(self, passage: Passage, inbound: Inbound, send: Send) -> None:
        outgoing = await self._outgoing(passage, inbound)
        passage.leave()
        async with self._line.ask(passage.call.method, outgoing.place, outgoing.fields, outgoing.body) as response:
            passage.arrive(response)
            await _answer(passage, outgoing, response, send)

    async def _outgoing(self, passage: Passage, inbound: Inbound) -> Outgoing:
        if self._preparing is not None and passage.call.dialect is not None and passage.call.method == "POST":
            return await self._preparing.prepared(passage, inbound)
        return as_it_comes(self._upstream, passage, inbound)


async def _answer(passage: Passage, outgoing: Outgoing, response: Response, send: Send) -> None:
    async with aclosing(pieces_of(response, passage.received)) as pieces:
        returned = await outgoing.returning.returned(response, pieces)
        fields = [*returned.fields, *outgoing.added]
        await send({"type": "http.response.start", "status": returned.status, "headers": fields})
        async with aclosing(returned.body):
            async for piece in returned.body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
