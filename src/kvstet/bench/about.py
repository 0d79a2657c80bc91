"""What a kvstet server says of its model."""

from __future__ import annotations

from pathlib import Path

import httpx2
import msgspec

from kvstet.bench import results
from kvstet.bench.asking import client_of
from kvstet.bench.servers import Server
from kvstet.errors import ServerGone


class _Meta(msgspec.Struct):
    n_ctx_train: int
    size: int


class _Entry(msgspec.Struct):
    id: str
    meta: _Meta


class _Entries(msgspec.Struct):
    data: list[_Entry]


class _Details(msgspec.Struct):
    family: str = ""


class _Shown(msgspec.Struct):
    details: _Details


async def model_of(server: Server, path: Path) -> results.Model:
    """``context_length`` is what it was trained for. ServerGone: it does not say."""
    try:
        async with client_of(server) as client:
            listed = msgspec.json.decode((await client.get("/v1/models")).content, type=_Entries).data[0]
            shown = await client.post("/api/show", json={"model": listed.id})
            details = msgspec.json.decode(shown.content, type=_Shown).details
    except (httpx2.HTTPError, msgspec.MsgspecError) as error:
        raise ServerGone(f"{server.name} does not say what model it has: {error}") from error
    return results.Model(
        name=path.name,
        size_bytes=listed.meta.size,
        architecture=details.family,
        context_length=listed.meta.n_ctx_train,
    )
