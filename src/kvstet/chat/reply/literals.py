"""Values written as in Python, or with bare keys between quotes of their own, made into JSON as they come."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvstet.chat.reply.json_text import decode, escaped, is_value, quoted
from kvstet.chat.reply.source import Reading, Source, emit_if

_CLOSING = {"{": "}", "[": "]", "(": ")"}
_JSON_BRACKETS = {"(": "[", "[": "[", "{": "{"}
_JSON_CLOSING = {"(": "]", "[": "]", "{": "}"}
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEX_SIZES = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class LiteralForm:
    """How values are written."""

    quotes: tuple[str, ...]
    """What stands on both sides of a string."""
    bare_keys: bool
    """Whether keys of objects stand without quotes, and strings have no escapes."""


PYTHON = LiteralForm(("'", '"'), bare_keys=False)


class LiteralReader:
    """Reads one value, and emits its JSON."""

    def __init__(self, source: Source, form: LiteralForm, emit: Callable[[str], None]) -> None:
        self._source = source
        self._form = form
        self._emit = emit

    def arguments(self) -> Reading[bool]:
        """``(key=value, ...)`` as an object. Whether it came to its end."""
        return (yield from self._members("(", self._name))

    def value(self) -> Reading[bool]:
        """Any value. Whether it came to its end; where it goes wrong, reading stops there."""
        # A stack of its own, since values can be nested deeper than Python calls.
        stack: list[str] = []
        while True:
            first = yield from self._source.skip_spaces() if stack else self._source.peek()
            ...
