"""Listening, as `kvstet.api.server` does, with nothing of its own in what passes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from starlette.types import ASGIApp

from kvstet.api.server import Closable, Server, listen, url_of
from kvstet.config import ServerOptions
from kvstet.gateway.corking import CorkingProtocol


class GatewayServer(Server):
    """Does not add a date to responses: they have their own."""

    def __init__(self, app: ASGIApp, closable: Closable, drain_seconds: float) -> None:
        super().__init__(app, closable, drain_seconds)
        self.config.date_header = False
        self.config.http = CorkingProtocol
        logging.getLogger("uvicorn.error").addFilter(_is_news)


_SWITCH_SECONDS = 0.0005
"""Requests that pass take turns with the thread that looks at copies of others. At Python's own 5 ms, and with several
turns in a request, one in a hundred would wait for 50 ms."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """To its end, on uvloop, which takes less time than asyncio's own loop to pass a request on."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    uvloop.run(main)


async def serve(
    app: ASGIApp,
    closable: Closable,
    options: ServerOptions,
    *,
    drain_seconds: float,
    on_listening: Callable[[str], None] = lambda _: None,
) -> None:
    """As `kvstet.api.server.serve`."""
    listener = listen(options)
    try:
        server = GatewayServer(app, closable, drain_seconds)
        on_listening(url_of(listener))
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        await closable.close()


def _is_news(record: logging.LogRecord) -> bool:
    """Responses without an end are meant, and logged with their reason; a WebSocket is answered, and no one is missing
    a library for it."""
    text = record.getMessage()
    known = ("returned without completing response", "Unsupported upgrade request", "No supported WebSocket library")
    return not any(part in text for part in known)
