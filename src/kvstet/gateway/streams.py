"""TCP and TLS as httpcore wants them, straight on the event loop's transports.

httpcore brings its own, on anyio, which take a fifth of the time that a request spends in the gateway: for each piece
that is read or sent a scope to be cancelled in is made, guards are taken, and the loop is waited for.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import httpcore2
from aiohappyeyeballs import start_connection  # pyright: ignore[reportUnknownVariableType]
from httpcore2 import SOCKET_OPTION

_MAX_WAITING_BYTES = 256 * 1024
"""On their way in either direction; then whoever sends has to wait."""

_NEXT_ADDRESS_SECONDS = 0.25
"""After which a host's next address is tried beside the first, as RFC 8305 recommends: many have an IPv6 address that
leads nowhere."""


class Streams(httpcore2.AsyncNetworkBackend):
    """Opens connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        if local_address is not None or socket_options is not None:
            # A pool may ask for either; the gateway's does not, and they must not be passed over in silence.
            raise NotImplementedError("a local address, or options, of sockets")
        loop = asyncio.get_running_loop()
        async with _connecting(timeout):
            addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            connection = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS)
            try:
                _, stream = await loop.create_connection(Stream, sock=connection)
            except BaseException:
                connection.close()
                raise
        return stream


class Stream(asyncio.Protocol, httpcore2.AsyncNetworkStream):
    """One connection, read by one and written to by one at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._is_held = False
        """Too much waits to be taken."""
        self._is_over = False
        """Nothing more will come."""
        self._is_full = False
        """Too much waits to be sent."""
        self._error: Exception | None = None
        self._arrival: asyncio.Future[None] | None = None
        """What a reader waits for."""
        self._room: asyncio.Future[None] | None = None
        """What a writer waits for."""

    def __repr__(self) -> str:
        return f"Stream({len(self._waiting)} bytes wait, is_over={self._is_over})"

    # What httpcore asks for.

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._waiting and not self._is_over:
            self._arrival = asyncio.get_running_loop().create_future()
            await _in_time(self._arrival, timeout, httpcore2.ReadTimeout)
        if not self._waiting and self._error is not None:
            raise httpcore2.ReadError(str(self._error)) from self._error
        data = bytes(self._waiting[:max_bytes])
        del self._waiting[:max_bytes]
        if self._is_held and len(self._waiting) <= _MAX_WAITING_BYTES // 2:
            self._is_held = False
            self._opened.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        if self._is_over or self._opened.is_closing():
            raise httpcore2.WriteError("the connection is closed") from self._error
        self._opened.write(buffer)
        if self._is_full:
            self._room = asyncio.get_running_loop().create_future()
            await _in_time(self._room, timeout, httpcore2.WriteTimeout)
            if self._is_over:
                raise httpcore2.WriteError("the connection is closed") from self._error

    async def aclose(self) -> None:
        # What was written is sent by now, unless nobody wants it any more. A polite end of TLS would wait for the other
        # side, which may not be listening.
        self._opened.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        loop, stream = asyncio.get_running_loop(), Stream()
        try:
            async with _connecting(timeout):
                transport = await loop.start_tls(self._opened, stream, ssl_context, server_hostname=server_hostname)
                if transport is None:
                    raise ConnectionResetError("the connection was closed within its handshake")
        except BaseException:
            self._opened.abort()
            raise
        stream.connection_made(transport)
        return stream

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # Of a connection that nobody reads: it was closed, or says what nobody asked for.
            return self._is_over or bool(self._waiting)
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._opened.get_extra_info(names.get(info, info))

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(_MAX_WAITING_BYTES)

    def data_received(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) > _MAX_WAITING_BYTES and not self._is_held and self._transport is not None:
            self._is_held = True
            self._transport.pause_reading()
        _wake(self._arrival)

    def eof_received(self) -> None:
        self._is_over = True
        _wake(self._arrival)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._error = exc
        _wake(self._arrival)
        _wake(self._room)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        _wake(self._room)

    @property
    def _opened(self) -> asyncio.Transport:
        assert self._transport is not None, "no connection was made"
        return self._transport


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


async def _in_time(waiter: asyncio.Future[None], timeout: float | None, late: type[Exception]) -> None:
    try:
        async with asyncio.timeout(timeout):
            await waiter
    except TimeoutError:
        raise late from None


@asynccontextmanager
async def _connecting(timeout: float | None) -> AsyncGenerator[None]:
    """Errors in httpcore's words. TLS's and the resolver's are among the system's, but for names that are none."""
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError:
        raise httpcore2.ConnectTimeout from None
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(str(error)) from error
