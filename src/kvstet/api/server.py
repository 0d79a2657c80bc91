"""Listening: sockets, signals, and a way to stop that lets replies finish."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from kvstet.config import ServerOptions

DRAIN_SECONDS = 10.0
"""How long running replies may go on once the server was asked to stop."""

_LAST_RESORT_SECONDS = 5
"""Time for the broken-off replies to say so, before their connections are closed."""

_KEEP_ALIVE_SECONDS = 120
"""Agents pause between requests; a connection closed under their next request is an error they do not retry."""


class Closable(Protocol):
    """What goes with the server: an engine, or all models."""

    async def close(self) -> None: ...


def listen(options: ServerOptions) -> socket.socket:
    """A listening socket; port 0 takes any free port. Raises OSError if the address is taken or not ours."""
    host = options.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, options.port), family=family, backlog=2048)


def url_of(listener: socket.socket) -> str:
    """Where the server is reached, without a trailing slash."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    app: ASGIApp,
    models: Closable,
    options: ServerOptions,
    *,
    drain_seconds: float = DRAIN_SECONDS,
    on_listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until SIGINT or SIGTERM, and close the models.

    Replies that run then may go on for ``drain_seconds``, or until a second SIGINT; what is left ends with
    ShuttingDown. ``on_listening`` gets the URL once connections are accepted. Raises OSError as `listen` does.
    """
    listener = listen(options)
    try:
        server = Server(app, models, drain_seconds)
        on_listening(url_of(listener))
        await server.serve(sockets=[listener])
    finally:
        listener.close()
        await models.close()


class Server(uvicorn.Server):
    """Uvicorn, with models that are closed while its last connections can still be told."""

    def __init__(self, app: ASGIApp, models: Closable, drain_seconds: float = DRAIN_SECONDS) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(drain_seconds) + _LAST_RESORT_SECONDS,
        )
        super().__init__(config)
        self._models = models
        self._drain_seconds = drain_seconds

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals end `serve`, and nothing else: uvicorn's own version raises them again when it is done, and the
        process would die before its models are closed."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._close_models_later())
        try:
            await super().shutdown(sockets)
        finally:
            draining.cancel()

    async def _close_models_later(self) -> None:
        await asyncio.sleep(self._drain_seconds)
        await self._models.close()
