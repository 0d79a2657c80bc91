"""Whose request it is, where the gateway asks for no key of its own: that of whoever has the key that passes."""

from __future__ import annotations

import hashlib

from starlette.types import ASGIApp, Receive, Scope, Send

from kvstet.config import ApiKey
from kvstet.gateway.headers import key_in

_DIGEST_BYTES = 6


class Owners:
    """Middleware: gives each request a key by name, as `kvstet.api.guards.KeyGuard` does where keys are asked for.

    The name is a digest with a salt that nobody has and that lasts as long as the process: the key cannot be found from
    it. Whoever sends no key shares what is told with others who send none.
    """

    def __init__(self, app: ASGIApp, salt: bytes) -> None:
        self._app = app
        self._salt = salt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["state"].setdefault("api_key", ApiKey(self._name(key_in(scope["headers"])), secret=""))
        await self._app(scope, receive, send)

    def _name(self, key: bytes) -> str:
        return hashlib.blake2b(key, key=self._salt, digest_size=_DIGEST_BYTES).hexdigest() if key else ""
