"""Work that stops when the client hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from kvstet.api.errors import ClientGone

T = TypeVar("T")


async def until_hangup(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Raises ClientGone, with ``work`` cancelled and over, as soon as the client is gone.

    The request body must have been read.
    """
    working = asyncio.create_task(work)
    waiting = asyncio.create_task(_hangup(receive))
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        await cancel_all(working, waiting)


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancel the tasks and wait until they are over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _hangup(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
