"""Rules for values that are no JSON: written as in Python, or with bare keys and quotes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import cast

Schema = Mapping[str, object]

PYTHON_RULES = r"""
py-string ::= "'" ([^'\\] | "\\" [^\n])* "'" | "\"" ([^"\\] | "\\" [^\n])* "\""
py-number ::= "-"? [0-9]{1,20} ("." [0-9]{1,20})? ([eE] [-+]? [0-9]{1,3})?
py-boolean ::= "True" | "False" | "true" | "false"
py-list ::= "[" ws (py-value (ws "," ws py-value)*)? ws "]"
py-dict ::= "{" ws (py-string ws ":" ws py-value (ws "," ws py-string ws ":" ws py-value)*)? ws "}"
py-value ::= py-string | py-number | py-boolean | "None" | "null" | py-list | py-dict
"""

KEYED_RULES = r"""
keyed-number ::= "-"? [0-9]{1,20} ("." [0-9]{1,20})? ([eE] [-+]? [0-9]{1,3})?
keyed-boolean ::= "true" | "false"
keyed-list ::= "[" ws (keyed-value (ws "," ws keyed-value)*)? ws "]"
keyed-dict ::= "{" ws (keyed-key ":" ws keyed-value (ws "," ws keyed-key ":" ws keyed-value)*)? ws "}"
keyed-key ::= [^:,{}\[\]\n\t ]{1,100}
keyed-value ::= keyed-string | keyed-number | keyed-boolean | "null" | keyed-list | keyed-dict
"""
"""All but ``keyed-string``, which depends on the quotes."""

_KINDS = {
    "string": "string",
    "integer": "number",
    "number": "number",
    "boolean": "boolean",
    "array": "list",
    "object": "dict",
}


def python_arguments(schema: Schema) -> str:
    """Body of a rule for the arguments of one tool: required ones in their order, then the others, if at all."""
    pairs = _pairs(schema, "py", "=", repr)
    required = [key for key in cast("Sequence[str]", schema.get("required") or ()) if key in pairs]
    optional = [pair for key, pair in pairs.items() if key not in required]
    if not required:
        return _in_any_order(optional)
    first = ' ws "," ws '.join(pairs[key] for key in required)
    return first + "".join(f' (ws "," ws {pair})?' for pair in optional)


def keyed_arguments(schema: Schema, quote: str) -> str:
    """The same, with bare keys. In any order: templates that write like this sort them."""
    return _in_any_order(list(_pairs(schema, "keyed", ":", lambda text: quote + text + quote).values()))


def _in_any_order(pairs: Sequence[str]) -> str:
    if not pairs:
        return '""'
    one = f"({' | '.join(pairs)})"
    return f'({one} (ws "," ws {one})*)?'


def _pairs(schema: Schema, prefix: str, assign: str, quoted: Callable[[str], str]) -> dict[str, str]:
    properties = cast("Mapping[str, Schema]", schema.get("properties") or {})
    return {key: f"{_text(key + assign)} {_value(value, prefix, quoted)}" for key, value in properties.items()}


def _value(schema: Schema, prefix: str, quoted: Callable[[str], str]) -> str:
    choices = cast("Sequence[object]", schema.get("enum") or ())
    if choices and all(isinstance(choice, str) for choice in choices):
        return f"({' | '.join(_text(quoted(str(choice))) for choice in choices)})"
    kind = schema.get("type")
    return f"{prefix}-{_KINDS.get(kind, 'value') if isinstance(kind, str) else 'value'}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
