"""A request as it is sent on, and how its response comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass, field
from typing import Protocol

from kvstet.gateway.headers import Fields, end_to_end, onward
from kvstet.gateway.inbound import Inbound
from kvstet.gateway.line import Response
from kvstet.gateway.passage import Call, Passage
from kvstet.gateway.upstream import Place, Upstream


@dataclass(frozen=True, slots=True)
class Returned:
    """What the client gets."""

    status: int
    fields: Fields = field(repr=False)
    body: AsyncGenerator[bytes, None] = field(repr=False)


class Returning(Protocol):
    """Makes the client's response of the upstream's."""

    async def returned(self, response: Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        """``pieces`` are the response's body; they are closed by whoever has made them. UpstreamBroke, here or from the
        body: the upstream's response did not come to its end."""
        ...


class AsItComes:
    """The upstream's response, byte for byte."""

    async def returned(self, response: Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        return Returned(response.status, end_to_end(response.fields), pieces)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it is sent on."""

    place: Place
    fields: Fields = field(repr=False)
    body: AsyncIterable[bytes] | bytes = field(repr=False)
    returning: Returning = field(default_factory=AsItComes)
    added: Fields = field(default_factory=Fields)
    """Fields of the gateway's own in the response."""


def as_it_comes(upstream: Upstream, passage: Passage, inbound: Inbound) -> Outgoing:
    """The request, byte for byte, while it comes."""
    place, fields = addressed(upstream, passage.call)
    return Outgoing(place, fields, passage.sent.tee(inbound.body()))


def addressed(upstream: Upstream, call: Call) -> tuple[Place, Fields]:
    """Where a call goes in its own dialect, with which fields."""
    name = call.dialect.name if call.dialect is not None else None
    place = upstream.place(name, call.raw_path, call.query)
    return place, onward(call.fields, place.host, upstream.credential(name))
