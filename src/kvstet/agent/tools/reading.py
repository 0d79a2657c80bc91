"""Reading a file: its lines with their numbers, a range at a time."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.tool import Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.workspace import Workspace, is_binary
from kvstet.errors import ToolFailed

MAX_LINES = 2_000
_MAX_LINE_CHARACTERS = 2_000


class ReadArguments(Struct, forbid_unknown_fields=True):
    path: Annotated[str, Meta(description="Path of the file, from the workspace on.")]
    start_line: Annotated[int, Meta(ge=1, description="First line to read; lines are counted from 1.")] = 1
    num_lines: Annotated[int, Meta(ge=1, le=MAX_LINES, description="How many lines to read.")] = 400


class Read:
    """Reads text files."""

    only_reads = True
    schema: Schema = schema_of(
        "read",
        "Read a text file. Lines are given with their numbers and a tab before them, which are not part of the file.",
        ReadArguments,
    )

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, ReadArguments)
        return Plan(lambda: asyncio.to_thread(self._read, wanted))

    def _read(self, wanted: ReadArguments) -> str:
        found = self._workspace.read(wanted.path)
        if is_binary(found.data):
            raise ToolFailed(f"{wanted.path!r} is a binary file of {len(found.data):,} bytes.")
        lines = found.data.decode(errors="replace").split("\n")
        if lines[-1] == "":
            lines.pop()
        if not lines:
            return "(The file is empty.)"
        if wanted.start_line > len(lines):
            raise ToolFailed(f"{wanted.path!r} has {len(lines):,} lines only.")
        stop = min(wanted.start_line - 1 + wanted.num_lines, len(lines))
        numbered = [f"{number}\t{_short(lines[number - 1])}" for number in range(wanted.start_line, stop + 1)]
        if stop < len(lines):
            numbered.append(f"({len(lines) - stop:,} more lines; go on with start_line={stop + 1}.)")
        return "\n".join(numbered)


def _short(line: str) -> str:
    line = line.removesuffix("\r")
    if len(line) <= _MAX_LINE_CHARACTERS:
        return line
    return f"{line[:_MAX_LINE_CHARACTERS]} [... {len(line) - _MAX_LINE_CHARACTERS:,} characters more]"
