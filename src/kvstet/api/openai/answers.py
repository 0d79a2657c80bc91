"""Answers to one request: as a stream of chunks, or whole."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from kvstet import __version__
from kvstet.api.decoding import TokenText
from kvstet.api.envelopes import ErrorAnswer, openai_envelope
from kvstet.api.generation import Generation, Piece
from kvstet.api.job import Job
from kvstet.api.openai.requests import GenerationFields
from kvstet.api.openai.shapes import Shape
from kvstet.api.ports import Served
from kvstet.api.report import Report, report_of
from kvstet.chat.deltas import Delta

_DONE = b"data: [DONE]\n\n"

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of a response repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str = f"kvstet-{__version__}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A job, and how its answer is written."""

    head: Head
    job: Job
    shape: Shape
    includes_usage: bool
    echoes: Sequence[str] | None = None
    """What stands before each choice's reply."""

    def echo(self, choice: int) -> str:
        return self.echoes[choice] if self.echoes else ""

    @property
    def num_choices(self) -> int:
        return len(self.job.requests)


def head_of(id: str, fields: GenerationFields, served: Served) -> Head:
    return Head(id, int(time.time()), fields.model or served.names[0])


def encode_error(answer: ErrorAnswer) -> bytes:
    """An error in the middle of a stream; the official SDKs raise on it."""
    return b"data: " + encode(openai_envelope(answer)) + b"\n\n"


class Chunks:
    """Encodes chunks. All but what the model says is encoded once for the whole stream."""

    def __init__(self, answer: Answer) -> None:
        self._shape = answer.shape
        self._common = _common(answer.head, answer.shape.chunk_object_name)
        self._includes_usage = answer.includes_usage
        if answer.includes_usage:
            self._common["usage"] = None
        self._offsets = [len(answer.echo(choice)) for choice in range(answer.num_choices)]
        self._tail = b',"finish_reason":null,"logprobs":null}],' + encode(self._common)[1:] + b"\n\n"
        self._heads = [b'data: {"choices":[{"index":%d,' % choice for choice in range(answer.num_choices)]
        self._has_called = [False] * answer.num_choices

    def opening(self, choice: int, echo: str) -> bytes:
        fields = self._shape.opening(echo)
        return b"" if fields is None else self._chunk([self._choice(choice, fields)])

    def news(self, piece: Piece) -> bytes:
        """A chunk for each delta; log-probabilities go with the first."""
        fields = [encoded for delta in piece.deltas if (encoded := self._shape.encode(delta))]
        if any(self._shape.calls(delta) for delta in piece.deltas):
            self._has_called[piece.choice] = True
        if not piece.tokens:
            return b"".join(self._heads[piece.choice] + encoded + self._tail for encoded in fields)
        first, *rest = fields or [self._shape.nothing]
        logprobs = self._shape.logprobs(piece.tokens, self._offsets[piece.choice])
        choice = self._choice(piece.choice, {**msgspec.json.decode(b"{" + first + b"}"), "logprobs": logprobs})
        more = (self._heads[piece.choice] + encoded + self._tail for encoded in rest)
        return b"".join((self._chunk([choice]), *more))

    def ending(self, piece: Piece, **more: Any) -> bytes:
        reason = _finish_reason(piece.end, self._has_called[piece.choice])
        choice = self._choice(piece.choice, {**self._shape.ending(), "finish_reason": reason})
        return self._chunk([choice], **more)

    def last(self, ended: Sequence[Piece], costs: Report) -> list[bytes]:
        """The endings that are left, and the costs: on the last of them, or on a chunk of usage that follows."""
        if self._includes_usage:
            usage = self._chunk([], usage=costs.usage, **_costs(costs))
            return [*map(self.ending, ended), usage]
        return [*map(self.ending, ended[:-1]), self.ending(ended[-1], **_costs(costs))]

    def _choice(self, choice: int, fields: dict[str, Any]) -> dict[str, Any]:
        return {"index": choice, "finish_reason": None, "logprobs": None, **fields}

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + encode({"choices": choices, **self._common, **more}) + b"\n\n"


async def stream(answer: Answer, generation: Generation) -> AsyncGenerator[bytes, None]:
    """Events of the response, those that are ready together in one item; the costs are on the last chunk."""
    chunks = Chunks(answer)
    opening = b"".join(chunks.opening(choice, answer.echo(choice)) for choice in range(answer.num_choices))
    ended: list[Piece] = []
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            # The very last chunk waits for the costs.
            endings = [chunks.ending(piece) for piece in ended]
            ended = [piece for piece in pieces if piece.end is not None]
            if data := b"".join((opening, *endings, *map(chunks.news, pieces))):
                yield data
            opening = b""
    yield b"".join((*chunks.last(ended, report_of(answer.job, generation)), _DONE))


async def whole(answer: Answer, generation: Generation) -> dict[str, Any]:
    """The response in one piece."""
    said: list[list[Delta]] = [[] for _ in range(answer.num_choices)]
    tokens: list[list[TokenText]] = [[] for _ in range(answer.num_choices)]
    ends: list[str | None] = [None] * answer.num_choices
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            for piece in pieces:
                if piece.is_anew:
                    said[piece.choice], tokens[piece.choice] = [], []
                said[piece.choice].extend(piece.deltas)
                tokens[piece.choice].extend(piece.tokens)
                ends[piece.choice] = piece.end
    shape, has_logprobs = answer.shape, answer.job.terms.num_logprobs is not None
    choices = [
        {
            "index": choice,
            **shape.whole(answer.echo(choice), said[choice]),
            "logprobs": shape.logprobs(tokens[choice], len(answer.echo(choice))) if has_logprobs else None,
            "finish_reason": _finish_reason(ends[choice], any(map(shape.calls, said[choice]))),
        }
        for choice in range(answer.num_choices)
    ]
    costs = report_of(answer.job, generation)
    return {**_common(answer.head, shape.object_name), "choices": choices, "usage": costs.usage, **_costs(costs)}


def _finish_reason(end: str | None, has_called: bool) -> str | None:
    return "tool_calls" if end == "stop" and has_called else end


def _common(head: Head, object_name: str) -> dict[str, Any]:
    return {**asdict(head), "object": object_name}


def _costs(costs: Report) -> dict[str, Any]:
    return {"timings": costs.timings, "kvstet": costs.kvstet}
