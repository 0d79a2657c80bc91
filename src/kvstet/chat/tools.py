"""Tools in one order of keys: two clients, or one client twice, that mean the same tool get the same prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from kvstet.errors import InvalidRequest

Defaults = Mapping[str, Mapping[str, object]]
"""Tool -> parameter -> default."""

_FIRST = ("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum")
"""Keys in the order in which most tools are written; all others follow, sorted."""


def canonical(tool: Mapping[str, object]) -> dict[str, object]:
    """The tool with the keys of all its objects in an order that does not depend on the client."""
    return cast("dict[str, object]", _ordered(tool))


def checked(tool: Mapping[str, object], where: str) -> Mapping[str, object]:
    """The tool, if it is one. InvalidRequest names the field that is missing or of another type."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidRequest(f"{where}.function must be an object.", param=f"{where}.function")
    fields = cast("Mapping[str, object]", function)
    if not isinstance(fields.get("name"), str):
        raise InvalidRequest(f"{where}.function.name must be a string.", param=f"{where}.function.name")
    if not isinstance(fields.get("parameters"), Mapping | None):
        raise InvalidRequest(f"{where}.function.parameters must be an object.", param=f"{where}.function.parameters")
    return tool


def defaults_of(tools: Sequence[Mapping[str, object]]) -> Defaults:
    """What the tools' parameters are where a call says nothing of them."""
    return {str(name): defaults for name, defaults in map(_defaults, tools) if defaults}


def _defaults(tool: Mapping[str, object]) -> tuple[object, dict[str, object]]:
    function = cast("Mapping[str, object]", tool["function"])
    properties = _mapping(_mapping(function.get("parameters")).get("properties"))
    schemas = {name: _mapping(schema) for name, schema in properties.items()}
    return function["name"], {name: schema["default"] for name, schema in schemas.items() if "default" in schema}


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


def _ordered(value: object) -> object:
    if isinstance(value, Mapping):
        mapping = cast("Mapping[str, object]", value)
        keys = sorted(mapping, key=_place)
        return {
            key: _properties(mapping) if _holds_properties(mapping, key) else _ordered(mapping[key]) for key in keys
        }
    if isinstance(value, list | tuple):
        return [_ordered(item) for item in cast("Sequence[object]", value)]
    return value


def _place(key: str) -> tuple[int, str]:
    return (_FIRST.index(key), "") if key in _FIRST else (len(_FIRST), key)


def _holds_properties(schema: Mapping[str, object], key: str) -> bool:
    return key == "properties" and isinstance(schema[key], Mapping) and isinstance(schema.get("type", "object"), str)


def _properties(schema: Mapping[str, object]) -> dict[str, object]:
    """Required ones first, in the order in which the schema requires them: it is the only one that is a list."""
    properties = cast("Mapping[str, object]", schema["properties"])
    place = _places(schema.get("required"))
    return {name: _ordered(properties[name]) for name in sorted(properties, key=place)}


def _places(required: object) -> Callable[[str], tuple[int, str]]:
    names = [name for name in cast("Sequence[object]", required) if isinstance(name, str)] if _is_list(required) else []
    places = {name: place for place, name in enumerate(names)}
    return lambda name: (places.get(name, len(places)), name)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)
