"""Tools of MCP servers, which are started as processes and spoken to through the official SDK (`mcp`).

What a server says of its tools reaches the model and nobody else. Names are spelt anew under the server's own name, so
that none can pass for a tool of the agent. Each call is confirmed: a server's word that it does no harm is no proof.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import tempfile
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from kvstet.agent.shown import one_line
from kvstet.agent.tools.tool import Action, Plan, Schema, Tool, object_of
from kvstet.errors import ServerFailed, ToolFailed

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult
    from mcp.types import Tool as ServerTool

START_SECONDS = 30.0
CALL_SECONDS = 120.0
MAX_TOOLS = 100
_MAX_PAGES = 20
_MAX_NAME_CHARACTERS = 64
"""What OpenAI and Anthropic take."""
_MAX_DESCRIPTION_CHARACTERS = 2_000
_MAX_SCHEMA_CHARACTERS = 20_000

_SERVER_NAME = re.compile(r"[A-Za-z0-9-]{1,20}")


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started; no shell reads it."""

    name: str
    words: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False, default_factory=dict[str, str])
    """Beside HOME, PATH and the like, which the SDK hands on."""


def server_command(text: str, environment: Mapping[str, str] | None = None) -> ServerCommand:
    """Of ``name=command``. ServerFailed."""
    name, _, command = text.partition("=")
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ServerFailed(f"The command of {name!r} cannot be read: {error}.") from None
    if not _SERVER_NAME.fullmatch(name) or not words:
        raise ServerFailed(f"{text!r} is not NAME=COMMAND, where the name has letters, digits and -, at most 20.")
    return ServerCommand(name, words, environment or {})


class ToolServers:
    """Runs servers for the time of an ``async with`` block."""

    def __init__(self, commands: Iterable[ServerCommand], folder: Path) -> None:
        self._commands = tuple(commands)
        self._folder = folder
        self._clients: dict[str, Client] = {}
        self._stack = AsyncExitStack()
        names = [command.name for command in self._commands]
        if len(set(names)) < len(names):
            raise ServerFailed("Two tool servers have the same name.")

    def __repr__(self) -> str:
        return f"ToolServers({', '.join(command.name for command in self._commands)})"

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for command in self._commands:
                self._clients[command.name] = await stack.enter_async_context(_running(command, self._folder))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._clients.clear()
        await self._stack.aclose()

    async def tools(self) -> Sequence[Tool]:
        """What the servers offer now. One that does not answer offers nothing, and is not waited for again."""
        found: list[Tool] = []
        for name, client in list(self._clients.items()):
            tools = await _tools(name, client)
            if tools is None:
                del self._clients[name]
            found += tools or ()
        return found


@dataclass(frozen=True, slots=True)
class _ServerTool:
    """A tool of a server, as a tool of the agent."""

    client: Client
    own_name: str
    """The server's name for it."""
    schema: Schema
    only_reads = False

    async def plan(self, arguments: str) -> Plan:
        wanted = object_of(arguments)
        name = str(self.schema["function"]["name"])
        shown = json.dumps(wanted, indent=2, ensure_ascii=False)
        return Plan(lambda: self._call(wanted), Action(name, f"call {one_line(name)}", shown, repeats=True))

    async def _call(self, arguments: dict[str, Any]) -> str:
        import anyio
        from mcp import InputRequiredRoundsExceededError, MCPError

        try:
            result = await self.client.call_tool(self.own_name, arguments, read_timeout_seconds=CALL_SECONDS)
        except (MCPError, InputRequiredRoundsExceededError, ValueError, TimeoutError, OSError) as error:
            raise ToolFailed(f"The tool server failed: {error}") from None
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
            raise ToolFailed("The tool server is gone.") from None
        text = _text(result)
        if result.is_error:
            raise ToolFailed(text)
        return text


@asynccontextmanager
async def _running(command: ServerCommand, folder: Path) -> AsyncGenerator[Client]:
    try:
        from mcp import Client, MCPError, StdioServerParameters, stdio_client
    except ImportError:
        raise ServerFailed("Tool servers need the package mcp: pip install 'kvstet[mcp]'.") from None
    parameters = StdioServerParameters(
        command=command.words[0], args=list(command.words[1:]), env=dict(command.environment), cwd=folder
    )
    # What it says there is for whoever looks why it does not start, and would be in the way on the terminal.
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        async with AsyncExitStack() as stack:
            client = Client(stdio_client(parameters, errors), read_timeout_seconds=START_SECONDS, cache=None)
            try:
                await stack.enter_async_context(client)
            except (MCPError, OSError, ValueError, TimeoutError, ExceptionGroup) as error:
                errors.seek(0)
                last = one_line((errors.read().strip().splitlines() or [_reason(error)])[-1], 300)
                raise ServerFailed(f"The tool server {command.name} does not start: {last}") from None
            yield client


def _reason(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _reason(cast("BaseExceptionGroup[BaseException]", error).exceptions[0])
    return str(error)


async def _tools(server: str, client: Client) -> list[Tool] | None:
    """None: it has ended, hangs or speaks nonsense."""
    import anyio
    from mcp import MCPError

    found: list[ServerTool] = []
    cursor = None
    try:
        for _ in range(_MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) >= MAX_TOOLS:
                break
    except (MCPError, ValueError, TimeoutError, OSError):
        return None
    except (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream):
        return None
    return [_ServerTool(client, tool.name, _schema(server, tool)) for tool in found[:MAX_TOOLS]]


def _schema(server: str, tool: ServerTool) -> Schema:
    parameters = tool.input_schema
    if len(json.dumps(parameters)) > _MAX_SCHEMA_CHARACTERS:
        parameters = {"type": "object"}
    description = (tool.description or "")[:_MAX_DESCRIPTION_CHARACTERS]
    function = {"name": tool_name(server, tool.name), "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def tool_name(server: str, own_name: str) -> str:
    """What the model calls it by. Two names are never spelt alike, whatever characters a server uses."""
    prefix = f"mcp__{server}__"
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", own_name)
    if plain == own_name and len(prefix + plain) <= _MAX_NAME_CHARACTERS:
        return prefix + plain
    digest = hashlib.blake2b(own_name.encode(errors="replace"), digest_size=4).hexdigest()
    return f"{(prefix + plain)[: _MAX_NAME_CHARACTERS - len(digest) - 1]}_{digest}"


def _text(result: CallToolResult) -> str:
    parts = [_text_of_block(block) for block in result.content]
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(parts) or "(It returned nothing.)"


def _text_of_block(block: object) -> str:
    text = getattr(block, "text", None) or getattr(getattr(block, "resource", None), "text", None)
    if isinstance(text, str):
        return text
    kind, media_type = getattr(block, "type", "content"), getattr(block, "mime_type", None)
    where = getattr(block, "uri", None)
    return f"({kind}{f' of type {media_type}' if media_type else ''}{f' at {where}' if where else ''})"
