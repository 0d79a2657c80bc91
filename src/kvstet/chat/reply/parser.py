"""The reader of one reply, fed as it is generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source


class Reader(Protocol):
    """Knows a format."""

    def read(self) -> Reading[None]:
        """Read the source to its end."""
        ...


class ReplyParser:
    """Takes a reply apart; one for each reply.

    Work is in proportion to the text, and only what could still become a marker is held back. It never raises, whatever
    the text is. Nothing is lost but markers, and within calls what is neither name nor arguments (ids, say).
    """

    def __init__(self, source: Source, sink: Sink, reader: Reader) -> None:
        self._source = source
        self._sink = sink
        self._reader = reader
        self._reading = reader.read()
        self._ended = False

    def __repr__(self) -> str:
        return f"ReplyParser({self._reader!r}, {self._source!r})"

    def feed(self, text: str) -> list[Delta]:
        """Text as generated, cut anywhere, control tokens printed as their text."""
        if self._ended:
            return [TextDelta(text)] if text else []
        self._source.add(text)
        return self._go_on()

    def flush(self) -> list[Delta]:
        """No more text will come; what is incomplete is given out as far as it is there."""
        if self._ended:
            return []
        self._ended = self._source.ended = True
        return self._go_on()

    def _go_on(self) -> list[Delta]:
        next(self._reading, None)
        return self._sink.drain()


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """``arguments_json`` is one JSON text, if the model wrote it to its end."""

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply says as a whole."""

    reasoning: str
    text: str
    calls: tuple[ParsedCall, ...]


def message_of(deltas: Iterable[Delta]) -> ParsedReply:
    """Put deltas together."""
    reasoning: list[str] = []
    text: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case ReasoningDelta(piece):
                reasoning.append(piece)
            case TextDelta(piece):
                text.append(piece)
            case CallBegin(_, name):
                names.append(name)
                arguments.append([])
            case ArgumentsDelta(index, json):
                arguments[index].append(json)
            case CallEnd():
                pass
    calls = (ParsedCall(name, "".join(pieces)) for name, pieces in zip(names, arguments, strict=True))
    return ParsedReply("".join(reasoning), "".join(text), tuple(calls))
