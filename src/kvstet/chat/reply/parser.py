"""The reader of one reply, fed as it is generated."""

from __future__ import annotations

from typing import Protocol

from kvstet.chat.deltas import Delta, TextDelta
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source

_MAX_PIECE_CHARACTERS = 1024
"""Longer text is read piece by piece: what was not read yet is copied now and then."""


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
        for start in range(0, len(text), _MAX_PIECE_CHARACTERS):
            self._source.add(text[start : start + _MAX_PIECE_CHARACTERS])
            next(self._reading, None)
        return self._sink.drain()

    def flush(self) -> list[Delta]:
        """No more text will come; what is incomplete is given out as far as it is there."""
        if self._ended:
            return []
        self._ended = self._source.ended = True
        next(self._reading, None)
        return self._sink.drain()
