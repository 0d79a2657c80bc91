"""Listing a folder."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.ignore import Glob
from kvstet.agent.tools.tool import Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.walk import FoundEntry, walk
from kvstet.agent.tools.workspace import Workspace

MAX_ENTRIES = 500
MAX_SECONDS = 10.0


class ListArguments(Struct, forbid_unknown_fields=True):
    path: Annotated[str, Meta(description="Folder, from the workspace on.")] = "."
    pattern: Annotated[
        str, Meta(description="Only files that match this, such as *.py or src/**/test_*.py; empty: all.")
    ] = ""
    depth: Annotated[int, Meta(ge=1, le=40, description="How many levels of folders to go into.")] = 3


class List:
    """Names files and folders."""

    only_reads = True
    schema: Schema = schema_of(
        "list",
        "List files and folders, without those that git ignores. Folders end in /, links in @.",
        ListArguments,
    )

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, ListArguments)
        return Plan(lambda: asyncio.to_thread(self._list, wanted))

    def _list(self, wanted: ListArguments) -> str:
        glob = Glob.of(wanted.pattern) if wanted.pattern else None
        deadline = time.monotonic() + MAX_SECONDS
        lines: list[str] = []
        for entry in walk(self._workspace, self._workspace.parts(wanted.path), max_depth=wanted.depth):
            if time.monotonic() > deadline or len(lines) >= MAX_ENTRIES:
                lines.append("(There is more. List a folder below this one, or give a pattern.)")
                break
            if glob is None or (not entry.is_folder and glob.fits(entry.path)):
                lines.append(_line(entry))
        return "\n".join(lines) or "(Nothing is there.)"


def _line(entry: FoundEntry) -> str:
    return entry.path + ("/" if entry.is_folder else "@" if entry.is_link else "")
