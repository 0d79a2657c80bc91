"""The connections to the upstream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.request import getproxies, proxy_bypass

import httpcore2
import httpx2

from kvstet.addresses import is_loopback
from kvstet.errors import InvalidRequest, UpstreamSilent, UpstreamUnreachable
from kvstet.gateway.copy import Copy
from kvstet.gateway.headers import Fields
from kvstet.gateway.streams import Streams
from kvstet.gateway.upstream import Place, Upstream

_IDLE_SECONDS = 60.0
"""How long a connection is kept for the next request: agents pause between requests, and TLS takes round trips."""

_IDLE_CONNECTIONS = 64


class UpstreamBroke(Exception):
    """It began to answer, and did not come to the end: the client's connection has to break as well."""


@dataclass(frozen=True, slots=True)
class Response:
    """What the upstream answers, once it has begun to."""

    status: int
    fields: Fields = field(repr=False)
    body: AsyncIterable[bytes] = field(repr=False)


class Line:
    """The connections to the upstream, kept between requests."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._timeouts = {
            "connect": upstream.connect_seconds,
            "read": upstream.read_seconds,
            "write": upstream.read_seconds,
        }
        # The connections alone: a client around them would follow cookies, redirections and authentication, all of
        # which are the business of those whose requests pass, and it would take its time for that.
        self._pool = _pool(_proxy_of(httpx2.URL(next(iter(upstream.bases.values())))))

    def __repr__(self) -> str:
        return f"Line({self._upstream.title})"

    async def close(self) -> None:
        await self._pool.aclose()

    @asynccontextmanager
    async def ask(
        self, method: str, place: Place, fields: Fields, body: AsyncIterable[bytes] | bytes
    ) -> AsyncGenerator[Response, None]:
        """The response, once it has begun; leaving the block closes the connection unless all was read.

        Raises UpstreamUnreachable and UpstreamSilent.
        """
        url = _wire_url(place.server, place.target)
        asked = httpcore2.Request(method, url, headers=fields, content=body, extensions={"timeout": self._timeouts})
        response = await self._sent(asked)
        try:
            yield Response(response.status, response.headers, response.aiter_stream())
        finally:
            await response.aclose()

    async def _sent(self, request: httpcore2.Request) -> httpcore2.Response:
        try:
            return await self._pool.handle_async_request(request)
        except httpcore2.TimeoutException as error:
            what = "accept a connection" if isinstance(error, httpcore2.ConnectTimeout) else "answer"
            raise UpstreamSilent(f"The upstream {self._upstream.title} did not {what} in time.") from None
        except httpcore2.ConnectError as error:
            raise UpstreamUnreachable(f"The upstream {self._upstream.title} cannot be reached: {error}.") from None
        except httpcore2.LocalProtocolError:
            # What h11 says of a field quotes it, and it may be a key.
            raise InvalidRequest("The request has a header field that cannot be sent on.") from None
        except _BROKEN as error:
            reason = _REASONS.get(type(error), "the connection failed")
            raise UpstreamUnreachable(f"The upstream {self._upstream.title} gave no answer: {reason}.") from None


def _pool(proxy: httpcore2.Proxy | None) -> httpcore2.AsyncConnectionPool:
    return httpcore2.AsyncConnectionPool(
        ssl_context=httpx2.create_ssl_context(),
        proxy=proxy,
        max_connections=None,
        max_keepalive_connections=_IDLE_CONNECTIONS,
        keepalive_expiry=_IDLE_SECONDS,
        network_backend=Streams(),
    )


def _proxy_of(url: httpx2.URL) -> httpcore2.Proxy | None:
    """As the environment has it; nobody means a proxy to be asked for what runs on this machine."""
    if is_loopback(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    return _proxy_at(address) if address else None


def _proxy_at(address: str) -> httpcore2.Proxy:
    """InvalidRequest where it is none of HTTP. It is not quoted: it may have a password in it."""
    try:
        proxy = httpx2.Proxy(address)
    except (ValueError, httpx2.InvalidURL):
        raise InvalidRequest(_NO_PROXY) from None
    if proxy.url.scheme not in ("http", "https"):
        raise InvalidRequest(_NO_PROXY)
    return httpcore2.Proxy(_wire_url(proxy.url, proxy.url.raw_path), proxy.raw_auth, proxy.headers.raw)


def _wire_url(server: httpx2.URL, target: bytes) -> httpcore2.URL:
    return httpcore2.URL(scheme=server.raw_scheme, host=server.raw_host, port=server.port, target=target)


_NO_PROXY = (
    "The proxy that the environment names (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: give the address of an"
    " HTTP proxy, or put the upstream into NO_PROXY."
)

_BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.ProxyError, httpcore2.TimeoutException)

_REASONS: Mapping[type[Exception], str] = {
    httpcore2.RemoteProtocolError: "it closed the connection, or does not speak HTTP",
    httpcore2.ReadError: "it broke the connection off",
    httpcore2.WriteError: "it broke the connection off",
    httpcore2.ProxyError: "the proxy before it failed",
}


async def pieces_of(response: Response, copy: Copy) -> AsyncGenerator[bytes, None]:
    """The body as it comes, its encoding untouched. UpstreamBroke: it did not come to the end."""
    try:
        async for piece in response.body:
            copy.add(piece)
            yield piece
    except _BROKEN as error:
        raise UpstreamBroke(type(error).__name__) from None
    copy.is_complete = True
