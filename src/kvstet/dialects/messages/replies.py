"""Replies of the Messages API, read. A whole reply is read as the stream that it could have been."""

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
from kvstet.dialects.request import ANTHROPIC_FORMAT
from kvstet.dialects.sse import SseEvent
from kvstet.dialects.values import Object, from_json, integer, obj, objects, optional_text, present, text, to_json
from kvstet.providers.usage import usage_of

_REASONS: Mapping[str, EndReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class MessagesReader:
    """One reply, as a stream or whole. Blocks of tools that ran at the vendor are left out."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._num_calls = 0
        self._usage: dict[str, Any] = {}
        self._end: ReplyEnd | None = None
        self._is_over = False

    def __repr__(self) -> str:
        return f"MessagesReader({len(self._blocks)} blocks, end={self._end}, over={self._is_over})"

    @property
    def is_complete(self) -> bool:
        return self._is_over or self._end is not None

    def feed(self, event: SseEvent) -> list[Delta]:
        if self._is_over:
            return []
        try:
            value = obj(from_json(event.data))
        except ValueError:
            return self._failed(unreadable("sent an event that is no JSON"))
        return [*self._event(value, text(value.get("type")) or event.name)]

    def finish(self) -> list[Delta]:
        if self._is_over:
            return []
        return [*self._ending()] if self._end is not None else self._failed(truncated())

    def whole(self, body: Mapping[str, Any]) -> list[Delta]:
        if body.get("type") == "error" or body.get("error"):
            return self._failed(failure_in(None, body.get("error") or body))
        if not isinstance(body.get("content"), list):
            return self._failed(unreadable("sent a reply without content"))
        deltas = [*self._begin(body)]
        for index, block in enumerate(objects(body.get("content"))):
            deltas += [*self._open(index, block), *self._close(index)]
        return [*deltas, *self._stopped(body, {}), *self._ending()]

    def _event(self, event: Object, kind: str) -> Iterator[Delta]:
        index = integer(event.get("index")) or 0
        match kind:
            case "message_start":
                yield from self._begin(obj(event.get("message")))
            case "content_block_start":
                yield from self._open(index, obj(event.get("content_block")))
            case "content_block_delta":
                if block := self._blocks.get(index):
                    yield from block.grow(obj(event.get("delta")))
            case "content_block_stop":
                yield from self._close(index)
            case "message_delta":
                yield from self._stopped(obj(event.get("delta")), obj(event.get("usage")))
            case "message_stop":
                yield from self._ending()
            case "error":
                yield from self._failed(failure_in(None, event.get("error") or event))
            case _:
                return

    def _begin(self, message: Object) -> Iterator[Delta]:
        yield ReplyBegin(text(message.get("model")), text(message.get("id")))
        yield from self._took(obj(message.get("usage")))

    def _took(self, usage: Object) -> Iterator[Delta]:
        """The figures add up over the stream: later ones replace earlier ones, as far as they are told."""
        if usage:
            self._usage |= present(usage)
            yield UsageNews(usage_of({"usage": self._usage}))

    def _open(self, index: int, block: Object) -> Iterator[Delta]:
        is_call = block.get("type") == "tool_use"
        opened = _Block(block, self._num_calls)
        self._num_calls += is_call
        self._blocks[index] = opened
        return opened.begin()

    def _close(self, index: int) -> Iterator[Delta]:
        block = self._blocks.pop(index, None)
        return iter(()) if block is None else block.end()

    def _stopped(self, delta: Object, usage: Object) -> Iterator[Delta]:
        yield from self._took(usage)
        reason = text(delta.get("stop_reason"))
        if not reason:
            return
        explanation = text(obj(delta.get("stop_details")).get("explanation"))
        if reason == "refusal" and explanation:
            yield RefusalDelta(explanation)
        self._end = ReplyEnd(_REASONS.get(reason, "stop"), optional_text(delta.get("stop_sequence")))

    def _ending(self) -> Iterator[Delta]:
        self._is_over = True
        for index in sorted(self._blocks):
            yield from self._close(index)
        yield self._end or ReplyEnd("stop")

    def _failed(self, failure: Failure) -> list[Delta]:
        self._is_over = True
        return [failure]


class _Block:
    """One content block. Imitators put all of it into its first event; Anthropic has an empty one there."""

    def __init__(self, block: Object, call: int) -> None:
        self._block = block
        self._kind = text(block.get("type"))
        self._call = call
        self._signature = text(block.get("signature"))
        self._has_arguments = False

    def __repr__(self) -> str:
        return f"_Block({self._kind!r})"

    def begin(self) -> Iterator[Delta]:
        block = self._block
        match self._kind:
            case "text" if block.get("text"):
                yield TextDelta(text(block.get("text")))
            case "thinking" if block.get("thinking"):
                yield ReasoningDelta(text(block.get("thinking")))
            case "tool_use":
                yield CallBegin(self._call, text(block.get("id")), text(block.get("name")))
            case _:
                return

    def grow(self, delta: Object) -> Iterator[Delta]:
        match text(delta.get("type")):
            case "text_delta" if self._kind == "text" and delta.get("text"):
                yield TextDelta(text(delta.get("text")))
            case "thinking_delta" if self._kind == "thinking" and delta.get("thinking"):
                yield ReasoningDelta(text(delta.get("thinking")))
            case "signature_delta":
                self._signature += text(delta.get("signature"))
            case "input_json_delta" if self._kind == "tool_use" and delta.get("partial_json"):
                self._has_arguments = True
                yield ArgumentsDelta(self._call, text(delta.get("partial_json")))
            case _:
                return

    def end(self) -> Iterator[Delta]:
        match self._kind:
            case "thinking" if self._signature:
                detail = {"type": "reasoning.text", "signature": self._signature, "format": ANTHROPIC_FORMAT}
                yield ReasoningSeal(detail)
            case "redacted_thinking":
                data = text(self._block.get("data"))
                yield ReasoningSeal({"type": "reasoning.encrypted", "data": data, "format": ANTHROPIC_FORMAT})
            case "tool_use":
                if not self._has_arguments:
                    yield ArgumentsDelta(self._call, to_json(obj(self._block.get("input"))))
                yield CallEnd(self._call)
            case _:
                return
