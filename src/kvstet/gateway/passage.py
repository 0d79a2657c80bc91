"""One request that passes through the gateway: what came, what was sent on, and what came back."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from kvstet.api.exchange import Exchange
from kvstet.config import ApiKey
from kvstet.context.arranging.optimiser import Change
from kvstet.dialects.dialect import Dialect, dialect_of_path
from kvstet.gateway.copy import Copy
from kvstet.gateway.headers import Fields
from kvstet.gateway.line import Response

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What a client asks."""

    id: str
    owner: str
    """Name of the API key that sent it, or a digest of the key that passes; see `kvstet.gateway.owners`."""
    method: str
    path: str
    raw_path: bytes
    query: bytes
    fields: Fields = field(repr=False)
    dialect: Dialect | None
    """Of the path; None: it is no endpoint of a dialect."""
    began_at: float
    """Seconds since 1970."""
    started_at: float = field(repr=False)
    """The same, of `time.perf_counter`."""

    @property
    def asks_model(self) -> bool:
        """Whether a reply of a model is wanted, so that there is something to observe."""
        if self.method != "POST" or self.dialect is None:
            return False
        return self.path.rstrip("/").endswith(self.dialect.path.removeprefix("/v1"))


def call_of(scope: Scope) -> Call:
    """Of a request whose exchange and key are known."""
    exchange: Exchange = scope["state"]["exchange"]
    key: ApiKey = scope["state"]["api_key"]
    path: str = scope["path"]
    raw_path = scope.get("raw_path") or path.encode("utf-8")
    query: bytes = scope["query_string"]
    method: str = scope["method"]
    dialect = dialect_of_path(path)
    fields: Fields = scope["headers"]
    return Call(exchange.id, key.name, method, path, raw_path, query, fields, dialect, time.time(), exchange.started_at)


@dataclass(frozen=True, slots=True)
class Rearranged:
    """A request in the upstream's dialect, before and after it was arranged; the same where nothing had to be."""

    before: Body = field(repr=False)
    after: Body = field(repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    """That were sent beside the latter."""


@dataclass(slots=True)
class Passage:
    """What became of a call; filled in while it passes."""

    call: Call
    sent: Copy
    """The body that was sent on."""
    received: Copy
    """The body that came back, as the upstream sent it."""
    is_changed: bool = False
    """Another body was sent on than the client's."""
    rearranged: Rearranged | None = None
    """None: nothing arranges requests, or this one could not be read."""
    changes: tuple[Change, ...] = ()
    dropped: tuple[str, ...] = ()
    """What could not be translated."""
    spoken: Dialect | None = None
    """With the upstream."""
    session: str | None = None
    """As the client names it, where that was asked before the request was sent on."""
    thread: str | None = None
    """A name of the conversation, where the vendor is asked about it."""
    status: int | None = None
    received_fields: Fields = field(default_factory=Fields, repr=False)
    overhead_seconds: float | None = None
    """That the request spent in the gateway before it began to be sent on."""
    first_byte_seconds: float | None = None
    """Until the response began."""
    seconds: float | None = None

    def leave(self) -> None:
        """The request is about to be sent on."""
        self.overhead_seconds = time.perf_counter() - self.call.started_at

    def arrive(self, response: Response) -> None:
        """The response begins."""
        self.status = response.status
        self.received_fields = response.fields
        self.first_byte_seconds = time.perf_counter() - self.call.started_at

    def end(self) -> None:
        """Nothing more comes, for whatever reason."""
        self.seconds = time.perf_counter() - self.call.started_at
