"""What arranges requests so that caches hit, as far as the gateway has to know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from kvstet.context.arranging.optimiser import Arranged, Change
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


@dataclass(slots=True)
class FakeArranger:
    """Sets fields of the body; each is a change of the same name. An exception is raised."""

    fields: Mapping[str, Any]
    headers: tuple[tuple[str, str], ...] = ()
    error: Exception | None = None

    def arrange(
        self,
        body: Body,
        dialect: DialectName,
        *,
        owner: str = "",
        session: str | None = None,
        without: Iterable[str] = (),
    ) -> Arranged:
        if self.error is not None:
            raise self.error
        wanted = {name: value for name, value in self.fields.items() if name not in frozenset(without)}
        changes = tuple(Change(name, None, "for a test") for name in wanted)
        return Arranged({**body, **wanted}, changes, self.headers)
