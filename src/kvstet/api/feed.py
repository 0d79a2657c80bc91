"""Events of several engine requests in one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from types import TracebackType

from kvstet.api.hangup import cancel_all
from kvstet.engine.messages import Event

Arrival = tuple[int, Event]
"""Index of the request, and its event."""


class Feed:
    """Iterates over lists of arrivals: whatever has come since the last one, so that a slow client gets fewer, larger
    pieces. Raises the first error of any source. Leaving the context closes all sources::

        async with Feed([engine.generate(request)]) as feed:
            async for arrivals in feed.batches(): ...
    """

    def __init__(self, sources: Sequence[AsyncGenerator[Event, None]]) -> None:
        self._sources = sources
        self._pumps: list[asyncio.Task[None]] = []
        self._arrived: list[Arrival] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Feed:
        for index, source in enumerate(self._sources):
            pump = asyncio.create_task(self._pump(index, source))
            pump.add_done_callback(lambda _: self._news.set())
            self._pumps.append(pump)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await cancel_all(*self._pumps)

    async def batches(self) -> AsyncGenerator[list[Arrival], None]:
        is_over = False
        while not is_over:
            await self._news.wait()
            self._news.clear()
            is_over = all(pump.done() for pump in self._pumps)
            arrived, self._arrived = self._arrived, []
            if arrived:
                yield arrived
            self._raise_failure()

    def stop(self, index: int) -> None:
        """Close one source; nothing more comes from it."""
        self._pumps[index].cancel()

    def _raise_failure(self) -> None:
        for pump in self._pumps:
            if pump.done() and not pump.cancelled():
                pump.result()

    async def _pump(self, index: int, source: AsyncGenerator[Event, None]) -> None:
        async with aclosing(source):
            async for event in source:
                self._arrived.append((index, event))
                self._news.set()
