"""The seam of a tool: a call is first planned, which changes nothing, and then carried out if it may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import msgspec

from kvstet.errors import ToolFailed

Schema = dict[str, Any]
"""A tool in OpenAI's form."""

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Action:
    """What the user is asked for."""

    tool: str
    title: str
    """In one line: run `make test`."""
    detail: str = field(repr=False, default="")
    """All of it: the command, the change as a diff."""
    repeats: bool = False
    """The user may allow it once for the whole session, for this tool."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a call would do."""

    run: Callable[[], Awaitable[str]] = field(repr=False)
    """Does it; its text is for the model. Raises ToolFailed."""
    action: Action | None = None
    """None: it only looks, and nobody is asked."""


class Tool(Protocol):
    """One thing that the model can call."""

    @property
    def schema(self) -> Schema: ...

    @property
    def only_reads(self) -> bool:
        """It can be had where nothing may be changed."""
        ...

    async def plan(self, arguments: str) -> Plan:
        """Of a call with these arguments, as the model wrote them. Raises ToolFailed."""
        ...


def name_of(schema: Mapping[str, Any]) -> str:
    return str(schema["function"]["name"])


def schema_of(name: str, description: str, arguments: type[msgspec.Struct]) -> Schema:
    """A tool whose arguments are the fields of a struct."""
    _, components = msgspec.json.schema_components([arguments])
    parameters = {key: value for key, value in components[arguments.__name__].items() if key != "title"}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def arguments_of(arguments: str, kind: type[T]) -> T:
    """What the model wrote, as the struct. ToolFailed says what is wrong with it."""
    try:
        # Not strict: models write numbers as strings.
        return msgspec.json.decode(arguments.strip() or "{}", type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ToolFailed(f"The arguments are not what the tool takes: {error}.") from None


def object_of(arguments: str) -> dict[str, Any]:
    """Arguments of a tool whose schema is another's, as a JSON object. ToolFailed."""
    try:
        found: object = msgspec.json.decode(arguments.strip() or "{}")
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ToolFailed(f"The arguments are not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ToolFailed("The arguments must be a JSON object.")
    return cast("dict[str, Any]", found)
