"""Reads tool calls from the text behind their opening marker.

What is no call is given back as text, with its markers. Once a call has begun, all that follows is its arguments, up to
the marker that closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta
from kvstet.chat.reply.json_text import (
    copy_decoded_string,
    copy_value,
    decode,
    escaped,
    quoted,
    read_string,
    read_value,
)
from kvstet.chat.reply.literals import PYTHON, LiteralReader, keyed
from kvstet.chat.reply.source import Reading, Source
from kvstet.chat.reply.syntax import (
    CallSyntax,
    JsonArguments,
    KeyedArguments,
    ListedCalls,
    MarkedCalls,
    ObjectCalls,
    TagArguments,
)
from kvstet.chat.reply.types import ArgumentTypes

_MAX_NAME_CHARACTERS = 256
_NO_NAME = frozenset("<>{}[]()\"'`,;=\\|｜")


class CallSink:
    """Where calls go; numbers them."""

    def __init__(self, emit: Callable[[Delta], None]) -> None:
        self._emit = emit
        self._num_calls = 0

    def __repr__(self) -> str:
        return f"CallSink({self._num_calls} calls)"

    def begin(self, name: str) -> None:
        self._emit(CallBegin(self._num_calls, name))
        self._num_calls += 1

    def arguments(self, json: str) -> None:
        self._emit(ArgumentsDelta(self._num_calls - 1, json))

    def end(self) -> None:
        self._emit(CallEnd(self._num_calls - 1))


class CallReader(Protocol):
    """Reads calls in one syntax."""

    def read(self) -> Reading[bool]:
        """Read calls, the opening marker's first part having been read. Whether there was one.

        Otherwise what was read is given back as text by the caller, from the source's memory.
        """
        ...


def call_reader(syntax: CallSyntax, source: Source, sink: CallSink, types: ArgumentTypes) -> CallReader:
    if isinstance(syntax, ListedCalls):
        return _ListReader(syntax, source, sink, types)
    return _MarkedReader(syntax, source, sink, types)


def is_name(name: str) -> bool:
    """Whether this can be the name of a tool."""
    return 0 < len(name) <= _MAX_NAME_CHARACTERS and not any(c.isspace() or c in _NO_NAME for c in name)


class _ListReader:
    """Calls one by one, or in a list."""

    def __init__(self, syntax: ListedCalls, source: Source, sink: CallSink, types: ArgumentTypes) -> None:
        self._syntax = syntax
        self._source = source
        self._sink = sink
        self._types = types
        self._bare = not syntax.opens
        self._begun = False

    def read(self) -> Reading[bool]:
        num_calls = 0
        in_list = False
        while True:
            first = yield from self._source.skip_spaces() if not num_calls else self._peek_behind_spaces()
            if first == "[" and not in_list and not num_calls:
                in_list = bool(self._source.take(1))
            elif num_calls and ((first == "," and in_list) or (first == ";" and not in_list)):
                self._take_behind_spaces()
            elif first == "]" and in_list and num_calls:
                self._take_behind_spaces()
                in_list = False
            elif num_calls and (yield from self._closes()):
                return True
            elif first and not (num_calls and self._bare and first not in "{" and not in_list):
                self._source.begin("" if num_calls else self._source.raw())
                self._begun = False
                if not (yield from self._item(first)):
                    return num_calls > 0 or self._begun
                num_calls += 1
            else:
                return num_calls > 0

    def _peek_behind_spaces(self) -> Reading[str]:
        offset = yield from self._source.spaces()
        return self._source.text[offset : offset + 1]

    def _take_behind_spaces(self) -> None:
        text = self._source.text
        self._source.take(len(text) - len(text.lstrip()) + 1)

    def _closes(self) -> Reading[bool]:
        parts = self._syntax.close.parts
        return bool(parts) and (yield from self._source.match_all(parts))
