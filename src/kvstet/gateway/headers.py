"""Header fields on their way through: what belongs to one connection stays behind, all else passes as it came.

Fields are pairs of bytes in the order in which they were sent. Their names reach a gateway in lower case, since that is
how ASGI hands them over; HTTP makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

Fields = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields of one connection (RFC 2616, 13.5.1, and RFC 9110, 7.6.1, which adds those that Connection names)."""

_MET_HERE = frozenset({b"expect"})
"""Expect: 100-continue was answered by this server, as soon as the body was asked for."""

_KEY_FIELDS = frozenset({b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"})
"""Where clients put keys."""

_BEARER = b"bearer "

_BODY_FIELDS = frozenset({b"content-length", b"content-encoding", b"content-md5", b"digest", b"content-digest"})
"""What is true of one body only."""

WITHOUT = b"x-kvstet-without"
"""Names of changes that a request does not want; a word to the gateway, when it changes anything."""

CHANGES = b"x-kvstet-changes"
"""Names of the changes that were made, in the response."""


@dataclass(frozen=True, slots=True)
class Credential:
    """The gateway's own key, and the field in which the upstream wants it."""

    name: bytes
    value: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, value: str) -> Credential:
        return cls(name.lower().encode("latin-1"), value.encode("latin-1"))


def end_to_end(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """All but the fields of the connection, in their order."""
    fields = list(fields)
    named = {
        option.strip().lower()
        for name, value in fields
        if name.lower() == b"connection"
        for option in value.split(b",")
    }
    dropped = _HOP_BY_HOP | named
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def onward(fields: Fields, host: bytes, credential: Credential | None) -> Fields:
    """A request's fields as the upstream gets them: its own Host, and its key if the gateway has one."""
    kept = [field for field in end_to_end(fields) if field[0] not in _MET_HERE]
    kept = [(name, host if name == b"host" else value) for name, value in kept]
    if is_chunked(fields):
        # The body comes in pieces of unknown number, and goes on so.
        kept = [*(field for field in kept if field[0] != b"content-length"), (b"transfer-encoding", b"chunked")]
    if not has(kept, b"host"):
        kept = [(b"host", host), *kept]
    return kept if credential is None else with_key(kept, credential)


def with_key(fields: Fields, credential: Credential) -> Fields:
    """With the gateway's key, and none of the client's."""
    return [*(field for field in fields if field[0].lower() not in _KEY_FIELDS), (credential.name, credential.value)]


def with_body(fields: Fields, num_bytes: int) -> Fields:
    """For another body than the one that was sent."""
    dropped = _BODY_FIELDS | {b"transfer-encoding"}
    return [
        *(field for field in fields if field[0].lower() not in dropped),
        (b"content-length", str(num_bytes).encode()),
    ]


def without(fields: Fields, *names: bytes) -> Fields:
    """All but these."""
    return [field for field in fields if field[0].lower() not in names]


def is_chunked(fields: Fields) -> bool:
    return b"chunked" in value_of(fields, b"transfer-encoding").lower()


def wants_websocket(fields: Fields) -> bool:
    """Whether the connection is to become one. Another upgrade (Java's clients ask for HTTP/2) need not be granted."""
    wanted = b"websocket" in value_of(fields, b"upgrade").lower()
    return wanted and b"upgrade" in value_of(fields, b"connection").lower()


def has(fields: Fields, name: bytes) -> bool:
    return any(each.lower() == name for each, _ in fields)


def value_of(fields: Fields, name: bytes) -> bytes:
    """Of the first field of this name; empty where there is none."""
    return next((value for each, value in fields if each.lower() == name), b"")


def key_in(fields: Fields) -> bytes:
    """The first key that a client sends, without its scheme: some send the same one bare; empty: it sends none."""
    key = next((value.strip() for name, value in fields if name.lower() in _KEY_FIELDS), b"")
    return key[len(_BEARER) :].strip() if key.lower().startswith(_BEARER) else key


def texts_of(fields: Fields) -> dict[str, str]:
    """Name, in lower case, to value."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in fields}
