"""The one string of a custom tool's input, read out of the JSON object that the model writes it in."""

from __future__ import annotations

import json
import re
from typing import cast

_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_SPECIAL = re.compile(r'["\\]')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_SHORT = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_PAIR_CHARS = 12
"""Of two halves of a surrogate pair, each a backslash, a u and four digits."""


class InputReader:
    """Gives the text of ``{"input": "..."}`` as far as it is certain.

    Never raises. What does not begin like that object is held back, and understood as well as can be once it is whole.
    """

    def __init__(self) -> None:
        self._held = ""
        """What was not understood yet."""
        self._is_inside = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"InputReader({'over' if self._is_over else 'inside' if self._is_inside else 'before'}, {self._held!r})"

    def feed(self, json_text: str) -> str:
        if self._is_over:
            return ""
        self._held += json_text
        if not self._is_inside:
            opening = _OPENING.match(self._held)
            if opening is None:
                return ""
            self._is_inside = True
            self._held = self._held[opening.end() :]
        return self._unescape(is_last=False)

    def flush(self) -> str:
        """No more will come."""
        if self._is_over:
            return ""
        text = self._unescape(is_last=True) if self._is_inside else _understood(self._held)
        self._is_over, self._held = True, ""
        return text

    def _unescape(self, *, is_last: bool) -> str:
        text, place = self._held, 0
        certain: list[str] = []
        while (special := _SPECIAL.search(text, place)) is not None:
            certain.append(text[place : special.start()])
            place = special.start()
            if special[0] == '"':
                self._is_over, self._held = True, ""
                return "".join(certain)
            character, stop = _escape(text, place, is_last=is_last)
            if stop == place:
                self._held = text[place:]
                return "".join(certain)
            certain.append(character)
            place = stop
        self._held = ""
        return "".join((*certain, text[place:]))


def _escape(text: str, start: int, *, is_last: bool) -> tuple[str, int]:
    """The character that the escape at ``start`` means, and where it ends: at ``start`` if more is needed to tell."""
    kind = text[start + 1 : start + 2]
    if not kind:
        return ("\\", start + 1) if is_last else ("", start)
    if kind != "u":
        return _SHORT.get(kind, kind), start + 2
    digits = _HEX.match(text, start + 2)
    if digits is None:
        is_cut = not is_last and len(text) < start + 6
        return ("", start) if is_cut else ("\ufffd", start + 2)
    code = int(digits[0], 16)
    if not 0xD800 <= code < 0xE000:
        return chr(code), start + 6
    rest = text[start + 6 : start + _PAIR_CHARS]
    low = _HEX.match(rest, 2) if rest.startswith("\\u") else None
    if code < 0xDC00 and low is not None and 0xDC00 <= (second := int(low[0], 16)) < 0xE000:
        return chr(0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00)), start + _PAIR_CHARS
    could_pair = code < 0xDC00 and len(rest) < 6 and "\\u".startswith(rest[:2])
    return ("", start) if could_pair and not is_last else ("\ufffd", start + 6)


def _understood(arguments: str) -> str:
    """The string ``input`` of an object, or its only string; else all that the model wrote."""
    try:
        value: object = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        return arguments
    fields = cast("dict[str, object]", value)
    given = fields.get("input", next(iter(fields.values()), None) if len(fields) == 1 else None)
    return given if isinstance(given, str) else arguments
