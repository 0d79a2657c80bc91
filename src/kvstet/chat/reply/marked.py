"""Reads calls with markers around their names."""

from __future__ import annotations

from collections.abc import Sequence

from kvstet.chat.reply.json_text import copy_decoded_string, copy_value
from kvstet.chat.reply.literals import LiteralReader, keyed
from kvstet.chat.reply.names import is_name, may_become_name
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source, stops_of
from kvstet.chat.reply.syntax import KeyedArguments, MarkedCalls, TagArguments
from kvstet.chat.reply.tagged import TagReader
from kvstet.chat.reply.types import ArgumentTypes


class MarkedReader:
    """Reads calls in one syntax."""

    def __init__(self, syntax: MarkedCalls, source: Source, sink: Sink, types: ArgumentTypes) -> None:
        self._syntax = syntax
        self._source = source
        self._sink = sink
        self._types = types
        self._name_heads = _name_stops(syntax)
        self._name_stops = stops_of(self._name_heads, ())
        self._ends = [m.head for m in (syntax.call_close, syntax.section_close, syntax.call_open) if m][:1]

    def __repr__(self) -> str:
        return f"MarkedReader({self._syntax!r})"

    def read(self) -> Reading[bool]:
        """Read what stands behind the opening's head. Whether there was a call; if not, the source remembers all."""
        num_calls = 0
        parts: Sequence[str] | None = self._syntax.open.parts[1:]
        while parts is not None:
            if not (yield from self._source.match_all(parts)) or not (yield from self._call()):
                if num_calls:
                    self._source.put_back()
                return num_calls > 0
            num_calls += 1
            self._source.begin()
            parts = yield from self._next()
        return True

    def _next(self) -> Reading[Sequence[str] | None]:
        """What is left to read of the marker before the next call, if there is one."""
        syntax = self._syntax
        if syntax.call_open and (yield from self._source.match(syntax.call_open.head)):
            return syntax.call_open.parts[1:]
        if syntax.section_close and (yield from self._source.match(syntax.section_close.head)):
            yield from self._source.match_all(syntax.section_close.parts[1:])
            return None
        if syntax.section_open and (yield from self._source.match(syntax.open.head)):
            return syntax.open.parts[1:]
        return None

    def _call(self) -> Reading[bool]:
        name = yield from self._name()
        if name is None or not (yield from self._source.match_all(self._syntax.name_close.parts[1:])):
            return False
        if isinstance(self._syntax.arguments, TagArguments):
            return (yield from self._tagged(self._syntax.arguments, name))
        return (yield from self._value(name))

    def _tagged(self, form: TagArguments, name: str) -> Reading[bool]:
        reader = TagReader(form, self._source, self._sink, self._types, name=name, call_close=self._syntax.call_close)
        outcome = yield from reader.read()
        return outcome == "complete" or (outcome == "broken" and (yield from self._rest()))

    def _name(self) -> Reading[str | None]:
        while (found := self._name_stops.search(self._source.text)) is None:
            if self._source.ended or not may_become_name(self._source.text, self._name_heads):
                return None
            yield
        _, start, stop = found
        field = self._source.take(stop if self._syntax.name_close else start)[:start].strip()
        if self._syntax.id_before:
            field = field.rpartition(self._syntax.id_before)[2]
        name = field.removeprefix(self._syntax.name_prefix)
        if self._syntax.id_after and self._syntax.id_after in name:
            name = name.rpartition(self._syntax.id_after)[0]
        return name if is_name(name) else None

    def _value(self, name: str) -> Reading[bool]:
        """Arguments that are one value."""
        first = yield from self._source.skip_spaces()
        if isinstance(self._syntax.arguments, KeyedArguments):
            if first != "{":
                return False
            self._source.forget()
            self._sink.begin(name)
            reader = LiteralReader(self._source, keyed(self._syntax.arguments.quote), self._sink.arguments)
            complete = yield from reader.value()
        elif first and first in '{["':
            self._source.forget()
            self._sink.begin(name)
            copy = copy_decoded_string if first == '"' else copy_value
            complete = yield from copy(self._source, self._sink.arguments)
        elif self._syntax.call_close and (yield from self._source.match(self._syntax.call_close.head)):
            self._source.forget()
            self._sink.begin(name)
            self._sink.arguments("{}")
            self._sink.end()
            return (yield from self._closed(1))
        else:
            return False
        if not complete:
            return (yield from self._rest())
        self._sink.end()
        return (yield from self._closed(0))

    def _closed(self, num_parts: int) -> Reading[bool]:
        """Read what is left of the closing marker, as far as it is there."""
        yield from self._source.match_all(self._syntax.call_close.parts[num_parts:])
        return True

    def _rest(self) -> Reading[bool]:
        """Of a call that began well: all up to the closing marker is its arguments."""
        if (yield from self._source.until(self._ends, self._sink.arguments)) >= 0:
            self._sink.end()
            yield from self._closed(1)
        return True


def _name_stops(syntax: MarkedCalls) -> tuple[str, ...]:
    if syntax.name_close:
        return (syntax.name_close.head,)
    if isinstance(syntax.arguments, TagArguments):
        return tuple(marker.head for marker in (syntax.arguments.key_open, syntax.call_close) if marker)
    return ("{",)
