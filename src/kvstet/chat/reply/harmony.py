"""Reads replies in Harmony, the format of gpt-oss: messages with a header that names channel and recipient.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>

Analysis is reasoning, what has a recipient is a call, and all else is text.
"""

from __future__ import annotations

import re

from kvstet.chat.reply.json_text import copy_value
from kvstet.chat.reply.names import is_name
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Reading, Source, stops_of
from kvstet.chat.reply.types import ArgumentTypes

_HEADER_TAGS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>")
_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>")
_HEADER = re.compile(
    r"(?:<\|start\|>\s*assistant)?\s*(?:to=\S+?)?\s*"
    r"(?:<\|channel\|>\s*(?:analysis|commentary|final)\s*(?:to=\S+?)?)?\s*"
    r"(?:(?:<\|constrain\|>)?\s*(?:json|code)\s*)?<\|message\|>"
)
_RECIPIENT = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
HARMONY_MARKERS = (*_HEADER_TAGS, *_ENDS)
_MAX_HEADER_CHARACTERS = 1024
_MESSAGE = "<|message|>"


class HarmonyReader:
    """Reads a whole reply."""

    def __init__(self, source: Source, sink: Sink, types: ArgumentTypes, prompt_end: str) -> None:
        self._source = source
        self._sink = sink
        self._types = types
        self._header = _open_header(prompt_end)

    def __repr__(self) -> str:
        return f"HarmonyReader(header {self._header!r})"

    def read(self) -> Reading[None]:
        if self._header.endswith(_MESSAGE):
            yield from self._body(self._header)
        elif self._header:
            yield from self._message(self._header)
        while (yield from self._source.peek()):
            yield from self._message("")

    def _message(self, known: str) -> Reading[None]:
        """A header, of which ``known`` is in the prompt, and what follows it; text where there is no header."""
        tag = yield from self._header_begins(known)
        if tag is None:
            yield from self._body(_MESSAGE)
            return
        header = known + tag + ("" if tag == _MESSAGE else (yield from self._rest_of_header()))
        if _HEADER.fullmatch(header):
            yield from self._body(header)
        else:
            self._sink.text(header[len(known) :])
            yield from self._body(_MESSAGE)

    def _header_begins(self, known: str) -> Reading[str | None]:
        # A prompt that ends in "<|start|>assistant" may also be continued by " to=functions.name<|channel|>...".
        for tag in (*_HEADER_TAGS, *(["to="] if known else [])):
            if (yield from self._source.match(tag)):
                return tag if tag in _HEADER_TAGS else f" {tag}"
        return None

    def _rest_of_header(self) -> Reading[str]:
        """All up to the body; nothing where it is no header."""
        stops = stops_of((_MESSAGE,), ())
        while (found := stops.search(self._source.text)) is None:
            if self._source.ended or len(self._source.text) > _MAX_HEADER_CHARACTERS:
                return ""
            yield
        return self._source.take(found[2])

    def _body(self, header: str) -> Reading[None]:
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL.search(header)
        if recipient is not None and len(self._types) and is_name(recipient.group(1)):
            yield from self._call(recipient.group(1))
            return
        if recipient is not None:
            self._sink.text(header)
        says = self._sink.reasoning if channel and channel.group(1) == "analysis" and not recipient else self._sink.text
        stop = yield from self._source.until(_ENDS, says)
        self._unread(stop)

    def _call(self, name: str) -> Reading[None]:
        self._sink.begin(name)
        complete = yield from self._arguments()
        stop = yield from self._source.until(_ENDS, self._sink.arguments, (" ",) * len(_ENDS))
        if complete or stop >= 0:
            self._sink.end()
        self._unread(stop)

    def _arguments(self) -> Reading[bool]:
        """Arguments that are JSON may contain anything in their strings; what else stands in a call is copied."""
        first = yield from self._source.skip_spaces()
        if not first or first not in "{[" or not (yield from copy_value(self._source, self._sink.arguments)):
            return False
        yield from self._source.skip_spaces()
        return True

    def _unread(self, stop: int) -> None:
        """The tag of the next header was read as the end of this body."""
        if stop >= 0 and _ENDS[stop] in _HEADER_TAGS:
            self._source.text = _ENDS[stop] + self._source.text


def _open_header(prompt_end: str) -> str:
    """The part of the reply's first header that the prompt ends in."""
    start = prompt_end.rfind("<|start|>")
    header = prompt_end[start:] if start >= 0 else ""
    return "" if any(end in header for end in ("<|end|>", "<|return|>", "<|call|>")) else header
