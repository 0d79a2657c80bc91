"""A real gateway on a loopback port, and what stands behind it: a server that records, or a bare socket."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.api.harness import eventually

from kvstet.api.recording import recording
from kvstet.api.server import listen, url_of
from kvstet.config import ServerOptions
from kvstet.gateway.app import Gateway
from kvstet.gateway.building import GatewayOptions, build
from kvstet.gateway.changing.preparer import Models
from kvstet.gateway.observing.billing import Billing
from kvstet.gateway.observing.observer import Observer
from kvstet.gateway.server import GatewayServer
from kvstet.gateway.upstream import Upstream
from kvstet.providers.provider import provider_at
from kvstet.traces.recorder import Recorder as TraceRecorder

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Recorded:
    """A request as it reached the upstream."""

    method: str
    target: bytes
    fields: Fields
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What the upstream says."""

    status: int = 200
    fields: Fields = field(default_factory=lambda: [(b"content-type", b"application/json")])
    pieces: tuple[bytes, ...] = (b"{}",)
    pause_seconds: float = 0.0


@dataclass
class Recorder:
    """An upstream: notes what it gets, and gives the same answer to all, or what ``plan`` says."""

    answer: Answer = field(default_factory=Answer)
    plan: Callable[[Recorded], Answer] | None = None
    requests: list[Recorded] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"".join([piece async for piece in _body(receive)])
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        request = Recorded(scope["method"], target, list(scope["headers"]), body)
        self.requests.append(request)
        answer = self.plan(request) if self.plan else self.answer
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.fields})
        for piece in answer.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if answer.pause_seconds:
                await asyncio.sleep(answer.pause_seconds)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @property
    def last(self) -> Recorded:
        return self.requests[-1]


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    has_more = True
    while has_more:
        message = await receive()
        has_more = message.get("more_body", False)
        yield message.get("body", b"")


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Any app under uvicorn; yields its URL."""
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", server_header=False, date_header=False, ws="none", access_log=False
    )
    with _running(uvicorn.Server(config), listen(ServerOptions(port=0))) as url:
        yield url


@contextmanager
def _running(server: uvicorn.Server, listener: socket.socket, gateway: Gateway | None = None) -> Generator[str]:
    async def run() -> None:
        await server.serve(sockets=[listener])
        if gateway is not None:
            await gateway.close()

    server.config.load()
    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert eventually(lambda: server.started, 30.0)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(30.0)
        listener.close()


@dataclass(frozen=True)
class Gate:
    """A running gateway."""

    url: str
    gateway: Gateway
    observer: Observer
    server: uvicorn.Server

    @contextmanager
    def http(self, **options: Any) -> Iterator[httpx2.Client]:
        with httpx2.Client(base_url=self.url, trust_env=False, verify=False, **options) as client:
            yield client

    def post(self, path: str, body: bytes, **options: Any) -> httpx2.Response:
        with self.http() as client:
            return client.post(path, content=body, **options)

    def rows(self, **headers: str) -> list[dict[str, Any]]:
        """`/v1/kvstet/requests` of whoever sends these headers, once all was looked at; the newest first."""
        assert eventually(lambda: not self.server.server_state.tasks)
        assert eventually(lambda: self.observer.num_waiting == 0)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        with self.http() as client:
            return client.get("/v1/kvstet/requests?limit=1000", headers=names).json()["data"]

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)

    def asked(self, data: bytes) -> bytes:
        """All that comes back on a bare connection, until the gateway closes it."""
        with self.connect() as connection:
            connection.sendall(data)
            return received(connection)


def received(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    pieces: list[bytes] = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def built_gateway(
    url: str,
    *,
    models: Mapping[str, str] | None = None,
    serving: Mapping[str, Any] | None = None,
    recorder: TraceRecorder | None = None,
    **options: Any,
) -> Iterator[Gate]:
    """As `kvstet gateway` makes it, without a ledger unless it is asked for."""
    wanted = GatewayOptions(upstream=url, models=Models(names=models or {}), **{"keeps_ledger": False, **options})
    settings = ServerOptions(port=0, **(serving or {}))
    gateway = build(wanted, settings)
    server = GatewayServer(recording(gateway, recorder), gateway, 0.1)
    with _running(server, listen(settings), gateway) as at:
        yield Gate(at, gateway, gateway.observer, server)


DIALECT_NAMES = ("chat", "responses", "messages")


def upstream_at(url: str, **options: Any) -> Upstream:
    """That speaks all dialects."""
    return Upstream("test upstream", dict.fromkeys(DIALECT_NAMES, url), **options)


@contextmanager
def gateway_to(
    upstream: Upstream | str,
    make: Callable[[Upstream, ServerOptions, Observer], Gateway] = Gateway,
    observer: Observer | None = None,
    **options: Any,
) -> Iterator[Gate]:
    """A gateway under uvicorn."""
    upstream = upstream_at(upstream) if isinstance(upstream, str) else upstream
    settings = ServerOptions(port=0, **options)
    observer = observer or new_observer(upstream)
    gateway = make(upstream, settings, observer)
    server = GatewayServer(gateway, gateway, 0.1)
    with _running(server, listen(settings), gateway) as url:
        yield Gate(url, gateway, observer, server)


def new_observer(upstream: Upstream) -> Observer:
    return Observer(Billing(provider_at("http://127.0.0.1")))


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Wire:
    """An upstream on a bare socket: whatever it writes is what comes."""

    handle: Handler
    context: ssl.SSLContext | None = None
    """With it, the socket speaks TLS."""
    num_connections: int = 0
    num_closed: int = 0
    """Connections that the gateway has closed, as `until_closed` saw."""
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Wire]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.context)
        server = asyncio.run_coroutine_threadsafe(starting, loop).result()
        scheme = "http" if self.context is None else "https"
        self.url = "{}://{}:{}".format(scheme, *server.sockets[0].getsockname())
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._stop(server), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            await self.handle(reader, writer)
        finally:
            writer.close()

    async def until_closed(self, reader: asyncio.StreamReader) -> None:
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.num_closed += 1

    async def _stop(self, server: asyncio.Server) -> None:
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body of a request with a Content-Length."""
    head = await read_head(reader)
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0")
    return head + await reader.readexactly(int(length.partition(b":")[2]))


def replying(data: bytes) -> Handler:
    """Reads a request, writes this, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()

    return handle
