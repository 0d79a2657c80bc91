"""The words that redaction leaves (`kvstet.edits.vocabulary`) are those of the patterns."""

from __future__ import annotations

import re

import pytest

from kvstet.edits import relation, volatile
from kvstet.edits.vocabulary import VOCABULARY

PATTERNS = {
    name: value.pattern
    for module in (volatile, relation)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
} | {f"purpose {name}": pattern.pattern for name, pattern in relation._PURPOSES}
TABLES = {
    "numbered": " ".join(word for _, words in volatile._NUMBERED for word in words),
    "named": " ".join(word for word, _ in volatile._NAMED),
    "blocks": " ".join(f"{opening} {closing}" for opening, closing, _ in volatile._BLOCKS),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_every_word_of_a_pattern_is_in_it(name: str):
    pattern = re.sub(r"\(\?P<\w+>|\(\?[a-z]+\)|\\[a-zA-Z]|\[[^\]]*\]|\{\d+(,\d*)?\}", " ", PATTERNS[name])
    pattern = re.sub(r"\((?:\?:)?([a-z|]*)\)\??|\(\?[:<!=]+", lambda match: " " + (match[1] or "") + " ", pattern)
    words = {word.casefold() for word in re.findall(r"[A-Za-z]{4,}", pattern)}
    assert not {word for word in words if not is_known(word)}


@pytest.mark.parametrize("name", TABLES)
def test_every_word_of_a_table_is_in_it(name: str):
    assert not {word for word in re.findall(r"[a-z]{2,}", TABLES[name]) if not is_known(word)}


def is_known(word: str) -> bool:
    """Patterns may have a word in two parts."""
    return any(known.startswith(word) or known.endswith(word) for known in VOCABULARY)
