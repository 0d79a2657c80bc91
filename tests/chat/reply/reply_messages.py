"""Random messages, full of what could be taken for markers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from hypothesis import strategies as st
from reply_families import FAMILIES, Call, Family, Said

from kvstet.chat.deltas import CallBegin, CallEnd, Delta
from kvstet.chat.reply.parser import ReplyParser

_MARKERS = sorted({m for f in FAMILIES for m in (*f.ends, *f.opens, *f.thinks, *f.in_values, *f.in_keys)})
_FRAGMENTS = sorted({m[:3] for m in _MARKERS} | {m[-2:] for m in _MARKERS} | {m[: len(m) // 2] for m in _MARKERS})
_ORDINARY = [
    " ",
    "\n",
    "\n\n",
    "\t",
    "a",
    "word",
    "é",
    "日本",
    "🙂",
    '"',
    "'",
    "\\",
    "\\n",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
]
_ORDINARY += [
    "</",
    "<",
    ">",
    "=",
    ":",
    ",",
    "|",
    "`",
    "```json\n",
    "\r\n",
    "\u2028",
    "\0",
    "#",
    "null",
    "1",
    '{"name": "',
]
_CALLS = ["</tool_call>", "<function=f>", "</function>", "<parameter=x>", '<invoke name="f">', "<arg_key>", "[ARGS]"]

_SNIPPETS = _ORDINARY * 4 + _MARKERS * 2 + _FRAGMENTS + _CALLS
_MAX_SNIPPETS = 9
_MAX_ITEMS = 4
_MAX_DEPTH = 12


class _Choices:
    """Bytes as choices, with zeros behind their end: much faster than strategies, and shrinks as well."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def below(self, limit: int) -> int:
        pair = self._data[self._place : self._place + 2]
        self._place += 2
        return int.from_bytes(pair, "little") % limit

    def text(self) -> str:
        return "".join(self._snippet() for _ in range(self.below(_MAX_SNIPPETS)))

    def _snippet(self) -> str:
        if self.below(8) < 7:
            return _SNIPPETS[self.below(len(_SNIPPETS))]
        return chr(self.below(0xD800) if self.below(2) else 0xE000 + self.below(0x10000))

    def value(self, depth: int = 0) -> object:
        """Any JSON value; lists and objects are rarer where that gets deep."""
        kind = self.below(8 if depth < _MAX_DEPTH else 6)
        if kind >= 6:
            items = range(self.below(_MAX_ITEMS))
            if kind == 6:
                return [self.value(depth + 1) for _ in items]
            return {self.text(): self.value(depth + 1) for _ in items}
        return (None, bool(self.below(2)), self._integer(), self._float(), self.text(), self.text())[kind]

    def _integer(self) -> int:
        return (self.below(2001) - 1000) * 10 ** self.below(20)

    def _float(self) -> float:
        return (self.below(2001) - 1000) * 10.0 ** (self.below(600) - 300)

    def call(self, number: int) -> Call:
        name = "".join(_LETTERS[self.below(len(_LETTERS))] for _ in range(1 + self.below(12)))
        arguments = {self.text(): self.value() for _ in range(self.below(_MAX_ITEMS))}
        return Call(f"{name}_{number}", arguments)

    def said(self) -> Said:
        reasoning, text = self.text(), self.text()
        return Said(reasoning, text, tuple(self.call(number) for number in range(self.below(_MAX_ITEMS))))


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."


NUM_BYTES = 320
"""Enough for most messages."""


def said_by(data: bytes) -> Said:
    """The message that these choices give."""
    return _Choices(data).said()


def said() -> st.SearchStrategy[Said]:
    return st.binary(min_size=NUM_BYTES, max_size=NUM_BYTES).map(said_by)


def in_pieces(text: str, sizes: Sequence[int]) -> Iterable[str]:
    """The text in pieces of these sizes, over and over."""
    start = 0
    while start < len(text):
        for size in sizes:
            yield text[start : start + size]
            start += size


def read(parser: ReplyParser, pieces: Iterable[str]) -> list[Delta]:
    return [delta for piece in pieces for delta in parser.feed(piece)] + parser.flush()


def meaning(arguments: object) -> str:
    """Equal for arguments that are equal, numbers and booleans told apart."""
    return json.dumps(arguments, sort_keys=True)


def are_well_formed(deltas: Iterable[Delta]) -> bool:
    """Whether calls are numbered from 0, do not overlap, and have arguments only between their begin and end."""
    num_calls, is_open = 0, False
    for delta in deltas:
        if isinstance(delta, CallBegin):
            if delta.index != num_calls:
                return False
            num_calls, is_open = num_calls + 1, True
        elif isinstance(delta, CallEnd) or hasattr(delta, "json"):
            if not is_open or delta.index != num_calls - 1:
                return False
            is_open = not isinstance(delta, CallEnd)
    return True


def watched(family: Family) -> set[str]:
    """Markers that the family's parser looks out for in text."""
    form = family.format
    heads = {marker.head for marker in form.ends}
    for syntax in form.calls:
        opens = syntax.opens if hasattr(syntax, "opens") else (syntax.open,)
        heads |= {marker.head for marker in opens}
    return heads
