"""Traces of any maker, read as a stream: what cannot be understood is passed over, and the rest is of use.

Beside the lines of `kvstet.traces.format`, a line may be a request's body itself (an object with ``messages`` or
``input``), or hold one as ``body``, with its ``path`` or without: logs of other tools, and the demo's session. A file
may be packed with xz, be cut off anywhere, and consist of several traces one behind the other.
"""

from __future__ import annotations

import lzma
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from kvstet.dialects.dialect import Dialect, DialectName, dialect_of_path
from kvstet.dialects.values import body_of, from_json
from kvstet.errors import InvalidRequest
from kvstet.traces.format import VERSION, Header, Line, Plan, Request, Response

STDIN = Path("-")

PATHS: dict[DialectName, str] = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
}
"""Where requests are sent to whose path is not told."""

NO_OBJECT = "not a JSON object"
UNKNOWN = "not a line of a trace"

_XZ = b"\xfd7zXZ"

_decode_line = msgspec.json.Decoder(Line).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and what came of it where that was recorded."""

    request: Request = field(repr=False)
    response: Response | None = field(repr=False, default=None)

    @property
    def number(self) -> int:
        """As the trace counts its requests, or else the line."""
        return self.request.seq

    @property
    def label(self) -> str:
        """For people; often empty."""
        return (self.response.kind if self.response is not None else "") or self.request.label

    @property
    def path(self) -> str:
        """Without the query."""
        return self.request.path.partition("?")[0]

    @property
    def dialect(self) -> Dialect | None:
        """Of a request for a reply; None: it asks for something else, or in an API that kvstet cannot read."""
        return None if self.path.endswith("/count_tokens") else dialect_of_path(self.path)

    @property
    def body(self) -> dict[str, Any]:
        """The request's JSON. InvalidRequest: it is no object."""
        return body_of(self.request.body_raw.encode("utf-8", "surrogatepass"))

    @property
    def plan(self) -> Plan | None:
        """What was replied; None: nothing, or it is not known."""
        return self.response.plan if self.response is not None else None


def read_trace(path: Path) -> Iterator[Exchange]:
    """The exchanges of a file, in the order of their requests. ``-`` is standard input.

    InvalidRequest: it cannot be read, or is of a later version.
    """
    return exchanges(read_lines(path))


def read_lines(path: Path, passed_over: Counter[str] | None = None) -> Iterator[Line]:
    """A file's lines, as they come. ``passed_over`` counts the others, by reason."""
    with opened(path) as file:
        yield from lines_in(file, passed_over)


def lines_in(file: Iterable[bytes], passed_over: Counter[str] | None = None) -> Iterator[Line]:
    """As `read_lines`, of lines that are had already."""
    for number, text in enumerate(file, 1):
        line = line_of(text, number)
        if isinstance(line, str):
            if passed_over is not None:
                passed_over[line] += 1
        elif line is not None:
            _check_version(line)
            yield line


def line_of(text: bytes, number: int) -> Line | str | None:
    """One line; why it is none; None: it is empty. ``number`` is that of a request that has none of its own."""
    if not text.strip():
        return None
    try:
        return _decode_line(text)
    except msgspec.ValidationError:
        return _foreign_line(text, number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _line_with_surrogates(text)


def exchanges(lines: Iterable[Line]) -> Iterator[Exchange]:
    """Requests with their responses, in the order of the requests. A header begins another trace."""
    waiting: dict[int, Exchange] = {}
    """In the order in which they came; what is answered waits for what came before it."""
    for line in lines:
        match line:
            case Request(seq=number) if number not in waiting:
                waiting[number] = Exchange(line)
            case Header() | Request():
                yield from waiting.values()
                waiting = {line.seq: Exchange(line)} if isinstance(line, Request) else {}
            case Response(seq=number):
                if number in waiting and waiting[number].response is None:
                    waiting[number] = Exchange(waiting[number].request, line)
        while waiting and (first := next(iter(waiting.values()))).response is not None:
            yield waiting.pop(first.number)
    yield from waiting.values()


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """A file to read, unpacked. InvalidRequest: it cannot be read, now or in the block."""
    try:
        if path == STDIN:
            yield _unpacked(sys.stdin.buffer)
            return
        with path.open("rb") as file:
            yield _unpacked(file)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise InvalidRequest(f"Cannot read {path}: {error}") from error


def _unpacked(file: Any) -> BinaryIO:
    packed: bool = file.peek(len(_XZ)).startswith(_XZ)
    return cast("BinaryIO", lzma.open(file) if packed else file)


def _check_version(line: Line) -> None:
    if isinstance(line, Header) and line.kvstet_trace > VERSION:
        raise InvalidRequest(
            f"This is a trace of version {line.kvstet_trace}, and this kvstet reads version {VERSION}: use a later one."
        )


def _line_with_surrogates(text: bytes) -> Line | str:
    """What msgspec does not read: halves of surrogate pairs."""
    try:
        return msgspec.convert(from_json(text), Line)
    except (ValueError, RecursionError):
        return NO_OBJECT


def _foreign_line(text: bytes, number: int) -> Line | str:
    """What another tool has written."""
    try:
        entry = _decode_object(text)
    except msgspec.DecodeError:
        return NO_OBJECT
    match entry:
        case {"dir": "request", "path": str(path), "body_raw": str(body)}:
            return Request(seq=_number(entry, number), path=path, body_raw=body, label=_label(entry))
        case {"dir": str()}:
            return UNKNOWN
        case {"body": body}:
            return _bare(entry, body, number)
        case {"messages": _} | {"input": _}:
            return _bare(entry, entry, number)
        case _:
            return UNKNOWN


def _bare(entry: dict[str, Any], body: object, number: int) -> Request:
    raw = body if isinstance(body, str) else msgspec.json.encode(body).decode()
    path = entry.get("path") if body is not entry else None
    path = path if isinstance(path, str) else _usual_path(body)
    return Request(seq=_number(entry, number), path=path, body_raw=raw, label=_label(entry))


def _usual_path(body: object) -> str:
    """By what the body has."""
    fields = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    if "input" in fields and "messages" not in fields:
        return PATHS["responses"]
    return PATHS["messages" if "system" in fields else "chat"]


def _number(entry: dict[str, Any], number: int) -> int:
    given = entry.get("seq")
    return given if type(given) is int else number


def _label(entry: dict[str, Any]) -> str:
    label = entry.get("label")
    return label if isinstance(label, str) else ""
