"""The server behind the gateway: where each path lies there, and what is said when it does not answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.request import getproxies, proxy_bypass

import httpx2

from kvstet.addresses import is_loopback
from kvstet.errors import InvalidRequest, UpstreamSilent, UpstreamUnreachable
from kvstet.gateway.copy import Copy
from kvstet.gateway.headers import Credential, Fields

DialectName = str
"""As `kvstet.dialects` names them: chat, responses, messages."""

CONNECT_SECONDS = 10.0
READ_SECONDS = 900.0
"""Silence after which an upstream is given up. Models think for minutes; clients are done waiting before this."""

_IDLE_SECONDS = 60.0
"""How long a connection is kept for the next request: agents pause between requests, and TLS takes round trips."""

_IDLE_CONNECTIONS = 64

_VERSION = b"/v1"
_OPENAI = ("responses", "chat")


class UpstreamBroke(Exception):
    """It began to answer, and did not come to the end: the client's connection has to break as well."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What is behind the gateway."""

    title: str
    bases: Mapping[DialectName, str]
    """Base URL of each dialect that is spoken there, as its SDK would be given it."""
    credentials: Mapping[DialectName, Credential] = field(default_factory=dict[DialectName, Credential])
    """The gateway's own key, as it is sent in each dialect. Empty: the client's passes."""
    read_seconds: float = READ_SECONDS
    connect_seconds: float = CONNECT_SECONDS

    def place(self, dialect: DialectName | None, raw_path: bytes, query: bytes) -> Place:
        """Where a path of the gateway lies; the query stays as it is, byte for byte."""
        server, prefix = _split(self.bases[self._own(dialect)])
        is_openai = dialect != "messages" or prefix.endswith(_VERSION)
        # Base URLs of OpenAI's dialects have their version in them, and what clients ask a gateway for begins with it.
        if prefix and is_openai and (raw_path == _VERSION or raw_path.startswith(_VERSION + b"/")):
            raw_path = raw_path.removeprefix(_VERSION)
        return Place(server, prefix + raw_path + (b"?" + query if query else b""))

    def credential(self, dialect: DialectName | None) -> Credential | None:
        """What is sent in the place of the client's key; None: that one passes."""
        return self.credentials.get(self._own(dialect))

    def _own(self, dialect: DialectName | None) -> DialectName:
        """The dialect whose base URL and key a path has; paths of none are mostly OpenAI's: models, files..."""
        wanted = (dialect or "", *_OPENAI, *self.bases)
        return next(name for name in wanted if name in self.bases)


@dataclass(frozen=True, slots=True)
class Place:
    """A server, and what is asked for there."""

    server: httpx2.URL
    target: bytes
    """Path and query as they go over the wire."""

    @property
    def host(self) -> bytes:
        """As the Host field names it."""
        return self.server.netloc


@lru_cache
def _split(base: str) -> tuple[httpx2.URL, bytes]:
    """The server of a base URL, and the path on it without a slash at its end."""
    url = httpx2.URL(base)
    return url.copy_with(raw_path=b"/"), url.raw_path.partition(b"?")[0].rstrip(b"/")


class Line:
    """The connections to the upstream, kept between requests."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._timeouts = {
            "connect": upstream.connect_seconds,
            "read": upstream.read_seconds,
            "write": upstream.read_seconds,
            "pool": None,
        }
        # The transport alone: a client around it would follow cookies, redirections and authentication, all of which
        # are the business of those whose requests pass, and it would take a third of the time that one takes here.
        self._transport = _transport(_proxy_of(httpx2.URL(next(iter(upstream.bases.values())))))

    def __repr__(self) -> str:
        return f"Line({self._upstream.title})"

    async def close(self) -> None:
        await self._transport.aclose()

    @asynccontextmanager
    async def ask(
        self, method: str, place: Place, fields: Fields, body: AsyncIterable[bytes] | bytes
    ) -> AsyncGenerator[httpx2.Response, None]:
        """The response, once it has begun; leaving the block closes the connection unless all was read.

        Raises UpstreamUnreachable and UpstreamSilent.
        """
        request = httpx2.Request(
            method,
            place.server,
            headers=fields,
            stream=_Body(body) if not isinstance(body, bytes) else httpx2.ByteStream(body),
            extensions={"target": place.target, "timeout": self._timeouts},
        )
        response = await self._sent(request)
        try:
            yield response
        finally:
            await response.aclose()

    async def _sent(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return await self._transport.handle_async_request(request)
        except httpx2.TimeoutException as error:
            what = "accept a connection" if isinstance(error, httpx2.ConnectTimeout) else "answer"
            raise UpstreamSilent(f"The upstream {self._upstream.title} did not {what} in time.") from None
        except httpx2.ConnectError as error:
            raise UpstreamUnreachable(f"The upstream {self._upstream.title} cannot be reached: {error}.") from None
        except httpx2.LocalProtocolError:
            # What h11 says of a field quotes it, and it may be a key.
            raise InvalidRequest("The request has a header field that cannot be sent on.") from None
        except httpx2.TransportError as error:
            reason = _REASONS.get(type(error), "the connection failed")
            raise UpstreamUnreachable(f"The upstream {self._upstream.title} gave no answer: {reason}.") from None


def _transport(proxy: str | None) -> httpx2.AsyncHTTPTransport:
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS, keepalive_expiry=_IDLE_SECONDS
    )
    try:
        return httpx2.AsyncHTTPTransport(proxy=proxy, limits=limits)
    except (ImportError, ValueError, httpx2.InvalidURL):
        # The address may have a password in it.
        raise InvalidRequest(
            "The proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: give the address"
            " of an HTTP proxy, or put the upstream into NO_PROXY."
        ) from None


def _proxy_of(url: httpx2.URL) -> str | None:
    """As the environment has it; nobody means a proxy to be asked for what runs on this machine."""
    if is_loopback(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


_REASONS: Mapping[type[httpx2.TransportError], str] = {
    httpx2.RemoteProtocolError: "it closed the connection, or does not speak HTTP",
    httpx2.ReadError: "it broke the connection off",
    httpx2.WriteError: "it broke the connection off",
    httpx2.ProxyError: "the proxy before it failed",
}


async def pieces_of(response: httpx2.Response, copy: Copy) -> AsyncGenerator[bytes, None]:
    """The body as it comes, its encoding untouched. UpstreamBroke: it did not come to the end."""
    try:
        async for piece in response.aiter_raw():
            copy.add(piece)
            yield piece
    except httpx2.TransportError as error:
        raise UpstreamBroke(type(error).__name__) from None
    copy.is_complete = True


class _Body(httpx2.AsyncByteStream):
    """A body as it comes from the client."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        async for piece in self._pieces:
            yield piece
