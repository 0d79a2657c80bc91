from __future__ import annotations

import copy
from typing import Any

import pytest

from kvstet.errors import GrammarError
from kvstet.llama.grammar import check_grammar
from kvstet.llama.schema import MAX_COUNT, MAX_DEPTH, schema_grammar

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
    },
    "required": ["city"],
    "additionalProperties": False,
}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_a_schema_becomes_rules() -> None:
    rules = dict(line.split(" ::= ", 1) for line in schema_grammar(WEATHER).splitlines())
    assert rules["root"].startswith('"{" space city-kv')
    assert rules["unit"] == r'"\"C\"" | "\"F\""'


def test_the_schema_is_left_as_it_is() -> None:
    schema = {"$ref": "#/$defs/s", "$defs": {"s": {"type": "string", "maxLength": 10_000}}}
    before = copy.deepcopy(schema)
    schema_grammar(schema)
    assert schema == before


def test_any_object_is_an_object() -> None:
    grammar = schema_grammar({"type": "object"})
    check_grammar(grammar)
    assert "root ::= object" in grammar


def test_texts_in_a_schema_come_out_as_json() -> None:
    grammar = schema_grammar({"enum": ["😀", 'a\nb"c\\']})
    assert r'root ::= "\"😀\"" | "\"a\\nb\\\"c\\\\\""' in grammar


def test_json_strings_have_no_raw_control_characters() -> None:
    assert r'char ::= [^"\\\x00-\x1F\x7F] |' in schema_grammar({"type": "string"})


def test_a_recursive_schema_is_fine() -> None:
    tree = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}}
    schema_grammar({"$ref": "#/$defs/tree", "$defs": {"tree": tree}})


def test_a_limit_that_is_too_large_to_enforce_is_left_out() -> None:
    unlimited = schema_grammar({"type": "string", "minLength": 0})
    assert "(char)*" in unlimited
    assert schema_grammar({"type": "string", "minLength": 0, "maxLength": MAX_COUNT + 1}) == unlimited
    assert schema_grammar({"type": "string", "minLength": 0, "maxLength": MAX_COUNT}) != unlimited


@pytest.mark.parametrize("reference", ["https://example.com/schema.json", "file:///etc/passwd", "other.json#/a"])
def test_a_reference_to_another_document_is_refused(reference: str) -> None:
    with pytest.raises(GrammarError, match="another document"):
        schema_grammar({"type": "object", "properties": {"a": {"$ref": reference}}})


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "frob"}, "Unrecognized schema"),
        ({"$ref": "#/$defs/nothing"}, "not in"),
        ({"$ref": 5}, "no attribute"),
        ({"anyOf": True}, "not iterable"),
        ({"type": "string", "pattern": "[a-z]+"}, "must start with"),
        ({"type": "string", "pattern": r"^\d+$"}, "unknown escape"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "never ends"),
        ({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2000)}}, "too many"),
        (nested(MAX_DEPTH), "too large"),
        ({"enum": list(range(30_000))}, "too large"),
        ({"enum": [f"word{i}" for i in range(15_000)]}, "too many ways"),
        ({"enum": [{1, 2}]}, "not JSON serializable"),
    ],
)
def test_a_schema_that_cannot_be_used_says_why(schema: dict[str, Any], problem: str) -> None:
    with pytest.raises(GrammarError, match=problem) as caught:
        schema_grammar(schema)
    assert caught.value.param == "schema"


def test_a_deep_schema_within_the_limit_is_fine() -> None:
    schema_grammar(nested(MAX_DEPTH - 10))
