"""What the gateway needs of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kvstet.dialects.dialect import DialectName

Body = dict[str, Any]


class Change(Protocol):
    """One thing that was changed in a request; quotes nothing of the prompt."""

    @property
    def name(self) -> str:
        """By which it is switched off."""
        ...

    @property
    def entry(self) -> int | None:
        """Which of the request's messages or items; None for its instructions, tools and options."""
        ...

    @property
    def what(self) -> str: ...


class Arranged(Protocol):
    """A request as it should be sent."""

    @property
    def body(self) -> Body: ...
    @property
    def changes(self) -> Sequence[Change]: ...
    @property
    def headers(self) -> Sequence[tuple[str, str]]:
        """To be sent beside it, where the client sends none of that name."""
        ...


class Arranger(Protocol):
    """Arranges requests so that caches hit: `kvstet.context.optimiser.Optimiser`. Thread-safe."""

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


@dataclass(frozen=True, slots=True)
class FakeChange:
    name: str
    entry: int | None = None
    what: str = "for a test"


@dataclass(frozen=True, slots=True)
class FakeArranged:
    body: Body
    changes: tuple[FakeChange, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()


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
    ) -> FakeArranged:
        if self.error is not None:
            raise self.error
        wanted = {name: value for name, value in self.fields.items() if name not in frozenset(without)}
        return FakeArranged({**body, **wanted}, tuple(map(FakeChange, wanted)), self.headers)
