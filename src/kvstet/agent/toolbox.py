"""The tools that can be called now, and the one place where calls are carried out: none goes past the confirmation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from kvstet.agent.confirmation import Confirmation
from kvstet.agent.tools.editing import Edit
from kvstet.agent.tools.listing import List
from kvstet.agent.tools.reading import Read
from kvstet.agent.tools.searching import Search
from kvstet.agent.tools.shell import Bash
from kvstet.agent.tools.tool import Schema, Tool, name_of
from kvstet.agent.tools.workspace import Workspace
from kvstet.agent.tools.writing import Write
from kvstet.errors import ToolFailed

DECLINED = "The user declined this call. It was not carried out."


class ToolSource(Protocol):
    """Where tools come from that may come and go: `kvstet.agent.tool_servers.ToolServers`."""

    async def tools(self) -> Sequence[Tool]:
        """Those that can be called now. Never raises: a server that is gone has none."""
        ...


class Toolbox:
    """Tools by name. The ones of the workspace cannot be replaced by those of a source."""

    def __init__(self, tools: Iterable[Tool], confirmation: Confirmation, *, source: ToolSource | None = None) -> None:
        self._own = {name_of(tool.schema): tool for tool in tools}
        self._confirmation = confirmation
        self._source = source
        self._tools: Mapping[str, Tool] = self._own

    def __repr__(self) -> str:
        return f"Toolbox({', '.join(self._tools)})"

    @property
    def schemas(self) -> list[Schema]:
        return [tool.schema for tool in self._tools.values()]

    async def refresh(self) -> list[Schema]:
        """Ask the source again; the schemas of all tools there are now."""
        if self._source is not None:
            others = {name_of(tool.schema): tool for tool in await self._source.tools()}
            self._tools = {**others, **self._own}
        return self.schemas

    async def call(self, name: str, arguments: str) -> str:
        """Carry a call out, if it may be; what the model is told of it, errors as well."""
        # File names need not be text; what goes to a model has to be.
        return (await self._called(name, arguments)).encode(errors="replace").decode()

    async def _called(self, name: str, arguments: str) -> str:
        try:
            plan = await self._tool(name).plan(arguments)
            if plan.action is not None and not await self._confirmation.allows(plan.action):
                return DECLINED
            return await plan.run()
        except ToolFailed as error:
            return f"Error: {error}"

    def _tool(self, name: str) -> Tool:
        tool = self._tools.get(name)
        if tool is None:
            raise ToolFailed(f"There is no tool {name[:100]!r}; there are {', '.join(sorted(self._tools))}.")
        return tool


def workspace_tools(workspace: Workspace, environment: Mapping[str, str]) -> list[Tool]:
    """All there are for a folder; commands get the ``environment``."""
    return [
        Read(workspace),
        List(workspace),
        Search(workspace),
        Edit(workspace),
        Write(workspace),
        Bash(workspace, environment),
    ]


def reading(tools: Iterable[Tool]) -> list[Tool]:
    """Only those that change nothing: ``--read-only``."""
    return [tool for tool in tools if tool.only_reads]
