"""Searching files by a regular expression."""

from __future__ import annotations

import sys
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.matching import MAX_MATCHES, question
from kvstet.agent.tools.process import run
from kvstet.agent.tools.tool import Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.workspace import Workspace
from kvstet.errors import ToolFailed

MAX_SECONDS = 10.0
_MAX_BYTES = 100_000
_MAX_PATTERN_CHARACTERS = 2_000
_WRONG = 2


class SearchArguments(Struct, forbid_unknown_fields=True):
    pattern: Annotated[
        str, Meta(max_length=_MAX_PATTERN_CHARACTERS, description="Regular expression, as Python reads it.")
    ]
    path: Annotated[str, Meta(description="Folder or file to search, from the workspace on.")] = "."
    glob: Annotated[str, Meta(max_length=200, description="Only files that match this, such as *.py; empty: all.")] = ""


class Search:
    """Finds lines."""

    only_reads = True
    schema: Schema = schema_of(
        "search",
        f"Search the files of a folder line by line, without those that git ignores; at most {MAX_MATCHES} matches.",
        SearchArguments,
    )

    def __init__(self, workspace: Workspace, *, max_seconds: float = MAX_SECONDS) -> None:
        self._workspace = workspace
        self._max_seconds = max_seconds

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, SearchArguments)
        return Plan(lambda: self._search(wanted))

    async def _search(self, wanted: SearchArguments) -> str:
        asked = question(self._workspace, wanted.path, wanted.pattern, wanted.glob)
        if "\0" in asked:
            raise ToolFailed("A pattern has no NUL in it.")
        # Isolated (-I), and in another folder: nothing is imported from the workspace.
        finished = await run(
            [sys.executable, "-I", "-m", "kvstet.agent.tools.matching", asked],
            folder="/",
            environment={"PATH": "/usr/bin:/bin"},
            max_seconds=self._max_seconds,
            max_bytes=_MAX_BYTES,
        )
        return _answer(finished.status, finished.text, self._max_seconds)


def _answer(status: int | None, text: str, max_seconds: float) -> str:
    match status:
        case None:
            return f"{text}(The search was ended after {max_seconds:.0f} seconds. Search less, or a simpler pattern.)"
        case 0:
            return text or "(Nothing was found.)"
        case 1:
            return f"{text}(There are more matches. Search for less.)"
        case _ if status == _WRONG:
            raise ToolFailed(text.strip())
        case _:
            raise ToolFailed("The search failed.")
