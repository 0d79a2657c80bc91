"""Who may come in: with which key and how often, under which host name, and from which web pages."""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Iterable
from functools import lru_cache

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from kvstet.addresses import is_loopback
from kvstet.api.access import Access, Account, BadAccess, LimitReached
from kvstet.api.envelopes import ErrorAnswer
from kvstet.api.metrics import Metrics

logger = logging.getLogger("kvstet.api")

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})
"""Paths that need no key, as in llama-server."""

ANY = "*"

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/\s]+)(?::\d{1,5})?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[^:\[\]/\s?#@*]+)(:\d{1,5})?")

_METHODS = ("GET", "HEAD", "POST", "DELETE")
_SHOWN_HEADERS = ("x-request-id", "request-id", "retry-after")

_SIMPLE_TYPES = frozenset({"", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})
"""Content types that a browser sends to any server without asking it first."""

_NO_KEY = ErrorAnswer(
    401,
    "A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
    "invalid_request_error",
    "invalid_api_key",
)
_FOREIGN_HOST = ErrorAnswer(
    403,
    "This server is not reached under this Host name: it answers to localhost, 127.0.0.1, [::1] and what it was told;"
    " start it with --allowed-host NAME to be reached under another name.",
    "invalid_request_error",
    "invalid_host",
)
_FOREIGN_PAGE = ErrorAnswer(
    403,
    "A web page of another origin sent this without leave: start the server with --cors-origin ORIGIN to give it,"
    " and send JSON as 'Content-Type: application/json'.",
    "invalid_request_error",
    "invalid_origin",
)


def host_name(text: str) -> str:
    """A host name as a Host header has it, without a port. BadAccess: it is none."""
    match = _HOST.fullmatch(_bracketed(text.strip().lower()))
    if match is None or (ANY in match[1] and match[1] != ANY):
        raise BadAccess(f"{text!r} is not a host name: give it without scheme and path, as in 'box.example'.")
    return _canonical(match[1])


def origin(text: str) -> str:
    """An origin as browsers send it; ``*`` is all of them. BadAccess: it is none."""
    lean = text.strip().lower().removesuffix("/")
    if lean not in {ANY, "null"} and not _ORIGIN.fullmatch(lean):
        raise BadAccess(f"{text!r} is not an origin: give scheme, host and port only, as in 'http://localhost:3000'.")
    return lean


def cors(origins: Iterable[str]) -> list[Middleware]:
    """What lets pages of these origins use the server from a browser; without origins, nothing.

    It is the outermost, so that a page can read every answer, errors too, and needs no key to ask whether it may send
    one. Credentials of the browser (cookies) mean nothing here and are not allowed.
    """
    allowed = list(origins)
    if not allowed:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=allowed,
            allow_methods=_METHODS,
            allow_headers=(ANY,),
            expose_headers=_SHOWN_HEADERS,
            allow_private_network=True,
        )
    ]


class HostGuard:
    """Lets in only requests that were sent to a name of this server.

    Without it any web page could reach a loopback server from its visitor's browser, by pointing a name of its own at
    127.0.0.1 (DNS rebinding). A server that listens to the network answers to any name, unless it was told names.
    """

    def __init__(self, app: ASGIApp, listen_host: str, allowed: Iterable[str] = ()) -> None:
        self._app = app
        names = {host_name(name) for name in allowed}
        is_guarded = ANY not in names and (bool(names) or is_loopback(listen_host))
        self._hosts = _LOCAL_HOSTS | {host_name(listen_host)} | names if is_guarded else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._hosts is None or self._is_own(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
        else:
            await _FOREIGN_HOST.response(scope["path"])(scope, receive, send)

    def _is_own(self, header: str) -> bool:
        match = _HOST.fullmatch(header.lower())
        return match is not None and self._hosts is not None and _canonical(match[1]) in self._hosts


class PageGuard:
    """Lets no web page of a foreign origin send what it could not read the answer to.

    Browsers send forms and plain text to any server and ask for leave only to read the answer. Without this a page
    could keep a server busy whose answers it never gets to see.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str] = ()) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and self._is_blind(Headers(scope=scope)):
            await _FOREIGN_PAGE.response(scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_blind(self, headers: Headers) -> bool:
        sender = headers.get("origin")
        if sender is None or ANY in self._allowed or sender in self._allowed:
            return False
        return headers.get("content-type", "").partition(";")[0].strip().lower() in _SIMPLE_TYPES


class KeyGuard:
    """Asks for one of the API keys, if there are any, and holds each to its limits.

    Only POSTs count for the limits: to ask for the list of models costs next to nothing, and a client that does so
    while its replies run should not be refused.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._access.is_open or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        account = self._access.account_of(_sent_keys(scope))
        if account is None:
            await _NO_KEY.response(scope["path"], {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        scope["state"]["api_key"] = account.key
        if scope["method"] == "POST":
            await self._serve(account, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, account: Account, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            admission = account.admit()
        except LimitReached as error:
            self._metrics.observe_key(account.name, error.limit)
            logger.info("request %s: key %s has reached its limit of %s", _id_of(scope), account.name, error.limit)
            answer = ErrorAnswer(
                429,
                str(error),
                "rate_limit_error",
                "rate_limit_exceeded",
                retry_after_seconds=error.retry_after_seconds,
            )
            await answer.response(scope["path"])(scope, receive, send)
            return
        self._metrics.observe_key(account.name, "admitted")
        logger.info("request %s: key %s", _id_of(scope), account.name)
        with admission:
            await self._app(scope, receive, send)


def _id_of(scope: Scope) -> str:
    return scope["state"]["exchange"].id


def _bracketed(host: str) -> str:
    """IPv6 addresses stand in brackets where a port may follow, and there have no zone."""
    host = host.partition("%")[0]
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


@lru_cache(maxsize=64)
def _canonical(host: str) -> str:
    """One spelling of each host: addresses in their shortest form, names without the dot of the root."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.removesuffix(".")
    return f"[{address}]" if address.version == 6 else str(address)


def _sent_keys(scope: Scope) -> list[bytes]:
    keys: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
