"""Reads calls whose name is part of an expression: JSON objects, or calls as in Python."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvstet.chat.reply.json_text import copy_decoded_string, copy_value, decode, read_string, read_value
from kvstet.chat.reply.literals import PYTHON, LiteralReader
from kvstet.chat.reply.names import is_name, may_become_name
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source
from kvstet.chat.reply.syntax import ListedCalls, ObjectCalls
from kvstet.chat.reply.types import ArgumentTypes

_WORD = re.compile(r"[\w.:/-]+")
_COMMON_NAME_KEYS = frozenset({"name"})
_COMMON_ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})
_OTHER_KEYS = frozenset({"id", "type", "tool_call_id"})


@dataclass(slots=True)
class _Call:
    """What is known of a call while its object is read."""

    name: str | None = None
    arguments: str | None = None
    """Where they came before the name."""
    begun: bool = False
    num_unknown: int = 0
    """Members that no call has."""


class ListReader:
    """Reads calls one by one, or in a list."""

    def __init__(self, syntax: ListedCalls, source: Source, sink: Sink, types: ArgumentTypes) -> None:
        self._syntax = syntax
        self._source = source
        self._sink = sink
        self._types = types
        items = syntax.items if isinstance(syntax.items, ObjectCalls) else ObjectCalls()
        self._name_keys = _COMMON_NAME_KEYS | {items.name_key}
        self._arguments_keys = _COMMON_ARGUMENTS_KEYS | {items.arguments_key}

    def __repr__(self) -> str:
        return f"ListReader({self._syntax!r})"

    def read(self) -> Reading[bool]:
        """Read what stands behind an opening marker. Whether there was a call; if not, the source remembers all."""
        num_calls = 0
        in_list = False
        while True:
            if num_calls:
                self._source.begin()
            first = yield from self._source.skip_spaces()
            if first == "[" and not in_list and not num_calls:
                self._source.take(1)
                in_list = True
            elif num_calls and first == ("," if in_list else ";"):
                self._source.take(1)
            elif num_calls and in_list and first == "]":
                self._source.take(1)
                in_list = False
            elif num_calls and (yield from self._closes()):
                return True
            elif num_calls and not in_list and not (first == "{" and isinstance(self._syntax.items, ObjectCalls)):
                self._source.put_back()
                return True
            elif not (yield from self._item(first)):
                if num_calls:
                    self._source.put_back()
                return num_calls > 0
            else:
                num_calls += 1

    def _closes(self) -> Reading[bool]:
        parts = self._syntax.close.parts
        return bool(parts) and (yield from self._source.match_all(parts))

    def _item(self, first: str) -> Reading[bool]:
        if isinstance(self._syntax.items, ObjectCalls):
            return first == "{" and (yield from self._object())
        return (yield from self._python())

    def _knows(self, name: str) -> bool:
        """Without a marker only known names make a call."""
        return is_name(name) if self._syntax.opens else name in self._types

    def _object(self) -> Reading[bool]:
        self._source.take(1)
        call = _Call()
        while (first := (yield from self._source.skip_spaces())) != "}":
            if first == ",":
                self._source.take(1)
            elif not (yield from self._member(call)):
                return call.begun and (yield from self._rest())
        self._source.take(1)
        return self._finish(call)

    def _member(self, call: _Call) -> Reading[bool]:
        """A key and its value. Whether a call can have it."""
        key = yield from read_string(self._source)
        if key is None or not (yield from self._source.match(":")):
            return False
        yield from self._source.skip_spaces()
        if key in self._name_keys and call.name is None:
            call.name = yield from read_string(self._source)
            return call.name is not None and self._knows(call.name)
        if key in self._arguments_keys and call.name is not None and not call.begun:
            self._begin(call, call.name)
            return (yield from self._arguments())
        if not self._syntax.opens and key not in self._arguments_keys | _OTHER_KEYS:
            return False
        value = yield from read_value(self._source)
        if key in self._arguments_keys:
            call.arguments = value
        elif key not in _OTHER_KEYS:
            call.num_unknown += 1
        return value is not None

    def _begin(self, call: _Call, name: str) -> None:
        self._source.forget()
        self._sink.begin(name)
        call.begun = True

    def _finish(self, call: _Call) -> bool:
        if call.name is None or (call.num_unknown and call.arguments is None and not call.begun):
            return False
        if not call.begun:
            self._begin(call, call.name)
            self._sink.arguments(_unwrapped(call.arguments or "{}"))
        self._sink.end()
        return True

    def _arguments(self) -> Reading[bool]:
        """The value that comes next; some models write the JSON as a string."""
        if (yield from self._source.peek()) == '"':
            return (yield from copy_decoded_string(self._source, self._sink.arguments))
        return (yield from copy_value(self._source, self._sink.arguments))

    def _rest(self) -> Reading[bool]:
        """Of a call that began well: all up to the closing marker is its arguments."""
        head = self._syntax.close.head
        if (yield from self._source.until([head] if head else [], self._sink.arguments)) >= 0:
            self._sink.end()
        return True

    def _python(self) -> Reading[bool]:
        found = _WORD.match(self._source.text)
        while found is not None and found.end() == len(self._source.text) and not self._source.ended:
            if not may_become_name(found.group(), ()):
                return False
            yield
            found = _WORD.match(self._source.text)
        if found is None or not self._knows(found.group()):
            return False
        self._source.take(found.end())
        if (yield from self._source.skip_spaces()) != "(":
            return False
        self._source.forget()
        self._sink.begin(found.group())
        if not (yield from LiteralReader(self._source, PYTHON, self._sink.arguments).arguments()):
            return (yield from self._rest())
        self._sink.end()
        return True


def _unwrapped(arguments: str) -> str:
    value = decode(arguments)
    return value if isinstance(value, str) else arguments
