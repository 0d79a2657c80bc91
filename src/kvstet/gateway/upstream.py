"""The server behind the gateway: where each path lies there, and what is said when it does not answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import httpx2

from kvstet.gateway.headers import Credential

DialectName = str
"""As `kvstet.dialects` names them: chat, responses, messages."""

CONNECT_SECONDS = 10.0
READ_SECONDS = 900.0
"""Silence after which an upstream is given up. Models think for minutes; clients are done waiting before this."""

_VERSION = b"/v1"
_OPENAI = ("responses", "chat")


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
