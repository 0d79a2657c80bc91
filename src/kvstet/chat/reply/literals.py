"""Values written as in Python, or with bare keys and quotes of their own, made into JSON as they come."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kvstet.chat.reply.json_text import decode, escaped, is_value, quoted
from kvstet.chat.reply.source import Reading, Source, emit_if

_CLOSING = {"{": "}", "[": "]", "(": ")", "call": ")"}
_JSON_OPENING = {"{": "{", "[": "[", "(": "["}
_JSON_CLOSING = {"{": "}", "[": "]", "(": "]", "call": "}"}
_CONSTANTS = {"True": "true", "False": "false", "None": "null"}
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}
_HEX_SIZES = {"x": 2, "u": 4, "U": 8}
_WORD = re.compile(r"[\w.+-]+")
_NO_NAME = re.compile(r"[=()\[\]{},'\"\n]")


@dataclass(frozen=True, slots=True)
class LiteralForm:
    """How strings and keys are written."""

    quotes: tuple[str, ...]
    """What stands on both sides of a string."""
    keys: str
    """What ends a key that stands without quotes."""
    escapes: bool
    """Whether strings have Python's escapes."""


PYTHON = LiteralForm(("'", '"'), keys=":", escapes=True)


def keyed(quote: str) -> LiteralForm:
    """Bare keys, and strings between ``quote`` without escapes."""
    return LiteralForm((quote,), keys=":", escapes=False)


@dataclass(slots=True)
class _Frame:
    kind: str
    num_items: int = 0

    @property
    def has_keys(self) -> bool:
        return self.kind in ("{", "call")


class LiteralReader:
    """Reads values, and emits their JSON. Where one goes wrong, reading stops there, and what was read is emitted."""

    def __init__(self, source: Source, form: LiteralForm, emit: Callable[[str], None]) -> None:
        self._source = source
        self._form = form
        self._emit = emit
        self._frames: list[_Frame] = []  # not Python's own stack: values can be nested deeper than that

    def __repr__(self) -> str:
        return f"LiteralReader({self._form!r}, depth {len(self._frames)})"

    def arguments(self) -> Reading[bool]:
        """``(key=value, ...)`` as an object. Whether it came to its end."""
        self._source.take(1)
        self._emit("{")
        self._frames.append(_Frame("call"))
        return (yield from self.value())

    def value(self) -> Reading[bool]:
        """The value that comes next, or the rest of one. Whether it came to its end."""
        while True:
            first = yield from self._source.skip_spaces()
            if not first:
                return False
            frame = self._frames[-1] if self._frames else None
            if frame is not None and first == _CLOSING[frame.kind]:
                self._close()
            elif frame is not None and first == "," and frame.num_items:
                self._source.take(1)
                continue
            elif not (yield from self._item(frame)):
                return False
            if not self._frames:
                return True

    def _close(self) -> None:
        self._source.take(1)
        self._emit(_JSON_CLOSING[self._frames.pop().kind])

    def _item(self, frame: _Frame | None) -> Reading[bool]:
        """An item of an array or object, or the outermost value; of brackets only what opens them."""
        if frame is not None:
            if frame.num_items:
                self._emit(", ")
            frame.num_items += 1
            if frame.has_keys and not (yield from self._key(frame)):
                return False
        first = yield from self._source.skip_spaces()
        if first and first in _JSON_OPENING:
            self._emit(_JSON_OPENING[self._source.take(1)])
            self._frames.append(_Frame(first))
            return True
        quote = yield from self._quote()
        if quote:
            return (yield from self._string(quote, self._emit))
        return (yield from self._word())

    def _quote(self) -> Reading[str]:
        for quote in self._form.quotes:
            if (yield from self._source.sees(quote)):
                return quote
        return ""

    def _key(self, frame: _Frame) -> Reading[bool]:
        pieces: list[str] = []
        quote = yield from self._quote() if frame.kind == "{" else self._no_quote()
        if quote:
            found = yield from self._string(quote, pieces.append)
            found = found and (yield from self._source.match(":"))
            key = "".join(pieces)
        else:
            found = (yield from self._source.until(["=" if frame.kind == "call" else ":"], pieces.append)) >= 0
            key = "".join(pieces)
            if found and frame.kind == "call" and _NO_NAME.search(key):
                found, key = False, f"{key}="
            else:
                key = quoted(key.strip() if self._form.escapes else key) if found else key
        self._emit(f"{key}: " if found else key)
        return found

    def _no_quote(self) -> Reading[str]:
        yield from ()
        return ""

    def _string(self, quote: str, emit: Callable[[str], None]) -> Reading[bool]:
        self._source.take(len(quote))
        emit('"')
        stops = [quote, "\\"] if self._form.escapes else [quote]
        while True:
            stop = yield from self._source.until(stops, lambda text: emit(escaped(text)))
            if stop < 0:
                return False
            if stop == 0:
                emit('"')
                return True
            emit((yield from self._escape()))

    def _escape(self) -> Reading[str]:
        """JSON for the escape behind a backslash that was read."""
        kind = yield from self._source.peek()
        size = _HEX_SIZES.get(kind, 0)
        while len(self._source.text) < 1 + size and not self._source.ended:
            yield
        digits = self._source.take(1 + size)[1:]
        if kind in _SIMPLE_ESCAPES:
            return escaped(_SIMPLE_ESCAPES[kind])
        if kind and kind in "\\'\"":
            return escaped(kind)
        try:
            code = int(digits, 16)
            # Half of a surrogate pair must stay an escape, so that it meets the other half.
            return f"\\u{digits}" if kind == "u" else escaped(chr(code))
        except (ValueError, OverflowError):
            return escaped(f"\\{kind}{digits}")

    def _word(self) -> Reading[bool]:
        """A number, a constant, or something bare that is taken for a string."""
        word = ""
        while True:
            found = _WORD.match(self._source.text)
            word += self._source.take(found.end()) if found else ""
            if self._source.text or self._source.ended:
                break
            yield
        emit_if(self._emit, _json_of_word(word))
        return bool(word)


def _json_of_word(word: str) -> str:
    json = _CONSTANTS.get(word, word)
    return json if not word or is_value(decode(json)) else quoted(word)
