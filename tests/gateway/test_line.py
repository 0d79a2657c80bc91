"""Connections to upstreams as they are out there: TLS, proxies, addresses that lead nowhere, servers that hang up."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpcore2
import pytest
import trustme
import uvloop
from tests.gateway.gateway_harness import Wire, gateway_to, read_head, read_request, replying, upstream_at

from kvstet.errors import UpstreamSilent, UpstreamUnreachable
from kvstet.gateway.copy import Copy
from kvstet.gateway.headers import Fields
from kvstet.gateway.line import Line, UpstreamBroke, pieces_of
from kvstet.gateway.streams import Streams
from kvstet.gateway.upstream import Upstream

CHAT = b"/v1/chat/completions"
BODY = bytes(range(256)) * 8192
"""More than the buffers of a connection hold."""

HOST = "upstream.test"
"""A name that only the proxy knows."""

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))


def certified(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its body."""
    while True:
        try:
            body = (await read_request(reader)).partition(b"\r\n\r\n")[2]
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def asked(line: Line, upstream: Upstream, body: bytes = b"{}", *, pieces: int = 0) -> bytes:
    place = upstream.place("chat", CHAT, b"")
    fields: Fields = [(b"host", place.host), (b"content-length", str(len(body)).encode())]
    size = len(body) // pieces if pieces else 0

    async def cut() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async with line.ask("POST", place, fields, cut() if pieces else body) as response:
        assert response.status == 200
        return b"".join([piece async for piece in pieces_of(response, Copy(0))])


async def asked_all(upstream: Upstream, bodies: Sequence[bytes], **options: Any) -> list[bytes]:
    """One after the other, on the same line."""
    line = Line(upstream)
    try:
        return [await asked(line, upstream, body, **options) for body in bodies]
    finally:
        await line.close()


def test_much_passes_in_both_directions(run: Run):
    with Wire(echo).running() as wire:
        assert run(asked_all(upstream_at(wire.url), [BODY, b"", BODY])) == [BODY, b"", BODY]
        assert run(asked_all(upstream_at(wire.url), [BODY], pieces=7)) == [BODY]
        assert wire.num_connections == 2


@pytest.mark.usefixtures("trusted")
def test_much_passes_through_tls(authority: trustme.CA, run: Run):
    with Wire(echo, certified(authority, "127.0.0.1")).running() as wire:
        assert wire.url.startswith("https://")
        assert run(asked_all(upstream_at(wire.url), [BODY, b"{}", BODY])) == [BODY, b"{}", BODY]
        assert run(asked_all(upstream_at(wire.url), [BODY], pieces=7)) == [BODY]
        assert wire.num_connections == 2


@pytest.mark.usefixtures("trusted")
def test_a_gateway_speaks_tls(authority: trustme.CA):
    with Wire(echo, certified(authority, "127.0.0.1")).running() as wire, gateway_to(wire.url) as gate:
        assert gate.post(CHAT.decode(), BODY).content == BODY


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_name_is_not_taken(authority: trustme.CA, run: Run):
    with (
        Wire(echo, certified(authority, "other.test")).running() as wire,
        pytest.raises(UpstreamUnreachable, match="certificate"),
    ):
        run(asked_all(upstream_at(wire.url), [b"{}"]))


def test_a_certificate_that_nobody_vouches_for_is_not_taken(run: Run):
    with (
        Wire(echo, certified(trustme.CA(), "127.0.0.1")).running() as wire,
        pytest.raises(UpstreamUnreachable, match="certificate"),
    ):
        run(asked_all(upstream_at(wire.url), [b"{}"]))


def test_a_handshake_that_nobody_answers_ends(run: Run):
    with Wire(lambda reader, _: wire.until_closed(reader)).running() as wire:
        silent = upstream_at(wire.url.replace("http:", "https:"), connect_seconds=0.2)
        with pytest.raises(UpstreamSilent, match="accept a connection"):
            run(asked_all(silent, [b"{}"]))


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_server_without_tls_is_no_server(said: bytes, run: Run):
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)

    with Wire(plain).running() as wire, pytest.raises(UpstreamUnreachable):
        run(asked_all(upstream_at(wire.url.replace("http:", "https:")), [b"{}"]))


@contextmanager
def proxy(url: str, heads: list[bytes], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """To which every name is this server's."""
    host, port = url.rpartition("/")[2].split(":")

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await read_head(reader))
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        if heads[-1].startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            up_writer.write(heads[-1])
        await asyncio.gather(pipe(reader, up_writer), pipe(up_reader, writer), return_exceptions=True)

    with Wire(handle, context).running() as wire:
        yield wire.url


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("proxy_has_tls", [False, True])
@pytest.mark.parametrize("has_tls", [False, True])
def test_a_proxy_is_asked_where_the_environment_names_one(
    has_tls: bool, proxy_has_tls: bool, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, run: Run
):
    heads: list[bytes] = []
    contexts = [certified(authority, HOST) if has_tls else None, certified(authority, "127.0.0.1")]
    with ExitStack() as stack:
        wire = stack.enter_context(Wire(echo, contexts[0]).running())
        url = stack.enter_context(proxy(wire.url, heads, contexts[1] if proxy_has_tls else None))
        scheme = "https" if has_tls else "http"
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.setenv(name, url.replace("://", "://me:secret@"))
        assert run(asked_all(upstream_at(f"{scheme}://{HOST}"), [BODY, b"{}"])) == [BODY, b"{}"]
    first = b"CONNECT upstream.test:443 " if has_tls else b"POST http://upstream.test/v1/chat/completions "
    assert [head.startswith(first) for head in heads] == [True]
    assert b"proxy-authorization: Basic " + b64encode(b"me:secret") in heads[0].replace(b"Proxy-Auth", b"proxy-auth")


def done_after(data: bytes) -> Wire:
    """Says this as soon as a request's head is there, and then no more."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(data)
        writer.write_eof()
        await wire.until_closed(reader)

    wire = Wire(handle)
    return wire


def test_a_connection_that_was_closed_in_the_meantime_is_not_used_again(run: Run):
    async def twice(upstream: Upstream) -> None:
        line = Line(upstream)
        for number in range(2):
            assert await asked(line, upstream) == b""
            while wire.num_closed == number:
                await asyncio.sleep(0.01)
        await line.close()

    with done_after(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").running() as wire:
        run(twice(upstream_at(wire.url)))
        assert wire.num_connections == 2


def test_a_server_that_takes_nothing_in_is_given_up(run: Run):
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    with Wire(deaf).running() as wire, pytest.raises(UpstreamSilent):
        run(asked_all(upstream_at(wire.url, read_seconds=0.3), [BODY * 8]))


def test_an_answer_that_comes_before_the_end_of_the_request_is_had(run: Run):
    with done_after(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfull").running() as wire:
        assert run(asked_all(upstream_at(wire.url), [BODY])) == [b"full"]


@pytest.mark.parametrize("length", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_an_answer_that_breaks_off_has_not_ended(length: bytes, run: Run):
    data = b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n5\r\nabcde\r\n"
    with Wire(replying(data)).running() as wire, pytest.raises(UpstreamBroke):
        run(asked_all(upstream_at(wire.url), [b"{}"]))


def test_an_address_that_leads_nowhere_holds_nobody_up(monkeypatch: pytest.MonkeyPatch):
    """The first of a host's addresses takes nobody in, as that of a network without a way out."""

    def addresses(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", full.getsockname()),
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", int(wire_port))),
        ]

    with Wire(echo).running() as wire, ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # What is not accepted fills its queue.
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        wire_port = wire.url.rpartition(":")[2]
        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        upstream = upstream_at("http://two-addresses.test", connect_seconds=5)
        monkeypatch.setenv("NO_PROXY", "*")
        began = time.monotonic()
        assert asyncio.run(asked_all(upstream, [b"{}"])) == [b"{}"]
        assert time.monotonic() - began < 4


def test_a_host_that_nobody_knows_is_not_reached(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
        run(asked_all(upstream_at("http://nobody.invalid"), [b"{}"]))


def test_a_reader_that_waits_is_told_of_the_end(run: Run):
    async def read(url: str) -> tuple[bytes, bytes]:
        stream = await Streams().connect_tcp("127.0.0.1", int(url.rpartition(":")[2]))
        await stream.write(b"x\r\n\r\n")
        first = await stream.read(2, timeout=5)
        end = await stream.read(100, timeout=5)
        assert await stream.read(100, timeout=5) == b""
        assert stream.get_extra_info("is_readable")
        with pytest.raises(httpcore2.WriteError):
            await write_on(stream)
        await stream.aclose()
        return first, end

    async def write_on(stream: httpcore2.AsyncNetworkStream) -> None:
        while True:
            await stream.write(BODY, timeout=5)

    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"abcd")

    with Wire(short).running() as wire:
        assert run(read(wire.url)) == (b"ab", b"cd")
