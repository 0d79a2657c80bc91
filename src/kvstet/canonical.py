"""Tools with the keys of their schemas in one order, which does not depend on who wrote them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

_FIRST = ("type", "function", "name", "description", "parameters", "properties", "required", "items", "enum")
"""Keys in the order in which most tools are written; all others follow, sorted."""


def canonical(tool: Mapping[str, object]) -> dict[str, object]:
    """The tool with the keys of all its objects in an order that does not depend on the client."""
    return cast("dict[str, object]", _ordered(tool))


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
