"""Reads arguments that stand between tags, and makes them JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from kvstet.chat.reply.json_text import escaped, quoted
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source
from kvstet.chat.reply.syntax import Marker, TagArguments
from kvstet.chat.reply.types import ArgumentTypes, json_of

Outcome = Literal["complete", "broken", "no_call"]


class TagReader:
    """Reads the arguments of one call.

    Strings are streamed. Other values, and those whose type the schema leaves open, are given out at their end: only
    then is it known what they are.
    """

    def __init__(
        self, form: TagArguments, source: Source, sink: Sink, types: ArgumentTypes, *, name: str, call_close: Marker
    ) -> None:
        self._form = form
        self._call_close = call_close
        self._name = name
        self._source = source
        self._sink = sink
        self._types = types
        self._tells_types = form.string_key_close.parts != form.other_key_close.parts

    def __repr__(self) -> str:
        return f"TagReader({self._name}, {self._form!r})"

    def read(self) -> Reading[Outcome]:
        """The arguments and the marker behind the call. "broken": the call has begun, but goes on in another way."""
        num_arguments = 0
        while True:
            if (yield from self._source.match(self._form.key_open.head)):
                self._continue(num_arguments, ", ")
                if not (yield from self._argument()):
                    return "broken"
                num_arguments += 1
            elif (yield from self._source.match(self._call_close.head)):
                yield from self._source.match_all(self._call_close.parts[1:])
                self._continue(num_arguments, "")
                self._sink.arguments("}")
                self._sink.end()
                return "complete"
            else:
                return "broken" if num_arguments else "no_call"

    def _continue(self, num_arguments: int, separator: str) -> None:
        if not num_arguments:
            self._source.forget()
            self._sink.begin(self._name)
        self._sink.arguments(separator if num_arguments else "{")

    def _argument(self) -> Reading[bool]:
        pieces: list[str] = []
        found = yield from self._source.match_all(self._form.key_open.parts[1:])
        close = (yield from self._key(pieces.append)) if found else None
        key = "".join(pieces)
        if close is None:
            self._sink.arguments(key)
            return False
        self._sink.arguments(f"{quoted(key)}: ")
        yield from self._source.eat(close.after)
        is_text = close == self._form.string_key_close if self._tells_types else self._types.is_text(self._name, key)
        found = yield from self._text() if is_text else self._other(key)
        return found and (yield from self._source.match_all(self._form.value_close.parts[1:]))

    def _key(self, emit: Callable[[str], None]) -> Reading[Marker | None]:
        """Read a key and the marker behind it; which marker that is."""
        closes = [self._form.string_key_close, self._form.other_key_close]
        index = yield from self._source.until([close.head for close in closes], emit)
        if index < 0:
            return None
        for close in closes[index:]:
            if close.head == closes[index].head and (yield from self._source.match_all(close.parts[1:])):
                return close
        return None

    def _text(self) -> Reading[bool]:
        self._sink.arguments('"')
        found = yield from self._until_close(lambda text: self._sink.arguments(escaped(text)))
        self._sink.arguments('"' if found else "")
        return found

    def _other(self, key: str) -> Reading[bool]:
        pieces: list[str] = []
        found = yield from self._until_close(pieces.append)
        text = "".join(pieces)
        if not found:
            self._sink.arguments(text)
        elif self._tells_types:
            self._sink.arguments(json_of(text) or quoted(text))
        else:
            self._sink.arguments(self._types.json_of(self._name, key, text))
        return found

    def _until_close(self, emit: Callable[[str], None]) -> Reading[bool]:
        close = self._form.value_close
        return (yield from self._source.until([close.head], emit, [close.before])) >= 0
