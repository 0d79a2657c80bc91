"""Reads JSON out of a stream of text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import cast

from kvstet.chat.reply.source import Reading, Source, emit_if

_STRUCTURE = re.compile(r'["{}\[\]]|[^\s\w.,:+-]')
"""What matters outside of strings: brackets, quotes, and what no JSON has there."""
_STRING_STOP = re.compile(r'["\\]')
_SCALAR = re.compile(r"[\w.+-]+")
_NUM_ESCAPE_CHARACTERS = {"u": 6}


def copy_value(source: Source, emit: Callable[[str], None]) -> Reading[bool]:
    """Emit the JSON value that comes next as it is. Whether it came to its end; it stops where no JSON goes on."""
    first = yield from source.peek()
    if first and first in "{[":
        return (yield from _copy_brackets(source, emit))
    if first == '"':
        return (yield from _copy_string(source, emit))
    return (yield from _copy_scalar(source, emit))


def _copy_brackets(source: Source, emit: Callable[[str], None]) -> Reading[bool]:
    depth = 0
    while True:
        found = _STRUCTURE.search(source.text)
        if found is None:
            emit_if(emit, source.take(len(source.text)))
            if source.ended:
                return False
            yield
            continue
        emit_if(emit, source.take(found.start()))
        if found.group() == '"':
            if not (yield from _copy_string(source, emit)):
                return False
        elif found.group() in "{}[]":
            depth += 1 if found.group() in "{[" else -1
            emit(source.take(1))
            if not depth:
                return True
        else:
            return False


def _copy_string(source: Source, emit: Callable[[str], None]) -> Reading[bool]:
    """From its quote to its quote."""
    emit(source.take(1))
    while True:
        found = _STRING_STOP.search(source.text)
        if found is None:
            emit_if(emit, source.take(len(source.text)))
        elif found.group() == '"':
            emit(source.take(found.end()))
            return True
        else:
            emit_if(emit, source.take(found.start()))
            while len(source.text) < 2 and not source.ended:
                yield
            emit(source.take(min(2, len(source.text))))
            continue
        if source.ended:
            return False
        yield


def _copy_scalar(source: Source, emit: Callable[[str], None]) -> Reading[bool]:
    num_characters = 0
    while True:
        found = _SCALAR.match(source.text)
        if found is not None:
            num_characters += found.end()
            emit(source.take(found.end()))
        if source.text or source.ended:
            return num_characters > 0
        yield


def read_value(source: Source) -> Reading[str | None]:
    """The text of the JSON value that comes next; None where it is none, and then part of it was read."""
    pieces: list[str] = []
    complete = yield from copy_value(source, pieces.append)
    text = "".join(pieces)
    return text if complete and decode(text) is not _NOTHING else None


def read_string(source: Source) -> Reading[str | None]:
    """The JSON string that comes next; None where there is none, and then part of it may have been read."""
    if (yield from source.peek()) != '"':
        return None
    text = yield from read_value(source)
    value = decode(text) if text is not None else None
    return value if isinstance(value, str) else None


_NOTHING = object()


def decode(text: str) -> object:
    """The value of a JSON text; something that is no JSON value where it has none."""
    try:
        return cast("object", json.loads(text, strict=False, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return _NOTHING


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def is_value(value: object) -> bool:
    """Whether `decode` found one."""
    return value is not _NOTHING


def copy_decoded_string(source: Source, emit: Callable[[str], None]) -> Reading[bool]:
    """Emit what the JSON string says that comes next. Whether it came to its end."""
    source.take(1)
    while True:
        found = _STRING_STOP.search(source.text)
        if found is None:
            emit_if(emit, source.take(len(source.text)))
        elif found.group() == '"':
            emit_if(emit, source.take(found.end())[:-1])
            return True
        else:
            emit_if(emit, source.take(found.start()))
            yield from _copy_escape(source, emit)
            continue
        if source.ended:
            return False
        yield


def _copy_escape(source: Source, emit: Callable[[str], None]) -> Reading[None]:
    """One escape; the two halves of a surrogate pair together."""
    text = yield from _take_escape(source)
    if text.lower().startswith(("\\ud8", "\\ud9", "\\uda", "\\udb")) and (yield from source.sees("\\u")):
        text += yield from _take_escape(source)
    value = decode(f'"{text}"')
    emit_if(emit, value if isinstance(value, str) else text)


def _take_escape(source: Source) -> Reading[str]:
    while len(source.text) < 2 and not source.ended:
        yield
    size = _NUM_ESCAPE_CHARACTERS.get(source.text[1:2], 2)
    while len(source.text) < size and not source.ended:
        yield
    return source.take(min(size, len(source.text)))


def quoted(text: str) -> str:
    """As a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """As part of a JSON string."""
    return quoted(text)[1:-1]
