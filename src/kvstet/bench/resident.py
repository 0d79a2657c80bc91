"""What servers take of the machine's memory, looked at again and again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from kvstet.bench.servers import Server

LOOK_SECONDS = 0.5


class Peaks:
    """The most that each server has taken until now."""

    def __init__(self) -> None:
        self._bytes: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Peaks({self._bytes})"

    def look(self, server: Server) -> int | None:
        """What it takes now."""
        now = server.memory_bytes()
        if now is not None:
            self._bytes[server.name] = max(now, self._bytes.get(server.name, 0))
        return now

    def of(self, server: Server) -> int | None:
        return self._bytes.get(server.name)


@asynccontextmanager
async def watched(servers: Sequence[Server], peaks: Peaks) -> AsyncGenerator[None, None]:
    """Looks at all of them every `LOOK_SECONDS`."""
    task = asyncio.create_task(_look_on(servers, peaks))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _look_on(servers: Sequence[Server], peaks: Peaks) -> None:
    while True:
        for server in servers:
            peaks.look(server)
        await asyncio.sleep(LOOK_SECONDS)
