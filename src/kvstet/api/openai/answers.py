"""Answers to one job: as a stream of chunks, or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import msgspec

from kvstet.api.decoding import TokenText
from kvstet.api.errors import ErrorAnswer
from kvstet.api.generation import Generation, Piece
from kvstet.api.openai.job import Head, Job
from kvstet.api.openai.shapes import Shape
from kvstet.api.report import Report, report

_DONE = b"data: [DONE]\n\n"

encode = msgspec.json.Encoder().encode


def encode_error(answer: ErrorAnswer) -> bytes:
    """An error in the middle of a stream; the official SDKs raise on it."""
    return b"data: " + encode(answer.envelope) + b"\n\n"


class Chunks:
    """Encodes chunks. All but the text of the usual chunk is encoded once for the whole stream."""

    def __init__(self, job: Job, shape: Shape) -> None:
        self._shape = shape
        self._common = _common(job.head, shape.chunk_object_name)
        self._includes_usage = job.includes_usage
        if job.includes_usage:
            self._common["usage"] = None
        self._offsets = [len(text) for text in _echoes(job)]
        self._tail = b',"finish_reason":null,"logprobs":null}],' + encode(self._common)[1:] + b"\n\n"
        self._heads = [
            b'data: {"choices":[{"index":%d,' % choice + shape.before_text for choice in range(len(job.requests))
        ]

    def opening(self, choice: int, echo: str) -> bytes:
        fields = self._shape.opening(echo)
        return b"" if fields is None else self._chunk([self._choice(choice, fields)])

    def text(self, piece: Piece) -> bytes:
        if not piece.tokens:
            text = encode(piece.text)
            return b"".join((self._heads[piece.choice], text, self._shape.after_text, self._tail))
        fields = msgspec.json.decode(
            b"{" + self._shape.before_text + encode(piece.text) + self._shape.after_text + b"}"
        )
        fields["logprobs"] = self._shape.logprobs(piece.tokens, self._offsets[piece.choice])
        return self._chunk([self._choice(piece.choice, fields)])

    def ending(self, piece: Piece, **more: Any) -> bytes:
        choice = self._choice(piece.choice, {**self._shape.ending(), "finish_reason": piece.end})
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


async def stream(job: Job, generation: Generation, shape: Shape) -> AsyncGenerator[bytes, None]:
    """Events of the response, those that are ready together in one item; the costs are on the last chunk."""
    chunks = Chunks(job, shape)
    opening = b"".join(chunks.opening(choice, echo) for choice, echo in enumerate(_echoes(job)))
    ended: list[Piece] = []
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            # The very last chunk waits for the costs.
            endings = [chunks.ending(piece) for piece in ended]
            ended = [piece for piece in pieces if piece.end is not None]
            texts = [chunks.text(piece) for piece in pieces if piece.text or piece.tokens]
            if data := b"".join((opening, *endings, *texts)):
                yield data
            opening = b""
    yield b"".join((*chunks.last(ended, _report(job, generation)), _DONE))


async def whole(job: Job, generation: Generation, shape: Shape) -> dict[str, Any]:
    """The response in one piece."""
    echoes = _echoes(job)
    texts = [[echo] for echo in echoes]
    tokens: list[list[TokenText]] = [[] for _ in job.requests]
    ends: list[str | None] = [None for _ in job.requests]
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            for piece in pieces:
                if piece.is_anew:
                    texts[piece.choice], tokens[piece.choice] = [echoes[piece.choice]], []
                texts[piece.choice].append(piece.text)
                tokens[piece.choice].extend(piece.tokens)
                ends[piece.choice] = piece.end
    has_logprobs = job.requests[0].num_logprobs is not None
    choices = [
        {
            "index": choice,
            **shape.whole("".join(texts[choice])),
            "logprobs": shape.logprobs(tokens[choice], len(echoes[choice])) if has_logprobs else None,
            "finish_reason": ends[choice],
        }
        for choice in range(len(job.requests))
    ]
    costs = _report(job, generation)
    return {**_common(job.head, shape.object_name), "choices": choices, "usage": costs.usage, **_costs(costs)}


def _common(head: Head, object_name: str) -> dict[str, Any]:
    return {**asdict(head), "object": object_name}


def _echoes(job: Job) -> list[str]:
    """What stands before each choice's reply."""
    return [prompt.text if job.echoes else "" for prompt in job.prompts for _ in range(job.num_choices)]


def _report(job: Job, generation: Generation) -> Report:
    return report(generation.accounts, job.num_choices, job.prompts[0].spans, uses_cache=job.requests[0].cache_prompt)


def _costs(costs: Report) -> dict[str, Any]:
    return {"timings": costs.timings, "kvstet": costs.kvstet}
