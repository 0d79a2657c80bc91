"""What arranges requests so that caches hit, as far as the gateway has to know it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from kvstet.context.arranging.optimiser import Arranged
from kvstet.dialects.dialect import DialectName
from kvstet.gateway.passage import Body


class Arranger(Protocol):
    """`kvstet.context.arranging.optimiser.Optimiser`. Thread-safe."""

    def arrange(
        self,
        body: Body,
        dialect: DialectName,
        *,
        owner: str = "",
        session: str | None = None,
        without: Iterable[str] = (),
    ) -> Arranged:
        """Changes nothing in place. May raise whatever it likes: then the request passes as it came."""
        ...
