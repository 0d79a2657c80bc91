"""Responses that leave in as few pieces as they came in.

uvicorn writes the head of a response, each piece of its body and its end by themselves. Each write is a call of the
system that wakes the client up, and a short response costs three of them: a third of a millisecond.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HELD_BYTES = 64 * 1024


class CorkingProtocol(HttpToolsProtocol):
    """One connection of a client."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(cast("asyncio.Transport", Corked(transport)))


class Corked:
    """A transport that sends together what is written before the event loop turns: nothing waits for what is still to
    come."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._held = bytearray()

    def __repr__(self) -> str:
        return f"Corked({self._transport!r}, {len(self._held)} bytes)"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self._send)
        self._held += data
        if len(self._held) >= _MAX_HELD_BYTES:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held, self._held = self._held, bytearray()
        if held and not self._transport.is_closing():
            self._transport.write(held)
