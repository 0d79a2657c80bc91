"""Who may come in: API keys, and hosts a browser may have been sent from."""

from __future__ import annotations

import hmac
import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from kvstet.api.envelopes import ErrorAnswer

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})
"""Paths that need no key, as in llama-server."""

_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::\d{1,5})?")

_NO_KEY = ErrorAnswer(
    401,
    "A valid API key is needed: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
    "invalid_request_error",
    "invalid_api_key",
)
_FOREIGN_HOST = ErrorAnswer(
    403,
    "This server listens on loopback and answers only to the Host names localhost, 127.0.0.1 and [::1];"
    " start it with another --host to be reached under another name.",
    "invalid_request_error",
    "invalid_host",
)


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class HostGuard:
    """Lets in only requests that were sent to a local name.

    Without it any web page could reach a loopback server from its visitor's browser, by pointing a name of its own at
    127.0.0.1 (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, listen_host: str) -> None:
        self._app = app
        own = f"[{listen_host}]" if ":" in listen_host else listen_host
        self._hosts = _LOCAL_HOSTS | {own} if is_loopback(listen_host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._hosts is None or self._is_local(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
        else:
            await _FOREIGN_HOST.response(scope["path"])(scope, receive, send)

    def _is_local(self, header: str) -> bool:
        match = _HOST.fullmatch(header.lower())
        return match is not None and self._hosts is not None and match[1] in self._hosts


class KeyGuard:
    """Asks for one of the API keys, if there are any."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._keys or scope["path"] in OPEN_PATHS or self._is_known(scope):
            await self._app(scope, receive, send)
        else:
            await _NO_KEY.response(scope["path"], {"www-authenticate": "Bearer"})(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        sent = _sent_keys(scope)
        # All pairs are compared, so that time tells nothing about which key it was.
        matches = [hmac.compare_digest(key, known) for key in sent for known in self._keys]
        return any(matches)


def _sent_keys(scope: Scope) -> list[bytes]:
    keys: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            keys.append(value[7:].strip())
    return keys
