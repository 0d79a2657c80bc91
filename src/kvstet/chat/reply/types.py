"""JSON types of arguments that the model wrote without saying their type."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import cast

from kvstet.chat.reply.json_text import decode, is_value, quoted
from kvstet.untrusted import mapping_of

_ANY = frozenset({"string", "number", "boolean", "null", "array", "object"})
_TEXT = frozenset({"string"})
_MAX_DEPTH = 8
_PYTHON_CONSTANTS = {"True": "true", "False": "false", "None": "null"}


class ArgumentTypes:
    """What the schemas of the tools say about their parameters."""

    def __init__(self, tools: Sequence[Mapping[str, object]]) -> None:
        """``tools`` in OpenAI's form; whatever is malformed says nothing."""
        self._types = {name: _parameter_types(function) for name, function in _functions(tools)}

    def __repr__(self) -> str:
        return f"ArgumentTypes({', '.join(self._types)})"

    def __contains__(self, tool: str) -> bool:
        return tool in self._types

    def __len__(self) -> int:
        return len(self._types)

    def is_text(self, tool: str, key: str) -> bool:
        """Whether the argument can be nothing but a string."""
        return self._types.get(tool, {}).get(key) == _TEXT

    def json_of(self, tool: str, key: str, text: str) -> str:
        """The argument as JSON. Where the schema leaves it open, what reads as another value than a string is one."""
        types = self._types.get(tool, {}).get(key, _ANY)
        return json_of(text, types) or quoted(text)


def json_of(text: str, types: frozenset[str] = _ANY) -> str | None:
    """JSON of a value of one of these types, written as JSON or as Python prints it; None where it is none."""
    stripped = text.strip()
    value = decode(stripped)
    if is_value(value):
        return stripped if _type_of(value) in types else None
    if stripped in _PYTHON_CONSTANTS:
        constant = _PYTHON_CONSTANTS[stripped]
        return constant if _type_of(decode(constant)) in types else None
    return _json_of_python(stripped, types) if stripped[:1] in ("{", "[", "(") else None


def _json_of_python(text: str, types: frozenset[str]) -> str | None:
    try:
        value = cast("object", ast.literal_eval(text))
        return json.dumps(value, ensure_ascii=False, allow_nan=False) if _type_of(value) in types else None
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"  # a quoted string: the quotes would be lost, so it is never taken for JSON
    if isinstance(value, dict):
        return "object"
    return "null" if value is None else "array"


def _functions(tools: Sequence[Mapping[str, object]]) -> list[tuple[str, Mapping[str, object]]]:
    functions = [mapping_of(tool.get("function")) or tool for tool in tools]
    return [(name, function) for function in functions if isinstance(name := function.get("name"), str)]


def _parameter_types(function: Mapping[str, object]) -> dict[str, frozenset[str]]:
    schema = mapping_of(function.get("parameters"))
    definitions = {**mapping_of(schema.get("definitions")), **mapping_of(schema.get("$defs"))}
    return {key: _types(value, definitions, 0) for key, value in mapping_of(schema.get("properties")).items()}


def _types(schema: object, definitions: Mapping[str, object], depth: int) -> frozenset[str]:
    """Types that the schema allows; any of them where it says nothing."""
    fields = mapping_of(schema)
    reference = fields.get("$ref")
    if depth > _MAX_DEPTH:
        return _ANY
    if isinstance(reference, str):
        return _types(definitions.get(reference.rpartition("/")[2]), definitions, depth + 1)
    named = fields.get("type")
    names = [named] if isinstance(named, str) else cast("list[object]", named) if isinstance(named, list) else []
    if names:
        return frozenset("number" if name == "integer" else str(name) for name in names)
    values = [fields["const"]] if "const" in fields else fields.get("enum")
    if isinstance(values, list):
        found = (_type_of(value) for value in cast("list[object]", values))
        return frozenset("string" if name == "text" else name for name in found)
    branches = next((fields[key] for key in ("anyOf", "oneOf") if isinstance(fields.get(key), list)), None)
    if branches is not None:
        options = [_types(branch, definitions, depth + 1) for branch in cast("list[object]", branches)]
        return frozenset[str]().union(*options)
    return _ANY
