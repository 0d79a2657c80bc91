"""Tools of a request: whether they are tools, and what a call that says little of its arguments means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from kvstet.errors import InvalidRequest
from kvstet.untrusted import mapping_of

Defaults = Mapping[str, Mapping[str, object]]
"""Tool -> parameter -> default."""


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
    properties = mapping_of(mapping_of(function.get("parameters")).get("properties"))
    schemas = {name: mapping_of(schema) for name, schema in properties.items()}
    return function["name"], {name: schema["default"] for name, schema in schemas.items() if "default" in schema}
