"""JSON Schema to GBNF, by the converter that comes with the bindings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from llama_cpp import llama_grammar

from kvstet.errors import GrammarError
from kvstet.llama.grammar import check_grammar

MAX_DEPTH = 128
"""Objects and arrays within one another."""

MAX_VALUES = 20_000
"""Keys, numbers, strings and so on in the whole schema."""

MAX_COUNT = 500
"""Largest length, or number of items, that is enforced; the converter nests a pair of parentheses for each."""

PARAM = "schema"

CONVERTER_ERRORS = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What the converter raises for a schema that it cannot use."""

JSON_CHARACTER = r'[^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F] [0-9a-fA-F])'
"""One character of a JSON string. The converter's own rule lets control characters in, which JSON does not."""

_LITERAL_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\r": "\\r", "\n": "\\n"})


def schema_grammar(schema: dict[str, Any]) -> str:
    """GBNF of the JSON texts that the schema describes.

    Raises GrammarError for a schema that is absurdly large, refers to other documents, or says something that the
    converter cannot express. What it does not know (``minimum``, say) it leaves out, and so it does with a
    ``maxLength`` or ``maxItems`` beyond `MAX_COUNT`.
    """
    grammar = schema_rules({"root": schema})
    try:
        check_grammar(grammar)
    except GrammarError as error:
        raise GrammarError(f"The JSON schema makes a grammar that cannot be used. {error}", param=PARAM) from error
    return grammar


def schema_rules(schemas: Mapping[str, dict[str, Any]]) -> str:
    """GBNF rules for several schemas, each under the name of its own: letters, digits and dashes.

    Raises GrammarError as `schema_grammar` does. The rules are for a larger grammar, which is to be checked.
    """
    for schema in schemas.values():
        _check_size(schema)
        _check_references(schema)
    try:
        return _convert(schemas)
    except CONVERTER_ERRORS as error:
        raise GrammarError(f"The JSON schema cannot be turned into a grammar: {_reason(error)}", param=PARAM) from error


class _Converter(llama_grammar.SchemaConverter):
    """The bindings' converter, with JSON texts that come out as they went in.

    Its own `_format_literal` passes the backslashes of a JSON text to GBNF unescaped, so that the grammar would want
    a line break for ``\\n`` and two surrogates for a character beyond U+FFFF.
    """

    def __init__(self) -> None:
        prop_order: dict[str, int] = {}
        super().__init__(prop_order=prop_order, allow_fetch=False, dotall=False, raw_pattern=False)

    def _format_literal(self, literal: str) -> str:
        text = json.dumps(json.loads(literal), ensure_ascii=False)
        return f'"{text.translate(_LITERAL_ESCAPES)}"'

    def _add_rule(self, name: str, rule: str) -> str:
        base: Any = super()
        is_character = rule == llama_grammar.PRIMITIVE_RULES["char"].content
        return base._add_rule(name, JSON_CHARACTER if is_character else rule)


def _convert(schemas: Mapping[str, dict[str, Any]]) -> str:
    # As the bindings' `json_schema_to_gbnf`, which takes no converter. It writes into the schema: give it a copy.
    converter: Any = _Converter()
    for name, schema in schemas.items():
        own: dict[str, Any] = json.loads(json.dumps(schema))
        for mapping in _mappings(own):
            for key in ("maxLength", "maxItems", "minLength", "minItems"):
                limit = mapping.get(key)
                if isinstance(limit, int) and limit > MAX_COUNT:
                    del mapping[key]
        own_name = "" if name == "root" else name
        rule = converter.visit(converter.resolve_refs(own, own_name), own_name)
        if own_name and rule != own_name:
            converter._add_rule(own_name, rule)
    return converter.format_grammar()


def _check_size(schema: dict[str, Any]) -> None:
    """GrammarError for a schema deeper than Python can recurse, or larger than anyone means."""
    level: list[object] = [schema]
    depth = num_values = 0
    while level:
        depth += 1
        num_values += len(level)
        if depth > MAX_DEPTH or num_values > MAX_VALUES:
            limits = f"{MAX_DEPTH} levels and {MAX_VALUES} values"
            raise GrammarError(f"The JSON schema is too large: {limits} are allowed.", param=PARAM)
        level = [child for value in level for child in _children(value)]


def _check_references(schema: dict[str, Any]) -> None:
    for mapping in _mappings(schema):
        reference = mapping.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise GrammarError(f"The JSON schema refers to another document, {reference!r:.100}.", param=PARAM)


def _mappings(value: object) -> Iterator[dict[str, object]]:
    if isinstance(value, dict):
        yield cast("dict[str, object]", value)
    for child in _children(cast("object", value)):
        yield from _mappings(child)


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).values())
    return cast("list[object]", value) if isinstance(value, list) else []


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it has too many levels or too many optional properties in one object"
    text = f"{error} is missing or not known" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
