"""Replies of the Messages API, written: as events, or whole."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from kvstet.dialects.failures import anthropic_error
from kvstet.dialects.messages.blocks import input_of
from kvstet.dialects.names import client_names, wire_id
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
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
from kvstet.dialects.request import ANTHROPIC_FORMAT, Request
from kvstet.dialects.seals import carrier_of
from kvstet.dialects.sequence import Sequencer
from kvstet.dialects.usage import messages_usage
from kvstet.dialects.values import Object, text, to_json
from kvstet.dialects.whole import Reply
from kvstet.types import Usage

Event = dict[str, Any]
_Kind = Literal["text", "thinking", "tool_use"]

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


class MessagesWriter:
    """One streamed reply. Arguments are passed on as they come, also where they are no JSON."""

    def __init__(self, request: Request) -> None:
        self._sequence = Sequencer()
        self._blocks = _Blocks(client_names(request.tools))
        self._model = request.model
        self._usage = Usage()
        self._has_begun = False

    def __repr__(self) -> str:
        return f"MessagesWriter(begun={self._has_begun}, {self._blocks!r})"

    def feed(self, delta: Delta) -> bytes:
        events = [event for ready in self._sequence.feed(delta) for event in self._events(ready)]
        return b"".join(map(_encoded, events))

    def _events(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ReplyBegin(model=model):
                self._model = model or self._model
                yield from self._opening()
            case UsageNews(usage):
                self._usage = usage
            case Failure():
                yield anthropic_error(delta)
            case ReplyEnd():
                yield from self._opening()
                yield from self._blocks.close()
                yield self._ending(delta)
                yield {"type": "message_stop"}
            case _:
                yield from self._opening()
                yield from self._blocks.accept(delta)

    def _opening(self) -> Iterator[Event]:
        if not self._has_begun:
            self._has_begun = True
            # Nothing is known of the usage yet, and it has to be there; the end tells it.
            empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
            message = {**_head(self._model), **empty, "usage": messages_usage(self._usage)}
            yield {"type": "message_start", "message": message}

    def _ending(self, end: ReplyEnd) -> Event:
        delta = _stop(end, has_refused=self._blocks.has_refused)
        return {"type": "message_delta", "delta": delta, "usage": messages_usage(self._usage)}


class _Blocks:
    """The content of one reply, one block after the other. Text that is nothing but white space makes no block."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.has_refused = False
        self._names = names
        self._num_blocks = 0
        self._open: _Kind | None = None
        self._space = ""

    def __repr__(self) -> str:
        return f"{self._num_blocks} blocks, open={self._open}"

    def accept(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case TextDelta(said):
                yield from self._say(said)
            case RefusalDelta(said):
                self.has_refused = True
                yield from self._say(said)
            case ReasoningDelta(said):
                if self._open != "thinking":
                    yield from self._begin("thinking", _THINKING)
                yield self._delta({"type": "thinking_delta", "thinking": said})
            case ReasoningSeal(detail):
                yield from self._seal(detail)
            case CallBegin(_, id, name):
                yield from self._begin("tool_use", _tool_use(id, self._names.get(name, name)))
            case ArgumentsDelta(_, json):
                yield self._delta({"type": "input_json_delta", "partial_json": json})
            case _:
                yield from self.close()

    def close(self) -> Iterator[Event]:
        """End the open block, if there is one. Thinking that nobody sealed says so in its signature."""
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": carrier_of([])})
        yield from self._stop()

    def _stop(self) -> Iterator[Event]:
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._num_blocks - 1}
        self._open, self._space = None, ""

    def _say(self, said: str) -> Iterator[Event]:
        if self._open != "text":
            self._space += said
            if not self._space.strip():
                return
            said = self._space
            yield from self._begin("text", {"type": "text", "text": ""})
        yield self._delta({"type": "text_delta", "text": said})

    def _seal(self, detail: Object) -> Iterator[Event]:
        if self._open == "thinking" and not _is_redacted(detail):
            yield self._delta({"type": "signature_delta", "signature": _signature(detail)})
            yield from self._stop()
        elif text(detail.get("signature")) and detail.get("format") == ANTHROPIC_FORMAT:
            # Thinking that is not shown has a signature all the same.
            yield from self._begin("thinking", _THINKING)
            yield self._delta({"type": "signature_delta", "signature": _signature(detail)})
            yield from self._stop()
        else:
            yield from self._begin(None, _redacted(detail))

    def _begin(self, kind: _Kind | None, block: dict[str, Any]) -> Iterator[Event]:
        yield from self.close()
        self._num_blocks += 1
        yield {"type": "content_block_start", "index": self._num_blocks - 1, "content_block": block}
        self._open = kind
        if kind is None:
            yield {"type": "content_block_stop", "index": self._num_blocks - 1}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._num_blocks - 1, "delta": delta}


_THINKING = {"type": "thinking", "thinking": "", "signature": ""}


def write_reply(request: Request, reply: Reply) -> dict[str, Any]:
    """A whole message. Arguments that are no JSON object come as `kvstet.dialects.messages.blocks.INVALID_JSON`."""
    names = client_names(request.tools)
    content: list[dict[str, Any]] = [*_thinking(reply)]
    content += [{"type": "text", "text": said} for said in (reply.text, reply.refusal) if said.strip()]
    for call in reply.calls:
        content.append({**_tool_use(call.id, names.get(call.name, call.name)), "input": input_of(call.arguments)})
    return {
        **_head(reply.model or request.model),
        "content": content,
        **_stop(reply.end or ReplyEnd("stop"), has_refused=bool(reply.refusal)),
        "usage": messages_usage(reply.usage),
    }


def _thinking(reply: Reply) -> Iterator[dict[str, Any]]:
    for said, detail in reply.thoughts():
        if detail is None:
            yield {"type": "thinking", "thinking": said, "signature": carrier_of([])}
        elif _is_redacted(detail) or (not said and detail.get("type") == "reasoning.encrypted"):
            yield _redacted(detail)
        else:
            yield {"type": "thinking", "thinking": said, "signature": _signature(detail)}


def _head(model: str) -> dict[str, Any]:
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}


def _stop(end: ReplyEnd, *, has_refused: bool) -> dict[str, Any]:
    reason = _REASONS.get(end.reason) or ("stop_sequence" if end.stop_string else "end_turn")
    return {"stop_reason": "refusal" if has_refused else reason, "stop_sequence": end.stop_string}


def _tool_use(id: str, name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": wire_id(id), "name": name, "input": {}}


def _signature(detail: Object) -> str:
    """Anthropic's own, or one that carries another vendor's seal. Its text stands beside it."""
    if detail.get("format") == ANTHROPIC_FORMAT and detail.get("signature"):
        return text(detail.get("signature"))
    return carrier_of([{key: value for key, value in detail.items() if key not in ("text", "summary")}])


def _is_redacted(detail: Object) -> bool:
    """By Anthropic itself."""
    return detail.get("type") == "reasoning.encrypted" and detail.get("format") == ANTHROPIC_FORMAT


def _redacted(detail: Object) -> dict[str, Any]:
    own = text(detail.get("data")) if detail.get("format") == ANTHROPIC_FORMAT else ""
    return {"type": "redacted_thinking", "data": own or carrier_of([detail])}


def _encoded(event: Event) -> bytes:
    return f"event: {event['type']}\ndata: {to_json(event)}\n\n".encode(errors="replace")
