"""Tools of all kinds as functions, and the way back from a call.

=====================  ================================================================================
tool                   what it is here
=====================  ================================================================================
function               itself
custom (OpenAI)        a function with one string, ``input``; ``origin`` has its definition
in a namespace         a function named ``NAMESPACE__TOOL``; ``origin`` has both names
run by the vendor      nothing: no other vendor has it
=====================  ================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from kvstet.dialects.names import wire_name
from kvstet.dialects.request import Message, Tool
from kvstet.dialects.values import Object, from_json, obj, objects, optional_text, present, text, to_json
from kvstet.errors import InvalidRequest

CallKind = Literal["function", "custom"]

NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}}
_SEPARATOR = "__"


@dataclass(frozen=True, slots=True)
class ToolName:
    """What a client of the Responses API calls a tool."""

    name: str
    namespace: str | None = None
    kind: CallKind = "function"

    @property
    def neutral(self) -> str:
        if not self.namespace:
            return self.name
        separator = "" if self.namespace.endswith(_SEPARATOR) else _SEPARATOR
        return f"{self.namespace}{separator}{self.name}"


def function_tool(fields: Object, where: str, *, parameters_key: str = "parameters") -> Tool:
    """Of a definition with name, description and a JSON schema. InvalidRequest where it has no name."""
    return {"type": "function", "function": _function(fields, _name(fields, where), fields.get(parameters_key))}


def namespaced_tool(fields: Object, namespace: Object, where: str) -> Tool:
    """Of a tool within a Responses namespace."""
    name = ToolName(_name(fields, where), text(namespace.get("name")))
    origin = present(
        {"name": name.name, "namespace": name.namespace, "about": optional_text(namespace.get("description"))}
    )
    function = _function(fields, name.neutral, fields.get("parameters"))
    return {"type": "function", "function": function, "origin": origin}


def custom_tool(fields: Object, where: str) -> Tool:
    """Of a tool that takes plain text: ``{"name", "description"?, "format"?}``."""
    name = _name(fields, where)
    form = obj(fields.get("format"))
    # Chat has the grammar in an object of its own, Responses beside the type.
    form = {"type": "grammar", **obj(form.get("grammar"))} if form.get("grammar") else dict(form)
    about = "The input of the tool, as plain text."
    if definition := text(form.get("definition")):
        about += f" It follows this {text(form.get('syntax'))} grammar:\n{definition}"
    schema = {
        "type": "object",
        "properties": {"input": {"type": "string", "description": about}},
        "required": ["input"],
        "additionalProperties": False,
    }
    origin = {
        "kind": "custom",
        **present({"name": name, "description": fields.get("description"), "format": form or None}),
    }
    return {"type": "function", "function": _function(fields, name, schema), "origin": origin}


def is_custom(tool: Tool) -> bool:
    return obj(tool.get("origin")).get("kind") == "custom"


def name_of(tool: Tool) -> str:
    return str(tool["function"]["name"])


def custom_names(tools: Iterable[Tool]) -> frozenset[str]:
    return frozenset(name_of(tool) for tool in tools if is_custom(tool))


def tool_names(tools: Sequence[Tool]) -> Mapping[str, ToolName]:
    """What the model may call a tool -> what the client calls it. Models at times leave out a namespace."""
    names = {wire_name(name_of(tool)): _tool_name(tool) for tool in tools}
    shorts: dict[str, list[ToolName]] = {}
    for name in names.values():
        shorts.setdefault(name.name, []).append(name)
    clear = {short: found[0] for short, found in shorts.items() if len(found) == 1}
    return {**clear, **names}


def arguments_text(arguments: object) -> str:
    """Of a call, as JSON text: some clients and servers send the object itself."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else to_json(arguments)


def arguments_of_input(said: str) -> str:
    """What a custom tool was called with, as arguments of the function that stands for it."""
    return to_json({"input": said})


def input_of_arguments(arguments: str) -> str:
    """The way back; what is not such an object is taken as it is."""
    try:
        value = from_json(arguments)
    except ValueError:
        return arguments
    if isinstance(value, str):
        return value
    fields = obj(value)
    given = fields.get("input", next(iter(fields.values()), None) if len(fields) == 1 else None)
    return given if isinstance(given, str) else arguments


def callable_tools(tools: Iterable[Tool], messages: Iterable[Message]) -> list[Tool]:
    """For an API without deferred tools: those that are there from the start, then the others as they were referenced.

    So a tool that is found later is added at the end, and is not there before.
    """
    known = {name_of(tool): tool for tool in tools}
    found = (
        text(part.get("tool_name"))
        for message in messages
        for part in objects(message.get("content"))
        if part.get("type") == "tool_reference"
    )
    later = [known[name] for name in dict.fromkeys(found) if name in known and known[name].get("defer_loading")]
    return [*(tool for tool in known.values() if not tool.get("defer_loading")), *later]


def _tool_name(tool: Tool) -> ToolName:
    origin = obj(tool.get("origin"))
    kind: CallKind = "custom" if is_custom(tool) else "function"
    return ToolName(text(origin.get("name")) or name_of(tool), optional_text(origin.get("namespace")), kind)


def _function(fields: Object, name: str, parameters: object) -> dict[str, Any]:
    schema = cast("dict[str, Any]", parameters) if isinstance(parameters, dict) else dict(NO_PARAMETERS)
    return {
        "name": name,
        **present({"description": optional_text(fields.get("description"))}),
        "parameters": schema,
        **({"strict": True} if fields.get("strict") is True else {}),
    }


def _name(fields: Object, where: str) -> str:
    name = optional_text(fields.get("name"))
    if name is None:
        raise InvalidRequest(f"{where} has no name.", param=f"{where}.name")
    return name
