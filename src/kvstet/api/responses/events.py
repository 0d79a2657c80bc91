"""Answers to one request: as a stream of events, or whole.

An error in a stream is told twice, as OpenAI does: as an ``error`` event, on which the SDKs raise and by which opencode
tells what failed, and as ``response.failed``, which is what Codex looks for. What the engine refuses at once is a plain
HTTP error all the same, since every client tries again after those.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstet.api.envelopes import ErrorAnswer, openai_envelope
from kvstet.api.generation import EndReason, Generation, Piece
from kvstet.api.hangup import cancel_all
from kvstet.api.job import Job
from kvstet.api.report import Report, report_of
from kvstet.api.responses.items import Event, GrowingItem, MessageItem, ReasoningItem, Status, call_item, item_id
from kvstet.api.responses.requests import Item
from kvstet.api.responses.tools import Toolbox
from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta
from kvstet.types import Tokenizer

_GRACE_SECONDS = 0.05
"""How long a stream waits for a refusal before it begins; nobody sees the difference."""

_encode = msgspec.json.Encoder().encode

Body = dict[str, Any]
"""A response as the API has it."""

Keep = Callable[[Body], None]
"""Called with a response that is over."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a response before it is computed."""

    number: str
    """What its id and those of its items are made of."""
    frame: Body
    """The fields of its body."""
    toolbox: Toolbox
    seals_reasoning: bool
    tokenizer: Tokenizer = field(repr=False)


class Output:
    """The items of a reply, which grow with its deltas and tell so in events."""

    def __init__(self, head: Head) -> None:
        self.reasoning = ""
        self._head = head
        self._ended: list[Item] = []
        self._item: GrowingItem | None = None

    @property
    def items(self) -> list[Item]:
        """All that were begun."""
        return [*self._ended, *([self._item.data] if self._item is not None else [])]

    def add(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ReasoningDelta(text) if text:
                self.reasoning += text
                if not isinstance(self._item, ReasoningItem):
                    yield from self._begin(self._new_reasoning)
                yield from self._feed(text)
            case TextDelta(text) if text:
                if not isinstance(self._item, MessageItem):
                    yield from self._begin(self._new_message)
                yield from self._feed(text)
            case CallBegin(name=name):
                tool = self._head.toolbox.named(name)
                yield from self._begin(lambda index: call_item(self._head.number, index, tool))
            case ArgumentsDelta(json=json) if json:
                yield from self._feed(json)
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

    def _begin(self, new: Callable[[int], GrowingItem]) -> Iterator[Event]:
        yield from self.end("completed")
        self._item = new(len(self._ended))
        yield from self._placed(self._item.begin())

    def _feed(self, text: str) -> Iterator[Event]:
        if self._item is not None:
            yield from self._placed(self._item.feed(text))

    def _placed(self, events: Iterator[Event]) -> Iterator[Event]:
        index = len(self._ended)
        return ({**event, "output_index": index} for event in events)

    def _new_reasoning(self, index: int) -> GrowingItem:
        return ReasoningItem(item_id("rs", self._head.number, index), is_sealed=self._head.seals_reasoning)

    def _new_message(self, index: int) -> GrowingItem:
        return MessageItem(item_id("msg", self._head.number, index))


class Stream:
    """The events of one response, numbered and encoded."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._output = Output(head)
        self._num_events = 0

    def __repr__(self) -> str:
        return f"Stream({self._head.number}, {self._num_events} events, {len(self._output.items)} items)"

    def opening(self) -> bytes:
        body = _body(self._head, "in_progress", [])
        return self._event({"type": "response.created", "response": body}) + self._event(
            {"type": "response.in_progress", "response": body}
        )

    def news(self, piece: Piece) -> bytes:
        return self._events(event for delta in piece.deltas for event in self._output.add(delta))

    def ending(self, end: EndReason | None, costs: Report, keep: Keep) -> bytes:
        """Ends what is open, and then the response."""
        last = self._events(self._output.end(_status_of_last(end)))
        body = _ended_body(self._head, self._output, end, costs)
        keep(body)
        return last + self._event({"type": f"response.{body['status']}", "response": body})

    def failure(self, answer: ErrorAnswer) -> bytes:
        """The response is over before its time, and nothing of it is kept."""
        error = openai_envelope(answer)["error"]
        body = _body(self._head, "failed", self._output.items, error={"code": answer.code, "message": answer.message})
        # Documented is the error's fields in the event; OpenAI's server, and clients, have them in ``error``.
        told = self._event({**error, "type": "error", "error": error})
        return told + self._event({"type": "response.failed", "response": body})

    def _events(self, events: Iterator[Event]) -> bytes:
        return b"".join(map(self._event, events))

    def _event(self, event: Event) -> bytes:
        numbered = {"type": event["type"], "sequence_number": self._num_events, **event}
        self._num_events += 1
        return b"event: " + event["type"].encode() + b"\ndata: " + _encode(numbered) + b"\n\n"


async def stream(events: Stream, job: Job, generation: Generation, keep: Keep) -> AsyncGenerator[bytes, None]:
    """Events of the response; those that are ready together in one item."""
    end: EndReason | None = None
    async with aclosing(generation.pieces()) as news:
        first = asyncio.ensure_future(anext(news, None))
        try:
            await asyncio.wait({first}, timeout=_GRACE_SECONDS)
            if not first.done() or first.exception() is None:
                yield events.opening()
            pieces = await first
        finally:
            await cancel_all(first)
        while pieces is not None:
            for piece in pieces:
                end = piece.end or end
                if data := events.news(piece):
                    yield data
            pieces = await anext(news, None)
    yield events.ending(end, report_of(job, generation), keep)


async def whole(head: Head, job: Job, generation: Generation, keep: Keep) -> Body:
    """The response in one piece."""
    output, end = Output(head), None
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            for piece in pieces:
                if piece.is_anew:
                    output = Output(head)
                for delta in piece.deltas:
                    _run(output.add(delta))
                end = piece.end
    _run(output.end(_status_of_last(end)))
    body = _ended_body(head, output, end, report_of(job, generation))
    keep(body)
    return body


def _run(events: Iterator[Event]) -> None:
    for _ in events:
        pass


def _status_of_last(end: EndReason | None) -> Status:
    return "completed" if end == "stop" else "incomplete"


def _ended_body(head: Head, output: Output, end: EndReason | None, costs: Report) -> Body:
    is_whole = end == "stop"
    return _body(
        head,
        "completed" if is_whole else "incomplete",
        output.items,
        completed_at=int(time.time()) if is_whole else None,
        incomplete_details=None if is_whole else {"reason": "max_output_tokens"},
        usage=_usage(head, output, costs),
        timings=costs.timings,
        kvstet=costs.kvstet,
    )


def _body(head: Head, status: str, items: list[Item], **more: Any) -> Body:
    return {**head.frame, "status": status, "output": items, **more}


def _usage(head: Head, output: Output, costs: Report) -> dict[str, Any]:
    num_prompt = costs.reuse.num_prompt_tokens
    return {
        "input_tokens": num_prompt,
        "input_tokens_details": {"cached_tokens": costs.reuse.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": costs.num_new_tokens,
        "output_tokens_details": {"reasoning_tokens": _num_reasoning_tokens(head, output, costs)},
        "total_tokens": num_prompt + costs.num_new_tokens,
    }


def _num_reasoning_tokens(head: Head, output: Output, costs: Report) -> int:
    """As many as its text has when it is tokenised by itself, which is at most a few more or less than there were."""
    if not output.reasoning:
        return 0
    tokens = head.tokenizer.tokenize(output.reasoning, add_special=False, parse_special=False)
    return min(len(tokens), costs.num_new_tokens)
