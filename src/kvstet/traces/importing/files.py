"""A session's file, whatever it is: JSON lines, one JSON document, a database or a folder."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import cast

from kvstet.dialects.values import Object, from_json
from kvstet.errors import InvalidRequest
from kvstet.traces.reading import NO_OBJECT, opened

NUM_SAMPLED = 64
"""So many objects tell whose file it is."""

_SQLITE = b"SQLite format 3\0"


@dataclass(frozen=True)
class SessionFile:
    """What is to be imported. ``passed_over`` counts what is not understood, by reason."""

    path: Path
    session: str | None = None
    """Which, where a file holds several."""
    passed_over: Counter[str] = field(default_factory=Counter[str], repr=False)

    @cached_property
    def sample(self) -> Sequence[Object]:
        """The first objects, or the whole document. InvalidRequest: it cannot be read, or is no JSON at all."""
        if self.is_folder or self.is_database:
            return ()
        if self._has_lines:
            return list(islice(_objects(self.path, Counter()), NUM_SAMPLED))
        return [self.document]

    @property
    def _has_lines(self) -> bool:
        """Whether the first line is an object of its own: a document that is written in lines may have some later."""
        with opened(self.path) as file:
            first = next((line for line in file if line.strip()), b"")
        return _object(first) is not None

    @cached_property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def is_database(self) -> bool:
        """An SQLite file."""
        if self.is_folder:
            return False
        with opened(self.path) as file:
            return file.read(len(_SQLITE)) == _SQLITE

    @property
    def document(self) -> Object:
        """The file as one object. InvalidRequest: it is none."""
        with opened(self.path) as file:
            data = file.read()
        try:
            value = from_json(data)
        except ValueError as error:
            raise InvalidRequest(f"{self.path} is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise InvalidRequest(f"{self.path} is no JSON object.")
        return cast("Object", value)

    def objects(self) -> Iterator[Object]:
        """Those of JSON lines, as they come; lines that are none, as a torn last one, are passed over."""
        return _objects(self.path, self.passed_over)

    def beside(self, path: Path) -> SessionFile:
        """Another file of the same session."""
        return SessionFile(path, self.session, self.passed_over)

    def pass_over(self, what: str) -> None:
        self.passed_over[what] += 1


def _objects(path: Path, passed_over: Counter[str]) -> Iterator[Object]:
    with opened(path) as file:
        for line in file:
            found = _object(line)
            if found is not None:
                yield found
            elif line.strip():
                passed_over[NO_OBJECT] += 1


def _object(line: bytes) -> Object | None:
    try:
        value = from_json(line)
    except ValueError:
        return None
    return cast("Object", value) if isinstance(value, dict) else None


def tables_of(path: Path) -> frozenset[str]:
    """Of an SQLite database; none where it cannot be read."""
    try:
        with closing(connected(path)) as connection:
            return frozenset(
                name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            )
    except sqlite3.Error:
        return frozenset()


def connected(path: Path) -> sqlite3.Connection:
    """The database, to read only."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
