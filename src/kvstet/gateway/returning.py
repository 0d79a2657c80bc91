"""Responses on their way back: as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

import httpx

from kvstet.gateway.headers import Fields, end_to_end


@dataclass(frozen=True, slots=True)
class Returned:
    """What the client gets."""

    status: int
    fields: Fields = field(repr=False)
    body: AsyncGenerator[bytes, None] = field(repr=False)


class Returning(Protocol):
    """Makes the client's response of the upstream's."""

    async def returned(self, response: httpx.Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        """``pieces`` are the response's body; they are closed by whoever has made them. UpstreamBroke, here or from the
        body: the upstream's response did not come to its end."""
        ...


class AsItComes:
    """The upstream's response, byte for byte."""

    async def returned(self, response: httpx.Response, pieces: AsyncGenerator[bytes, None]) -> Returned:
        return Returned(response.status_code, end_to_end(response.headers.raw), pieces)
