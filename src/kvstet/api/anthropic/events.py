"""Answers to one Messages request: as a stream of events, or whole.

Both are made of the same block events, so that a whole answer is what a client would have put together itself.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec

from kvstet.api.anthropic.signatures import carrying_signature_of, signature_of
from kvstet.api.body import mend_surrogates
from kvstet.api.envelopes import ErrorAnswer, anthropic_envelope
from kvstet.api.generation import Generation, Piece
from kvstet.api.job import Job
from kvstet.api.report import report_of
from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta
from kvstet.types import Reuse

Event = dict[str, Any]
BlockKind = Literal["thinking", "text", "tool_use"]

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Answer:
    """A job, and how its answer is written."""

    id: str
    model: str
    job: Job
    thinking: Literal["shown", "omitted"] = "shown"
    manages_context: bool = False
    """The client asked for edits of its context, and wants to hear which were made."""


def encode(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _json(event))


PING = encode({"type": "ping"})


def encode_error(answer: ErrorAnswer) -> bytes:
    """An error in the middle of a stream; the official SDKs raise on it."""
    return encode(anthropic_envelope(answer))


class Blocks:
    """The content of one reply: deltas come in, events of content blocks go out. One block is open at a time.

    Text that is nothing but white space makes no block. The API has no such blocks, and clients drop them.
    """

    def __init__(self, thinking: Literal["shown", "omitted"]) -> None:
        self.has_called = False
        self._shows_thinking = thinking == "shown"
        self._num_blocks = 0
        self._open: BlockKind | None = None
        self._thoughts: list[str] = []
        """Of the open block."""
        self._space = ""
        """White space that may be the beginning of a text block."""

    def __repr__(self) -> str:
        return f"Blocks({self._num_blocks} begun, open={self._open})"

    def accept(self, delta: Delta) -> list[Event]:
        match delta:
            case TextDelta(text):
                return self._text(text)
            case ReasoningDelta(text):
                return self._think(text)
            case CallBegin(_, name):
                self.has_called = True
                call: dict[str, Any] = {"type": "tool_use", "id": _new_call_id(), "name": name, "input": {}}
                return [*self.close(), self._begin("tool_use", call)]
            case ArgumentsDelta(_, piece):
                return [self._delta({"type": "input_json_delta", "partial_json": piece})]
            case CallEnd():
                return self.close()

    def close(self) -> list[Event]:
        """End the open block, if there is one."""
        self._space = ""
        kind, self._open = self._open, None
        if kind is None:
            return []
        stop = {"type": "content_block_stop", "index": self._index}
        if kind != "thinking":
            return [stop]
        text = "".join(self._thoughts)
        self._thoughts.clear()
        signature = signature_of(text) if self._shows_thinking else carrying_signature_of(text)
        return [self._delta({"type": "signature_delta", "signature": signature}), stop]

    @property
    def _index(self) -> int:
        return self._num_blocks - 1

    def _text(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open != "text":
            text = self._space + text
            if not text.strip():
                self._space = text
                return []
            events = [*self.close(), self._begin("text", {"type": "text", "text": ""})]
        return [*events, self._delta({"type": "text_delta", "text": text})]

    def _think(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open != "thinking":
            events = [*self.close(), self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})]
        self._thoughts.append(text)
        if self._shows_thinking:
            events.append(self._delta({"type": "thinking_delta", "thinking": text}))
        return events

    def _begin(self, kind: BlockKind, block: dict[str, Any]) -> Event:
        self._open = kind
        self._num_blocks += 1
        return {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


async def stream(answer: Answer, generation: Generation) -> AsyncGenerator[bytes, None]:
    """Events of the response, those that are ready together in one item. The costs are on ``message_delta``."""
    blocks = Blocks(answer.thinking)
    last: Piece | None = None
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            events = [] if last else [_message_start(answer, generation)]
            for last in pieces:
                events += (event for delta in last.deltas for event in blocks.accept(delta))
            if events:
                yield b"".join(map(encode, events))
    ending = {"type": "message_delta", "delta": _stop(answer, generation, last, blocks), **_costs(answer, generation)}
    yield b"".join(map(encode, [*blocks.close(), ending, {"type": "message_stop"}]))


async def whole(answer: Answer, generation: Generation) -> dict[str, Any]:
    """The response in one piece."""
    said: list[Delta] = []
    last: Piece | None = None
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            for last in pieces:
                if last.is_anew:
                    said = []
                said.extend(last.deltas)
    blocks = Blocks(answer.thinking)
    events = [event for delta in said for event in blocks.accept(delta)]
    return {
        **_head(answer),
        "content": _content([*events, *blocks.close()]),
        **_stop(answer, generation, last, blocks),
        **_costs(answer, generation),
    }


def usage_of(reuse: Reuse, num_new_tokens: int) -> dict[str, int]:
    """The three figures of the input add up to the prompt. Nothing is charged for what is put into the cache."""
    return {
        "input_tokens": reuse.num_computed_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reuse.num_cached_tokens,
        "output_tokens": num_new_tokens,
    }


def _message_start(answer: Answer, generation: Generation) -> Event:
    account = generation.accounts[0]
    usage = usage_of(account.reuse, account.num_new_tokens)
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    return {"type": "message_start", "message": {**_head(answer), **empty}}


def _head(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "type": "message", "role": "assistant", "model": answer.model}


def _stop(answer: Answer, generation: Generation, last: Piece | None, blocks: Blocks) -> dict[str, Any]:
    reason = "tool_use" if blocks.has_called else "end_turn"
    stop_string = last.stop_string if last else None
    if stop_string is not None:
        reason = "stop_sequence"
    elif last and last.end == "length":
        limit = answer.job.terms.max_new_tokens
        is_limit = limit is not None and generation.accounts[0].num_new_tokens >= limit
        reason = "max_tokens" if is_limit else "model_context_window_exceeded"
    return {"stop_reason": reason, "stop_sequence": stop_string}


def _costs(answer: Answer, generation: Generation) -> dict[str, Any]:
    """Usage, and what kvstet has to say besides. No edits of the context are made for the client."""
    costs = report_of(answer.job, generation)
    edits: dict[str, Any] = {"context_management": {"applied_edits": []}} if answer.manages_context else {}
    usage = usage_of(costs.reuse, costs.num_new_tokens)
    return {"usage": usage, **edits, "timings": costs.timings, "kvstet": costs.kvstet}


def _content(events: Iterable[Event]) -> list[dict[str, Any]]:
    """The blocks that the events build."""
    blocks: list[dict[str, Any]] = []
    pieces: list[str] = []
    for event in events:
        match event["type"], event:
            case "content_block_start", {"content_block": block}:
                blocks.append(block)
                pieces = []
            case "content_block_delta", {"delta": {"signature": signature}}:
                blocks[-1]["signature"] = signature
            case "content_block_delta", {"delta": {"type": _, **news}}:
                pieces += news.values()
            case _:
                _fill(blocks[-1], "".join(pieces))
    return blocks


def _fill(block: dict[str, Any], text: str) -> None:
    kind = block["type"]
    block |= {"input": _object(text)} if kind == "tool_use" else {kind: text}


def _object(arguments: str) -> dict[str, Any]:
    """What cannot be read as an object is none: the tool then says itself what it misses."""
    try:
        value: object = json.loads(mend_surrogates(arguments.encode()))
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _new_call_id() -> str:
    return f"toolu_{secrets.token_hex(12)}"
