"""Server-sent events that own their source.

Written here, and not taken from a library, because what matters is ownership: the source is closed on every way out,
also when the client is gone before the first event, since closing it is what frees the request's tokens; and an error
before the first event is still a plain HTTP error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvstet.api.hangup import cancel_all, until_hangup

PING_SECONDS = 15.0
"""Proxies give up on connections that are silent for 30 to 60 seconds; a long prompt takes longer."""

COMMENT = b": ping\n\n"
"""What clients of any dialect skip."""

EVENTS = "text/event-stream; charset=utf-8"
"""The content type."""

_HEADERS = {
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class EventStream(Response):
    """Sends encoded events as they come, pings while none come, and stops when the client hangs up.

    The response begins with the first event or ping. What the source raises before that is raised here; later it is
    sent as the event that ``encode_error`` makes of it, and ends the stream.
    """

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        *,
        encode_error: Callable[[Exception], bytes],
        content_type: str = EVENTS,
        ping: bytes = COMMENT,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": content_type, **_HEADERS})
        self._source = source
        self._encode_error = encode_error
        self._ping_data = ping
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._source):
            await until_hangup(receive, self._run(_Wire(send, self.raw_headers)))

    async def _run(self, wire: _Wire) -> None:
        pings = asyncio.create_task(self._ping(wire))
        try:
            async for event in self._source:
                await wire.write(event)
        except Exception as error:
            if not wire.is_open:
                raise
            await wire.write(self._encode_error(error))
        finally:
            await cancel_all(pings)
        await wire.end()

    async def _ping(self, wire: _Wire) -> None:
        while True:
            await asyncio.sleep(self._ping_seconds)
            await wire.write(self._ping_data)


class _Wire:
    """The sending side of one response; begins it with the first bytes."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.is_open = False
        self._send = send
        self._headers = headers
        self._lock = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self._open()
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        async with self._lock:
            await self._open()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _open(self) -> None:
        if not self.is_open:
            self.is_open = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
