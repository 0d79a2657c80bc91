"""Writing a whole file."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.change import Change
from kvstet.agent.tools.tool import Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.workspace import Workspace


class WriteArguments(Struct, forbid_unknown_fields=True):
    path: Annotated[str, Meta(description="Path of the file, from the workspace on.")]
    content: Annotated[str, Meta(description="All that is to be in it.")]


class Write:
    """Puts a file there."""

    only_reads = False
    schema: Schema = schema_of(
        "write",
        "Write a whole file, new or in place of the old one; folders are made as needed. To change a part, use edit.",
        WriteArguments,
    )

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, WriteArguments)
        old = await asyncio.to_thread(self._workspace.read_if_there, wanted.path)
        return Change(self._workspace, wanted.path, old, wanted.content).plan("write")
