"""Reads a reply that is reasoning, text and calls, with markers between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvstet.chat.reply.listed import ListReader
from kvstet.chat.reply.marked import MarkedReader
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source
from kvstet.chat.reply.syntax import CallSyntax, ListedCalls, Marker, Reasoning
from kvstet.chat.reply.types import ArgumentTypes

CallReader = ListReader | MarkedReader


@dataclass(frozen=True, slots=True)
class TurnForm:
    """What stands where in a reply."""

    reasoning: Reasoning | None
    text_open: Marker
    ends: tuple[Marker, ...]
    """End the text: of the turn, or of a part of it."""
    calls: tuple[CallSyntax, ...]


class TurnReader:
    """Reads a whole reply."""

    def __init__(self, form: TurnForm, source: Source, sink: Sink, types: ArgumentTypes, *, in_reasoning: bool) -> None:
        self._form = form
        self._source = source
        self._sink = sink
        self._in_reasoning = in_reasoning
        syntaxes = form.calls if len(types) else ()
        readers = [call_reader(syntax, source, sink, types) for syntax in syntaxes]
        opens = [_opens(syntax) for syntax in syntaxes]
        self._bare = [reader for reader, markers in zip(readers, opens, strict=True) if not markers]
        pairs = [(m, reader) for reader, markers in zip(readers, opens, strict=True) for m in markers]
        self._callers = [reader for _, reader in pairs]
        self._markers = [*(marker for marker, _ in pairs), *form.ends]
        self._heads = [marker.head for marker in self._markers]
        self._spaces = [marker.before for marker in self._markers]

    def __repr__(self) -> str:
        return f"TurnReader({self._form!r})"

    def read(self) -> Reading[None]:
        if self._in_reasoning:
            yield from self._reason()
        at_start, behind_marker = True, False
        while (yield from self._source.peek()):
            if at_start and (yield from self._begins()):
                continue
            bare = (yield from self._calls_bare()) if at_start else "nothing"
            if bare == "nothing" and behind_marker:
                yield from self._drop_spaces()
            at_start = behind_marker = bare == "calls" or (yield from self._say())

    def _begins(self) -> Reading[bool]:
        """Read what may stand before text: reasoning, or a marker."""
        reasoning, text_open = self._form.reasoning, self._form.text_open
        if reasoning is not None and (yield from self._source.match(reasoning.open.head)):
            yield from self._source.match_all(reasoning.open.parts[1:])
            yield from self._source.eat(reasoning.open.after)
            yield from self._reason()
            return True
        for marker in (reasoning.close if reasoning is not None else Marker(), text_open):
            if marker and (yield from self._source.match(marker.head)):
                yield from self._source.match_all(marker.parts[1:])
                yield from self._source.eat(marker.after)
                return True
        return False

    def _reason(self) -> Reading[None]:
        assert self._form.reasoning is not None
        close = self._form.reasoning.close
        stops = [close, *self._form.ends]
        heads, spaces = [marker.head for marker in stops], [marker.before for marker in stops]
        if (yield from self._source.until(heads, self._sink.reasoning, spaces)) == 0:
            yield from self._source.match_all(close.parts[1:])
            yield from self._source.eat(close.after)

    def _calls_bare(self) -> Reading[Literal["calls", "text", "nothing"]]:
        """Read calls that no marker announces, or text that looked like them."""
        for reader in self._bare:
            offset = yield from self._source.spaces()
            if self._source.text[offset : offset + 1] not in ("{", "["):
                return "nothing"
            self._source.begin()
            return "calls" if (yield from self._read_calls(reader, offset + 1)) else "text"
        return "nothing"

    def _read_calls(self, reader: CallReader, num_opening_characters: int) -> Reading[bool]:
        """Whether there were any; if not, what seemed to open them is text, and all behind it is read again."""
        found = yield from reader.read()
        if not found:
            self._sink.text(self._source.put_back(num_opening_characters))
        self._source.forget()
        return found

    def _drop_spaces(self) -> Reading[None]:
        """Between markers white space says nothing."""
        offset = yield from self._source.spaces()
        if offset == len(self._source.text):
            self._source.take(offset)
        for head in self._heads:
            if offset and (yield from self._source.sees(head, offset)):
                self._source.take(offset)
                return

    def _say(self) -> Reading[bool]:
        """Read text, and the marker that ends it with all that belongs to it. Whether more may begin behind that."""
        index = yield from self._source.until(self._heads, self._sink.text, self._spaces)
        if 0 <= index < len(self._callers):
            self._source.begin(self._heads[index])
            return (yield from self._read_calls(self._callers[index], len(self._heads[index])))
        if index >= 0:
            yield from self._source.match_all(self._markers[index].parts[1:])
        return True


def _opens(syntax: CallSyntax) -> Sequence[Marker]:
    return syntax.opens if isinstance(syntax, ListedCalls) else (syntax.open,)


def call_reader(syntax: CallSyntax, source: Source, sink: Sink, types: ArgumentTypes) -> CallReader:
    """The reader for a syntax."""
    if isinstance(syntax, ListedCalls):
        return ListReader(syntax, source, sink, types)
    return MarkedReader(syntax, source, sink, types)
