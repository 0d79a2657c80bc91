"""All importers, and how a file is told to be one client's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvstet.errors import InvalidRequest
from kvstet.traces.format import Line
from kvstet.traces.importing import claude_code, codex, mini_swe_agent, openai_logs, opencode, pi, swe_agent
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import Session, lines_of


@dataclass(frozen=True, slots=True)
class Importer:
    """Reads the files of one client."""

    name: str
    recognises: Callable[[SessionFile], bool] = field(repr=False)
    read: Callable[[SessionFile], Session] = field(repr=False)
    """InvalidRequest: the file cannot be read, or needs a session to be named."""


IMPORTERS = tuple(
    Importer(module.NAME, module.recognises, module.read)
    # Logs come last: they are recognised by fields that others have too.
    for module in (claude_code, codex, pi, opencode, mini_swe_agent, swe_agent, openai_logs)
)
KINDS = tuple(importer.name for importer in IMPORTERS)


class Imported(Iterator[Line]):
    """The lines of a trace, made while they are asked for."""

    def __init__(self, kind: str, lines: Iterator[Line], passed_over: Counter[str]) -> None:
        self.kind = kind
        self.passed_over = passed_over
        """What was not understood or is not in the file, by reason: complete when the lines have come to their end."""
        self._lines = lines

    def __repr__(self) -> str:
        return f"Imported({self.kind!r}, passed_over={dict(self.passed_over)})"

    def __next__(self) -> Line:
        return next(self._lines)


def import_file(path: Path, kind: str | None = None, session: str | None = None) -> Imported:
    """The trace of a client's own session file. ``kind`` is one of `KINDS`; None: what the file looks like.

    ``session`` says which, of a file that holds several. InvalidRequest: the file cannot be read, is of no kind that is
    known, or holds several sessions and none was named.
    """
    file = SessionFile(path, session)
    importer = _recognised(file) if kind is None else _named(kind)
    return Imported(importer.name, lines_of(importer.read(file), file.passed_over), file.passed_over)


def _recognised(file: SessionFile) -> Importer:
    for importer in IMPORTERS:
        if importer.recognises(file):
            return importer
    raise InvalidRequest(f"{file.path} is no session file of a client that is known. There are {', '.join(KINDS)}.")


def _named(kind: str) -> Importer:
    for importer in IMPORTERS:
        if importer.name == kind:
            return importer
    raise InvalidRequest(f"There is no importer {kind!r}; there are {', '.join(KINDS)}.", param="kind")
