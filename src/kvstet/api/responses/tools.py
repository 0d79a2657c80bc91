"""Tools of the API as functions, which is all that chat templates know, and the way back from a call's name.

========================  ==========================================================================================
tool                      what the model sees
========================  ==========================================================================================
function                  the function
custom                    a function with one string, ``input``
namespace                 its tools, named ``NAMESPACE__TOOL``
tool_search (by client)   a function; tools that the client defers are not shown before a search has found them
all others                nothing: they would have to run on this server
========================  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from kvstet.api.responses.requests import Item, ToolChoice
from kvstet.chat.reply.grammar import CallDemand
from kvstet.errors import InvalidRequest

CallKind = Literal["function", "custom", "tool_search"]

SEARCH_NAME = "tool_search"
_SEPARATOR = "__"
_NAMED_TYPES = ("function", "custom")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}
_SEARCH_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What the tools should be able to do."}},
    "required": ["query"],
}


@dataclass(frozen=True, slots=True)
class ToolName:
    """What the client calls a tool."""

    name: str
    namespace: str | None = None
    kind: CallKind = "function"

    @property
    def for_model(self) -> str:
        if not self.namespace:
            return self.name
        separator = "" if self.namespace.endswith(_SEPARATOR) else _SEPARATOR
        return f"{self.namespace}{separator}{self.name}"


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of one request."""

    functions: tuple[dict[str, Any], ...] = ()
    """What the model sees, in the form of chat completions."""
    found: tuple[dict[str, Any], ...] = ()
    """What tool searches have found, of which the conversation tells."""
    names: Mapping[str, ToolName] = field(default_factory=dict[str, ToolName])
    """By the model's name for them, deferred ones too."""

    def named(self, name: str) -> ToolName:
        """Whose call it is when the model calls ``name``."""
        return self.names.get(name) or ToolName(name)

    def demand(self, choice: object, *, is_parallel: bool) -> CallDemand:
        """What a request's ``tool_choice`` asks for. InvalidRequest where it names a tool that is not there."""
        if not isinstance(choice, ToolChoice):
            return CallDemand(is_required=choice == "required", is_parallel=is_parallel)
        if choice.type in _NAMED_TYPES:
            name = self._known(choice.name, choice.namespace).for_model
            return CallDemand(is_required=True, is_parallel=False, names=(name,))
        allowed = [
            self._known(tool.get("name"), tool.get("namespace")).for_model
            for tool in choice.tools or []
            if tool.get("type") in _NAMED_TYPES
        ]
        is_required = choice.mode == "required" and bool(self.functions)
        return CallDemand(is_required=is_required, is_parallel=is_parallel, names=tuple(allowed) or None)

    def _known(self, name: object, namespace: object) -> ToolName:
        for tool in self.names.values():
            if tool.name == name and namespace in (None, tool.namespace):
                return tool
        raise InvalidRequest(f"tool_choice names the tool {name!r}, which is not in tools.", param="tool_choice")


def toolbox_of(tools: Iterable[object], found: Iterable[object] = ()) -> Toolbox:
    """Of the request's tools, and of those that tool searches have ``found``. InvalidRequest where one has no name."""
    entries = [entry for index, tool in enumerate(tools) for entry in _entries(tool, f"tools[{index}]")]
    searches = any(entry.name.kind == "tool_search" for entry in entries)
    later = [entry for tool in found for entry in _entries(tool, "input")]
    names = {entry.name.for_model: entry.name for entry in (*later, *entries)}
    return Toolbox(
        functions=tuple(entry.function for entry in entries if not (searches and entry.is_deferred)),
        found=tuple(entry.function for entry in later),
        names={**_short_names(names), **names},
    )


def functions_of(tools: Iterable[object], where: str) -> list[dict[str, Any]]:
    """What a tool search has found, as the model is to see it."""
    return [entry.function for tool in tools for entry in _entries(tool, where)]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: ToolName
    function: dict[str, Any]
    is_deferred: bool


def _entries(tool: object, where: str, namespace: str | None = None) -> Iterator[_Entry]:
    fields = _mapping(tool, where)
    match fields.get("type"):
        case "function":
            yield _entry(fields, where, namespace, "function", fields.get("parameters") or _NO_PARAMETERS)
        case "custom":
            yield _entry(fields, where, namespace, "custom", _input_parameters(fields))
        case "tool_search" if fields.get("execution") == "client":
            named = {"name": SEARCH_NAME, "description": "Search for more tools.", **fields}
            yield _entry(named, where, None, "tool_search", fields.get("parameters") or _SEARCH_PARAMETERS)
        case "namespace" if namespace is None:
            name, inner = _text(fields, "name", where), fields.get("tools")
            if not isinstance(inner, list):
                raise InvalidRequest(f"{where}.tools must be a list.", param=f"{where}.tools")
            about = fields.get("description")
            for index, part in enumerate(cast("list[object]", inner)):
                yield from _entries(_introduced(part, about if index == 0 else None), f"{where}.tools[{index}]", name)
        case str():
            return
        case _:
            raise InvalidRequest(f"{where}.type must be a string.", param=f"{where}.type")


def _introduced(tool: object, about: object) -> object:
    """The first tool of a namespace says what the namespace is about."""
    if not isinstance(tool, dict) or not isinstance(about, str) or not about:
        return cast("object", tool)
    fields = cast("dict[str, object]", tool)
    own = fields.get("description")
    return {**fields, "description": f"{about}\n\n{own}" if isinstance(own, str) and own else about}


def _entry(fields: Item, where: str, namespace: str | None, kind: CallKind, parameters: object) -> _Entry:
    name = ToolName(_text(fields, "name", where), namespace, kind)
    function: dict[str, Any] = {"name": name.for_model}
    description = fields.get("description")
    if isinstance(description, str) and description:
        function["description"] = description
    function["parameters"] = _mapping(parameters, f"{where}.parameters")
    return _Entry(name, {"type": "function", "function": function}, fields.get("defer_loading") is True)


def _input_parameters(fields: Item) -> dict[str, Any]:
    """One text, and how it is to be written, where the tool has a grammar for it."""
    text: dict[str, Any] = {"type": "string", "description": "The input of the tool, as plain text."}
    form = fields.get("format")
    if isinstance(form, dict):
        given = cast("Item", form)
        definition = given.get("definition")
        if isinstance(definition, str) and definition:
            text["description"] += f" It follows this {given.get('syntax', '')} grammar:\n{definition}"
    return {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}


def _short_names(names: Mapping[str, ToolName]) -> dict[str, ToolName]:
    """Models at times leave out a namespace; what is then still clear is understood."""
    shorts: dict[str, list[ToolName]] = {}
    for tool in names.values():
        shorts.setdefault(tool.name, []).append(tool)
    return {short: tools[0] for short, tools in shorts.items() if len(tools) == 1}


def _mapping(value: object, where: str) -> Item:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be an object.", param=where)
    return cast("Item", value)


def _text(fields: Item, key: str, where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"{where}.{key} must be a string.", param=f"{where}.{key}")
    return value
