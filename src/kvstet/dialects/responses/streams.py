"""Replies of the Responses API, written: as events, or whole.

An error in a stream is told twice, as OpenAI does: as an ``error`` event, on which the SDKs raise, and as
``response.failed``, which is what Codex looks for.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kvstet.dialects.failures import openai_error
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    Failure,
    ReasoningDelta,
    ReasoningSeal,
    RefusalDelta,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.request import Request
from kvstet.dialects.responses.items import Event, GrowingItem, Item, MessageItem, ReasoningItem, Status, call_item
from kvstet.dialects.sequence import Sequencer
from kvstet.dialects.tools import ToolName, tool_names
from kvstet.dialects.usage import responses_usage
from kvstet.dialects.values import to_json
from kvstet.dialects.whole import Reply
from kvstet.types import Usage

Body = dict[str, Any]

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesWriter:
    """One streamed reply."""

    def __init__(self, request: Request) -> None:
        self._sequence = Sequencer()
        self._output = _Output(request)
        self._frame = _frame(request)
        self._usage = Usage()
        self._has_begun = False
        self._num_events = 0

    def __repr__(self) -> str:
        return f"ResponsesWriter({self._frame['id']}, {self._num_events} events)"

    def feed(self, delta: Delta) -> bytes:
        ready = self._sequence.feed(delta)
        return b"".join(self._encoded(event) for delta in ready for event in self._events(delta))

    def _events(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ReplyBegin(model=model):
                self._frame["model"] = model or self._frame["model"]
                yield from self._opening()
            case UsageNews(usage):
                self._usage = usage
            case Failure():
                yield from self._failed(delta)
            case ReplyEnd():
                yield from self._opening()
                yield from self._output.end(_status(delta))
                body = _ended(self._frame, self._output.items, delta, self._usage)
                yield {"type": f"response.{body['status']}", "response": body}
            case _:
                yield from self._opening()
                yield from self._output.add(delta)

    def _opening(self) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            yield {"type": "response.created", "response": self._frame}
            yield {"type": "response.in_progress", "response": self._frame}

    def _failed(self, failure: Failure) -> Iterator[Event]:
        error = openai_error(failure)["error"]
        yield {**error, "type": "error", "error": error}
        code = failure.code or "server_error"
        body = {**self._frame, "status": "failed", "output": self._output.items}
        yield {"type": "response.failed", "response": {**body, "error": {"code": code, "message": failure.message}}}

    def _encoded(self, event: Event) -> bytes:
        numbered = {"type": event["type"], "sequence_number": self._num_events, **event}
        self._num_events += 1
        return f"event: {event['type']}\ndata: {to_json(numbered)}\n\n".encode()


class _Output:
    """The items of a reply, one after the other."""

    def __init__(self, request: Request) -> None:
        self._names = tool_names(request.tools)
        self._ended: list[Item] = []
        self._item: GrowingItem | None = None

    def __repr__(self) -> str:
        return f"_Output({len(self._ended)} ended, {self._item!r})"

    @property
    def items(self) -> list[Item]:
        return [*self._ended, *([self._item.data] if self._item is not None else [])]

    def add(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ReasoningDelta(said):
                yield from self._grow(said, ReasoningItem, lambda item: isinstance(item, ReasoningItem))
            case ReasoningSeal(detail):
                if not isinstance(self._item, ReasoningItem):
                    yield from self._begin(ReasoningItem())
                if isinstance(self._item, ReasoningItem):
                    self._item.seal = detail
                yield from self.end("completed")
            case TextDelta(said):
                yield from self._say(said, MessageItem("output_text"))
            case RefusalDelta(said):
                yield from self._say(said, MessageItem("refusal"))
            case CallBegin(_, id, name):
                yield from self._begin(call_item(id, self._names.get(name) or ToolName(name)))
            case ArgumentsDelta(_, json) if self._item is not None:
                yield from self._placed(self._item.feed(json))
            case CallEnd():
                yield from self.end("completed")
            case _:
                return

    def end(self, status: Status) -> Iterator[Event]:
        """Nothing more comes of the item that grows now."""
        if self._item is not None:
            yield from self._placed(self._item.end(status))
            self._ended.append(self._item.data)
            self._item = None

    def _say(self, said: str, new: MessageItem) -> Iterator[Event]:
        kind = new.kind
        yield from self._grow(said, lambda: new, lambda item: isinstance(item, MessageItem) and item.kind == kind)

    def _grow(
        self, said: str, new: Callable[[], GrowingItem], fits: Callable[[GrowingItem | None], bool]
    ) -> Iterator[Event]:
        if not fits(self._item):
            yield from self._begin(new())
        if self._item is not None:
            yield from self._placed(self._item.feed(said))

    def _begin(self, item: GrowingItem) -> Iterator[Event]:
        yield from self.end("completed")
        self._item = item
        yield from self._placed(item.begin())

    def _placed(self, events: Iterable[Event]) -> Iterator[Event]:
        index = len(self._ended)
        return ({**event, "output_index": index} for event in events)


def write_reply(request: Request, reply: Reply) -> Body:
    """A whole response."""
    output, end = _Output(request), reply.end or ReplyEnd("stop")
    for delta in _deltas(reply):
        _run(output.add(delta))
    _run(output.end(_status(end)))
    frame = _frame(request)
    return _ended({**frame, "model": reply.model or frame["model"]}, output.items, end, reply.usage)


def _deltas(reply: Reply) -> Iterator[Delta]:
    """The reply as it could have come: each seal behind its text."""
    for said, detail in reply.thoughts():
        if said:
            yield ReasoningDelta(said)
        if detail is not None:
            yield ReasoningSeal({key: value for key, value in detail.items() if key not in ("text", "summary")})
    yield from (TextDelta(said) for said in (reply.text,) if said)
    yield from (RefusalDelta(said) for said in (reply.refusal,) if said)
    for index, call in enumerate(reply.calls):
        yield CallBegin(index, call.id, call.name)
        yield ArgumentsDelta(index, call.arguments)
        yield CallEnd(index)


def _run(events: Iterator[Event]) -> None:
    for _ in events:
        pass


def _status(end: ReplyEnd) -> Status:
    return "incomplete" if end.reason in _INCOMPLETE else "completed"


def _ended(frame: Body, items: list[Item], end: ReplyEnd, usage: Usage) -> Body:
    reason = _INCOMPLETE.get(end.reason)
    return {
        **frame,
        "status": _status(end),
        "output": items,
        "completed_at": int(time.time()) if reason is None else None,
        "incomplete_details": None if reason is None else {"reason": reason},
        "usage": responses_usage(usage),
    }


def _frame(request: Request) -> Body:
    """What is known of the response before it comes. Tools are not told back: the request has them."""
    terms = request.terms
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": terms.max_output_tokens,
        "metadata": dict(terms.metadata or {}),
        "model": request.model,
        "output": [],
        "parallel_tool_calls": terms.allows_parallel_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": terms.reasoning and terms.reasoning.effort, "summary": None},
        "store": False,
        "temperature": terms.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": terms.tool_choice.mode if terms.tool_choice else "auto",
        "tools": [],
        "top_p": terms.top_p,
        "truncation": "disabled",
        "usage": None,
    }
