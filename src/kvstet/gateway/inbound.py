"""The client's side of a request: its body as it comes, and the news that it is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive

from kvstet.api.hangup import until_hangup

T = TypeVar("T")

_MAX_PIECES = 32
"""Pieces of a body, some 64 KiB each, that are read ahead of an upstream that takes nothing in. While there is room for
another one, a client that hangs up is noticed at once."""


class Inbound:
    """Reads while `until_gone` runs; each piece of the body is had once, by what runs there."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._pieces: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue(_MAX_PIECES)
        self._is_received = False
        self.is_over = False
        """Whether the whole body was had."""

    def __repr__(self) -> str:
        return f"Inbound({self._pieces.qsize()} pieces wait, is_over={self.is_over})"

    async def until_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """As `kvstet.api.hangup.until_hangup`: ClientGone, with ``work`` cancelled, as soon as the client is gone."""
        return await until_hangup(self._watch, work)

    async def body(self) -> AsyncGenerator[bytes, None]:
        """What is left of the body, as it comes; what has come together goes on together."""
        while not self.is_over:
            pieces = [await self._piece()]
            while not self.is_over and not self._pieces.empty():
                pieces.append(await self._piece())
            if piece := b"".join(pieces):
                yield piece

    async def beginning(self, max_bytes: int) -> bytes:
        """The body, or as much of it as first came to be more than ``max_bytes``."""
        pieces: list[bytes] = []
        num_bytes = 0
        while not self.is_over and num_bytes <= max_bytes:
            pieces.append(await self._piece())
            num_bytes += len(pieces[-1])
        return b"".join(pieces)

    async def _piece(self) -> bytes:
        piece, has_more = await self._pieces.get()
        self.is_over = not has_more
        return piece

    async def after(self, beginning: bytes) -> AsyncGenerator[bytes, None]:
        """What was had already, and what is left."""
        yield beginning
        async for piece in self.body():
            yield piece

    async def _watch(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and not self._is_received:
            has_more = message.get("more_body", False)
            self._is_received = not has_more
            await self._pieces.put((message.get("body", b""), has_more))
        return message
