"""The requests that Claude Code notes in its session files, from 2.1 on.

An ``api-request`` names its messages by their SHA-256: the first ``keep`` of those of the request ``base``, and
``tail``. A message is in an ``api-request-blob``, or else is a run of transcript lines: neighbours of one role and one
message id. System prompt and tools are in an ``api-request-shape``, and ``cacheControl`` says which parts were marked.
Observed in files of 2.1.330.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, cast

import msgspec

from kvstet.dialects.values import Object, integer, items, obj, objects, optional_text, text

Message = dict[str, Any]

_HEADERS = frozenset({"betas"})
"""Parameters of a request that are sent as headers."""

_sorted_json = msgspec.json.Encoder(order="sorted").encode


class RequestNotes:
    """What a file has noted, and the messages that its transcript says so far."""

    def __init__(self) -> None:
        self._messages: dict[str, Message] = {}
        self._shapes: dict[str, Object] = {}
        self._hashes: dict[str, Sequence[str]] = {}
        """Of the messages of each request, by the request's id."""
        self._run: Message | None = None
        self._run_id: str | None = None

    def __repr__(self) -> str:
        return f"RequestNotes({len(self._hashes)} requests of {len(self._messages)} messages)"

    def note_shape(self, line: Object) -> None:
        self._shapes[text(line.get("shapeHash"))] = obj(line.get("shape"))

    def note_blob(self, line: Object) -> None:
        self._messages[text(line.get("hash"))] = dict(obj(line.get("message")))

    def note_request(self, line: Object) -> None:
        """The messages of an ``api-request``."""
        base = self._hashes.get(text(line.get("base")), ())
        self._hashes[text(line.get("id"))] = [
            *base[: integer(line.get("keep")) or 0],
            *map(text, items(line.get("tail"))),
        ]

    def note_transcript(self, message: Object) -> None:
        """A line of the transcript: it may be the next part of a message."""
        role, id = text(message.get("role")), optional_text(message.get("id"))
        if self._run is None or self._run["role"] != role or self._run_id != id:
            self._run, self._run_id = {"role": role, "content": []}, id
        self._run = {"role": role, "content": [*self._run["content"], *blocks_of(message)]}
        if (name := hash_of(self._run)) is not None:
            self._messages[name] = self._run

    def body_of(self, line: Object) -> dict[str, Any] | None:
        """The body of an ``api-request`` that was noted; None: parts of it are not in the file."""
        names = self._hashes.get(text(line.get("id")), ())
        shape = self._shapes.get(text(line.get("shapeHash")))
        if shape is None or not names or any(name not in self._messages for name in names):
            return None
        parameters = {name: value for name, value in obj(line.get("params")).items() if name not in _HEADERS}
        body = {**parameters, **shape, "messages": [self._messages[name] for name in names]}
        return _marked(body, objects(line.get("cacheControl")))


def headers_of(line: Object) -> tuple[tuple[str, str], ...]:
    """Of an ``api-request``."""
    betas = [name for name in items(obj(line.get("params")).get("betas")) if isinstance(name, str)]
    return (("anthropic-beta", ",".join(betas)),) if betas else ()


def blocks_of(message: Object) -> list[Any]:
    """A message's content as blocks."""
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(items(content))


def hash_of(message: Message) -> str | None:
    """As Claude Code names a message; None: it cannot be written as JSON."""
    try:
        return sha256(_sorted_json(message)).hexdigest()
    except (ValueError, TypeError, RecursionError):
        return None


def _marked(body: dict[str, Any], marks: Sequence[Object]) -> dict[str, Any]:
    """The body with ``cache_control`` where it was. Only what the marks touch is copied."""
    for mark in marks:
        body = cast("dict[str, Any]", _with_mark(body, items(mark.get("path")), mark.get("value")))
    return body


def _with_mark(value: object, path: Sequence[object], mark: object) -> object:
    match value, path:
        case dict(), []:
            return {**cast("Message", value), "cache_control": mark}
        case dict(), [str(name), *rest] if name in value:
            fields = cast("Message", value)
            return {**fields, name: _with_mark(fields[name], rest, mark)}
        case list(), [int(index), *rest] if 0 <= index < len(cast("list[object]", value)):
            found = list(cast("list[object]", value))
            found[index] = _with_mark(found[index], rest, mark)
            return found
        case str(), [0]:
            # Noted as a text, sent as a block.
            return [{"type": "text", "text": value, "cache_control": mark}]
        case _:
            return value
