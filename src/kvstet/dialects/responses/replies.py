"""Replies of the Responses API, read. What a stream did not tell in pieces is taken from what it tells at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from kvstet.dialects.request import OPENAI_FORMAT
from kvstet.dialects.sse import SseEvent
from kvstet.dialects.tools import ToolName, arguments_of_input
from kvstet.dialects.values import Object, from_json, integer, obj, objects, optional_text, text, to_json
from kvstet.providers.usage import usage_of

_CALLS = ("function_call", "custom_tool_call")
_ENDS = ("response.completed", "response.incomplete", "response.done")
_FAILED = ("failed", "cancelled")

_REASONS: Mapping[str, EndReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}


class ResponsesReader:
    """One reply, as a stream or whole. Items of tools that ran at the vendor are left out."""

    def __init__(self) -> None:
        self._items: dict[int | str, _Item] = {}
        self._num_items = 0
        self._num_calls = 0
        self._has_begun = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"ResponsesReader({self._num_items} items, over={self._is_over})"

    @property
    def is_complete(self) -> bool:
        return self._is_over

    def feed(self, event: SseEvent) -> list[Delta]:
        if self._is_over or event.data.strip() == "[DONE]":
            return []
        try:
            value = obj(from_json(event.data))
        except ValueError:
            return self._failed(unreadable("sent an event that is no JSON"))
        return [*self._event(value, text(value.get("type")) or event.name)]

    def finish(self) -> list[Delta]:
        return [] if self._is_over else self._failed(truncated())

    def whole(self, body: Mapping[str, Any]) -> list[Delta]:
        if not isinstance(body.get("output"), list) and not body.get("error"):
            return self._failed(unreadable("sent a reply without output"))
        return [*self._begin(body), *self._end(body)]

    def _event(self, event: Object, kind: str) -> Iterator[Delta]:
        match kind:
            case "response.created" | "response.in_progress" | "response.queued":
                yield from self._begin(obj(event.get("response")))
            case "response.output_item.added":
                yield from self._added(_key(event), obj(event.get("item")))
            case "response.output_item.done":
                yield from self._done(_key(event), obj(event.get("item")))
            case "error":
                # Documented are the fields in the event itself; OpenAI's server has them in ``error``.
                yield from self._failed(failure_in(None, event.get("error") or event))
            case "response.failed":
                response = obj(event.get("response"))
                yield from self._failed(failure_in(None, response.get("error")))
            case _ if kind in _ENDS:
                yield from self._end(obj(event.get("response")))
            case _:
                if item := self._items.get(_key(event)):
                    yield from item.grow(event, kind)

    def _begin(self, response: Object) -> Iterator[Delta]:
        if not self._has_begun:
            self._has_begun = True
            yield ReplyBegin(text(response.get("model")), text(response.get("id")))

    def _added(self, key: int | str, fields: Object) -> Iterator[Delta]:
        yield from self._begin({})
        self._num_items += 1
        item = self._items[key] = _Item(fields, self._num_calls)
        self._num_calls += item.is_call
        yield from item.begin()

    def _done(self, key: int | str, fields: Object) -> Iterator[Delta]:
        if key not in self._items:
            yield from self._added(key, fields)
        yield from self._items[key].end(fields)

    def _end(self, response: Object) -> Iterator[Delta]:
        if response.get("error") or response.get("status") in _FAILED:
            yield from self._failed(failure_in(None, response.get("error"), "The upstream gave up the reply."))
            return
        output = objects(response.get("output"))
        if not self._num_items:
            for index, item in enumerate(output):
                yield from self._done(index, item)
        for item in self._items.values():
            yield from item.end({})
        if usage := obj(response.get("usage")):
            yield UsageNews(usage_of({"usage": usage}))
        self._is_over = True
        yield ReplyEnd(self._reason(response))

    def _reason(self, response: Object) -> EndReason:
        if response.get("status") == "incomplete":
            return _REASONS.get(text(obj(response.get("incomplete_details")).get("reason")), "length")
        return "tool_calls" if self._num_calls else "stop"

    def _failed(self, failure: Failure) -> list[Delta]:
        self._is_over = True
        return [failure]


def _key(event: Object) -> int | str:
    index = integer(event.get("output_index"))
    return text(event.get("item_id")) if index is None else index


class _Item:
    """One item of the output."""

    def __init__(self, fields: Object, call: int) -> None:
        self.is_call = fields.get("type") in _CALLS
        self._fields = fields
        self._kind = text(fields.get("type"))
        self._call = call
        self._told: set[str] = set()
        """What has come piece by piece: kinds of events, without ``.delta``."""
        self._is_over = False

    def __repr__(self) -> str:
        return f"_Item({self._kind!r}, over={self._is_over})"

    def begin(self) -> Iterator[Delta]:
        if not self.is_call:
            return
        fields = self._fields
        name = ToolName(text(fields.get("name")), optional_text(fields.get("namespace"))).neutral
        yield CallBegin(self._call, text(fields.get("call_id")) or text(fields.get("id")), name)

    def grow(self, event: Object, kind: str) -> Iterator[Delta]:
        piece = text(event.get("delta"))
        if self._is_over or not kind.endswith(".delta") or not piece:
            return
        told = kind.removeprefix("response.").removesuffix(".delta")
        is_first = told not in self._told
        self._told.add(told)
        match told:
            case "output_text":
                yield TextDelta(piece)
            case "refusal":
                yield RefusalDelta(piece)
            case "reasoning_summary_text" | "reasoning_text":
                yield from self._think(event, piece, told)
            case "function_call_arguments":
                yield ArgumentsDelta(self._call, piece)
            case "custom_tool_call_input":
                # Pieces of a JSON string, within the object that stands for the input.
                yield ArgumentsDelta(self._call, ('{"input":"' if is_first else "") + to_json(piece)[1:-1])
            case _:
                return

    def _think(self, event: Object, piece: str, told: str) -> Iterator[Delta]:
        """A server that tells the thoughts and a summary of them is read once. Parts stand in paragraphs."""
        other = "reasoning_text" if told == "reasoning_summary_text" else "reasoning_summary_text"
        if other in self._told:
            self._told.discard(told)
            return
        part = f"part {event.get('summary_index') or event.get('content_index') or 0}"
        is_next_part = part not in self._told and any(known.startswith("part ") for known in self._told)
        self._told.add(part)
        yield ReasoningDelta(f"\n\n{piece}" if is_next_part else piece)

    def end(self, fields: Object) -> Iterator[Delta]:
        """With the item as it has become; empty where that is not told."""
        if self._is_over:
            return
        self._is_over = True
        fields = fields or self._fields
        match self._kind:
            case "message":
                yield from self._rest_of_message(fields)
            case "reasoning":
                yield from self._rest_of_reasoning(fields)
            case "function_call":
                if "function_call_arguments" not in self._told:
                    yield ArgumentsDelta(self._call, text(fields.get("arguments")) or "{}")
                yield CallEnd(self._call)
            case "custom_tool_call":
                is_told = "custom_tool_call_input" in self._told
                yield ArgumentsDelta(self._call, '"}' if is_told else arguments_of_input(text(fields.get("input"))))
                yield CallEnd(self._call)
            case _:
                return

    def _rest_of_message(self, fields: Object) -> Iterator[Delta]:
        for part in objects(fields.get("content")):
            if "output_text" not in self._told and text(part.get("text")):
                yield TextDelta(text(part.get("text")))
            if "refusal" not in self._told and text(part.get("refusal")):
                yield RefusalDelta(text(part.get("refusal")))

    def _rest_of_reasoning(self, fields: Object) -> Iterator[Delta]:
        if not self._told:
            parts = objects(fields.get("content")) or objects(fields.get("summary"))
            if said := "\n\n".join(text(part.get("text")) for part in parts):
                yield ReasoningDelta(said)
        if sealed := text(fields.get("encrypted_content")):
            id = text(fields.get("id")) or text(self._fields.get("id"))
            yield ReasoningSeal({"type": "reasoning.encrypted", "data": sealed, "id": id, "format": OPENAI_FORMAT})
