"""Replies of the Chat API, read.

Servers differ in how they cut calls: id and name once or in every fragment, fragments of several calls in turn, no
``index``, or the same index for all. See `_Calls`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvstet.dialects.failures import failure_in, truncated, unreadable
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    EndReason,
    Failure,
    ReasoningDelta,
    ReasoningSeal,
    RefusalDelta,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.sse import SseEvent
from kvstet.dialects.tools import arguments_text
from kvstet.dialects.values import Object, from_json, integer, items, obj, objects, text
from kvstet.providers.usage import usage_of
from kvstet.types import Usage

_DONE = "[DONE]"

_REASONS: Mapping[str, EndReason] = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}

_NOT_SEALED = ("text", "summary", "index")


class ChatReader:
    """One reply, as a stream or whole. Of several choices only the first is read."""

    def __init__(self) -> None:
        self._has_begun = False
        self._reason: EndReason | None = None
        self._is_over = False
        self._calls = _Calls()

    def __repr__(self) -> str:
        return f"ChatReader(reason={self._reason}, over={self._is_over}, {self._calls!r})"

    @property
    def is_complete(self) -> bool:
        return self._is_over or self._reason is not None

    def feed(self, event: SseEvent) -> list[Delta]:
        if self._is_over:
            return []
        if event.data.strip() == _DONE:
            # Some servers forget the finish_reason, but none says that it is done before it is.
            return self._ending() if self._has_begun else self._failed(truncated())
        try:
            value = from_json(event.data)
        except ValueError:
            return self._failed(unreadable("sent an event that is no JSON"))
        return self._chunk(obj(value), "delta", is_error=event.name == "error")

    def finish(self) -> list[Delta]:
        if self._is_over:
            return []
        return self._ending() if self._reason is not None else self._failed(truncated())

    def whole(self, body: Mapping[str, Any]) -> list[Delta]:
        deltas = self._chunk(body, "message")
        if self._is_over:
            return deltas
        if not objects(body.get("choices")):
            return self._failed(unreadable("sent a reply without choices"))
        return [*deltas, *self._ending()]

    def _chunk(self, chunk: Object, key: str, *, is_error: bool = False) -> list[Delta]:
        if chunk.get("error") or is_error:
            return self._failed(failure_in(None, chunk.get("error") or chunk))
        deltas = [*self._beginning(chunk)]
        for choice in objects(chunk.get("choices")):
            if not choice.get("index"):
                deltas += self._choice(choice, key)
                deltas += _usage(choice)
        return [*deltas, *_usage(chunk), *_usage(obj(chunk.get("x_groq")))]

    def _beginning(self, chunk: Object) -> Iterator[Delta]:
        if not self._has_begun:
            self._has_begun = True
            yield ReplyBegin(text(chunk.get("model")), text(chunk.get("id")))

    def _choice(self, choice: Object, key: str) -> Iterator[Delta]:
        said = obj(choice.get(key))
        yield from _reasoning(said)
        yield from _content(said.get("content"))
        if refusal := text(said.get("refusal")):
            yield RefusalDelta(refusal)
        for fragment in _fragments(said):
            yield from self._calls.add(fragment, is_whole=key == "message")
        if reason := text(choice.get("finish_reason")):
            self._reason = _REASONS.get(reason, "stop")

    def _ending(self) -> list[Delta]:
        """The end of calls is nowhere told. Some servers end a reply that calls with ``stop``."""
        self._is_over = True
        reason = self._reason or "stop"
        ends = [*self._calls.end()]
        is_calling = reason == "stop" and self._calls.num_begun > 0
        return [*ends, ReplyEnd("tool_calls" if is_calling else reason)]

    def _failed(self, failure: Failure) -> list[Delta]:
        self._is_over = True
        return [failure]


@dataclass(slots=True)
class _Call:
    index: int
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list[str])
    """Of its arguments."""
    has_begun: bool = False
    is_over: bool = False

    @property
    def is_whole(self) -> bool:
        """Its arguments are a JSON object, so nothing can follow."""
        arguments = "".join(self.pieces).strip()
        if not (arguments.startswith("{") and arguments.endswith("}")):
            return False
        try:
            from_json(arguments)
        except ValueError:
            return False
        return True


class _Calls:
    """The calls of one reply, out of fragments.

    A fragment belongs to the call of its index, unless it brings another id and another name; without an index to the
    call of its id, and without either to the latest one. A call ends when the next one begins, if its arguments are
    whole by then, or else with the reply, since its fragments may still come.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_key: dict[int | str, _Call] = {}

    def __repr__(self) -> str:
        return f"{len(self._calls)} calls"

    @property
    def num_begun(self) -> int:
        return sum(call.has_begun for call in self._calls)

    def add(self, fragment: Object, *, is_whole: bool) -> Iterator[Delta]:
        function = obj(fragment.get("function"))
        id, name = text(fragment.get("id")), text(function.get("name"))
        # In a reply that is not streamed each entry is a call, whatever index some servers give it.
        call = None if is_whole else self._found(integer(fragment.get("index")), id, name)
        if call is None:
            yield from self._end_whole_ones()
            call = self._begun(integer(fragment.get("index")), id)
        call.id, call.name = call.id or id, call.name or name
        piece = arguments_text(function.get("arguments"))
        if call.is_over:
            return
        if piece:
            call.pieces.append(piece)
        if call.has_begun:
            yield from _pieces(call.index, piece)
        elif call.name:
            yield from _opening(call)

    def end(self) -> Iterator[Delta]:
        for call in self._calls:
            if not call.has_begun and call.pieces:
                yield from _opening(call)
            if call.has_begun and not call.is_over:
                call.is_over = True
                yield CallEnd(call.index)

    def _found(self, index: int | None, id: str, name: str) -> _Call | None:
        if index is None:
            return self._by_key.get(id) if id else (self._calls[-1] if self._calls and not name else None)
        call = self._by_key.get(index)
        is_another = call is not None and id and call.id and id != call.id and name
        return None if is_another else call

    def _begun(self, index: int | None, id: str) -> _Call:
        call = _Call(len(self._calls))
        self._calls.append(call)
        if index is not None:
            self._by_key[index] = call
        if id:
            self._by_key[id] = call
        return call

    def _end_whole_ones(self) -> Iterator[Delta]:
        for call in self._calls:
            if call.has_begun and not call.is_over and call.is_whole:
                call.is_over = True
                yield CallEnd(call.index)


def _opening(call: _Call) -> Iterator[Delta]:
    call.has_begun = True
    call.id = call.id or f"call_{secrets.token_hex(12)}"
    yield CallBegin(call.index, call.id, call.name)
    yield from _pieces(call.index, "".join(call.pieces))


def _pieces(index: int, piece: str) -> Iterator[Delta]:
    if piece:
        yield ArgumentsDelta(index, piece)


def _fragments(said: Object) -> list[Object]:
    legacy = obj(said.get("function_call"))
    return [*objects(said.get("tool_calls")), *([{"index": 0, "function": legacy}] if legacy else [])]


def _reasoning(said: Object) -> Iterator[Delta]:
    """OpenRouter says it twice: plainly, and in details that may hold seals."""
    plain = text(said.get("reasoning_content")) or text(said.get("reasoning"))
    details = objects(said.get("reasoning_details"))
    told = plain or "".join(text(detail.get("text")) or text(detail.get("summary")) for detail in details)
    if told:
        yield ReasoningDelta(told)
    for detail in details:
        if detail.get("signature") or detail.get("data"):
            yield ReasoningSeal({key: value for key, value in detail.items() if key not in _NOT_SEALED})


def _content(content: object) -> Iterator[Delta]:
    """A text, or Mistral's list of parts, of which some are thoughts."""
    if isinstance(content, str):
        if content:
            yield TextDelta(content)
        return
    for part in items(content):
        fields = obj(part)
        thoughts = "".join(text(thought.get("text")) for thought in objects(fields.get("thinking")))
        if thoughts:
            yield ReasoningDelta(thoughts)
        if said := text(part) or text(fields.get("text")):
            yield TextDelta(said)


def _usage(fields: Object) -> Iterator[Delta]:
    """llama.cpp tells it in ``timings``, too."""
    told = {key: fields[key] for key in ("usage", "timings") if fields.get(key)}
    if told and (usage := usage_of(told)) != Usage():
        yield UsageNews(usage)
