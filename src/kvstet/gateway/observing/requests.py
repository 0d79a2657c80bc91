"""The latest requests that passed: what each took, what it cost, and why. No text of any prompt, and no key."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.envelopes import json_response
from kvstet.api.sessions import MAX_RECORDS, limit_of
from kvstet.config import ApiKey

_DEFAULT_LIMIT = 50


@dataclass(frozen=True, slots=True)
class Row:
    """One request that is over."""

    owner: str
    content: Mapping[str, Any] = field(repr=False)


class Requests:
    """Belongs to the event loop."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=MAX_RECORDS)

    def __repr__(self) -> str:
        return f"Requests({len(self._rows)})"

    def add(self, row: Row) -> None:
        self._rows.append(row)

    async def list(self, request: Request) -> Response:
        """Those of the key that asks, the newest first."""
        limit, key = limit_of(request, _DEFAULT_LIMIT), cast("ApiKey", request.state.api_key)
        rows = [row.content for row in reversed(self._rows) if row.owner == key.name]
        return json_response({"object": "list", "data": rows[:limit]})
