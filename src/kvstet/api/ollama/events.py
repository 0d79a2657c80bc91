"""Answers to one Ollama request: as a stream of JSON lines, or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from kvstet.api.body import mend_surrogates
from kvstet.api.decoding import TokenText
from kvstet.api.envelopes import ErrorAnswer, ollama_envelope
from kvstet.api.generation import EndReason, Generation, Piece
from kvstet.api.job import Job
from kvstet.api.openai.shapes import ChatShape, new_call_id
from kvstet.api.report import Report, report_of
from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta, message_of

LINES = "application/x-ndjson"
"""The content type of a stream."""

Line = dict[str, Any]
Call = dict[str, Any]

_json = msgspec.json.Encoder().encode


class Fields(Protocol):
    """Puts what the model says into an answer's fields."""

    def __call__(self, text: str = "", *, thinking: str = "", calls: Sequence[Call] = ()) -> Line: ...


def chat_fields(text: str = "", *, thinking: str = "", calls: Sequence[Call] = ()) -> Line:
    return {"message": {"role": "assistant", "content": text, **_besides(thinking, calls)}}


def generate_fields(text: str = "", *, thinking: str = "", calls: Sequence[Call] = ()) -> Line:
    return {"response": text, **_besides(thinking, calls)}


@dataclass(frozen=True, slots=True)
class Answer:
    """A job, and how its answer is written."""

    model: str
    job: Job
    fields: Fields
    shape: ChatShape
    """Writes log-probabilities, which Ollama has in OpenAI's form."""
    ignored: tuple[str, ...] = ()
    """Fields of the request that ask for something, and change nothing here."""

    def line(self, fields: Line, **more: Any) -> Line:
        """One object of the answer, which is not the last."""
        return {**head_of(self.model), **fields, "done": False, **more}


def encode(line: Line) -> bytes:
    return _json(line) + b"\n"


def ping_of(answer: Answer) -> bytes:
    """A line that says nothing: clients read every line as JSON, and an empty one is an error to them."""
    return encode(answer.line(answer.fields()))


def encode_error(answer: ErrorAnswer) -> bytes:
    """An error in the middle of a stream; the official client raises on it."""
    return encode(ollama_envelope(answer))


def loaded(model: str, fields: Fields) -> Line:
    """The answer to a request that says nothing, which is how clients have a model loaded."""
    return {**head_of(model), **fields(), "done": True, "done_reason": "load"}


def head_of(model: str) -> Line:
    return {"model": model, "created_at": timestamp(datetime.now(UTC))}


def timestamp(time: datetime) -> str:
    """As RFC 3339 has it; the time is in UTC."""
    return time.isoformat().replace("+00:00", "Z")


class Calls:
    """The tool calls of one reply. Ollama's clients want them whole, with their arguments as an object."""

    def __init__(self) -> None:
        self._num_told = 0
        self._name: str | None = None
        """Of the call that is being written."""
        self._pieces: list[str] = []

    def __repr__(self) -> str:
        return f"Calls({self._num_told} told, open={self._name})"

    def accept(self, delta: Delta) -> list[Call]:
        """The call that is complete with this delta."""
        match delta:
            case CallBegin(_, name):
                self._name = name
                self._pieces = []
            case ArgumentsDelta(_, piece):
                self._pieces.append(piece)
            case CallEnd() if self._name is not None:
                return [self._tell(self._name)]
            case _:
                pass
        return []

    def close(self, end: EndReason | None) -> list[Call]:
        """The call that is left. One that the limit cut off is not told: nobody knows what it was to become."""
        return [] if self._name is None or end == "length" else [self._tell(self._name)]

    def _tell(self, name: str) -> Call:
        function = {"index": self._num_told, "name": name, "arguments": _object("".join(self._pieces))}
        self._num_told += 1
        self._name = None
        return {"id": new_call_id(), "function": function}


async def stream(answer: Answer, generation: Generation) -> AsyncGenerator[bytes, None]:
    """Lines of the response, those that are ready together in one item; the costs are on the last line."""
    calls, end = Calls(), None
    async with aclosing(generation.pieces()) as news:
        async for pieces in news:
            lines = [line for piece in pieces for line in _lines(answer, piece, calls)]
            end = pieces[-1].end
            if lines:
                yield b"".join(map(encode, lines))
    last = answer.fields(calls=calls.close(end))
    yield encode({**answer.line(last), **_ending(answer, generation, end)})


async def whole(answer: Answer, generation: Generation) -> Line:
    """The response in one piece."""
    pieces: list[Piece] = []
    async with aclosing(generation.pieces()) as news:
        async for arrived in news:
            for piece in arrived:
                if piece.is_anew:
                    pieces.clear()
                pieces.append(piece)
    deltas = [delta for piece in pieces for delta in piece.deltas]
    reply, end = message_of(deltas), pieces[-1].end
    calls = Calls()
    told = [call for delta in deltas for call in calls.accept(delta)]
    said = answer.fields(reply.text, thinking=reply.reasoning, calls=[*told, *calls.close(end)])
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    return {**answer.line(said), **_logprobs(answer, tokens), **_ending(answer, generation, end)}


def _lines(answer: Answer, piece: Piece, calls: Calls) -> list[Line]:
    """A line for each delta; log-probabilities go with the first."""
    said = [fields for delta in piece.deltas for fields in _said(answer.fields, delta, calls)]
    logprobs = _logprobs(answer, piece.tokens)
    if logprobs:
        first, *rest = said or [answer.fields()]
        return [answer.line(first, **logprobs), *map(answer.line, rest)]
    return [answer.line(fields) for fields in said]


def _said(fields: Fields, delta: Delta, calls: Calls) -> list[Line]:
    match delta:
        case TextDelta(text):
            return [fields(text)]
        case ReasoningDelta(text):
            return [fields(thinking=text)]
        case _:
            return [fields(calls=[call]) for call in calls.accept(delta)]


def _logprobs(answer: Answer, tokens: Sequence[TokenText]) -> Line:
    return {"logprobs": answer.shape.logprobs(tokens, 0)["content"]} if tokens else {}


def _ending(answer: Answer, generation: Generation, end: EndReason | None) -> Line:
    costs = report_of(answer.job, generation)
    ignored = {"ignored": list(answer.ignored)} if answer.ignored else {}
    return {"done": True, "done_reason": end, **_usage(costs), "kvstet": {**costs.kvstet, **ignored}}


def _usage(costs: Report) -> Line:
    """Ollama's counts, and its times in nanoseconds. The whole prompt is counted, with what was cached besides."""
    parts = costs.queue_seconds, costs.load_seconds, costs.compute_seconds, costs.decode_seconds
    return {
        "total_duration": sum(map(_nanoseconds, parts)),
        "load_duration": _nanoseconds(costs.load_seconds),
        "prompt_eval_count": costs.reuse.num_prompt_tokens,
        "prompt_eval_cached_count": costs.reuse.num_cached_tokens,
        "prompt_eval_duration": _nanoseconds(costs.compute_seconds),
        "eval_count": costs.num_new_tokens,
        "eval_duration": _nanoseconds(costs.decode_seconds),
    }


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _besides(thinking: str, calls: Sequence[Call]) -> Line:
    return ({"thinking": thinking} if thinking else {}) | ({"tool_calls": list(calls)} if calls else {})


def _object(arguments: str) -> msgspec.Raw | dict[str, Any]:
    """The arguments as the model wrote them, on one line; what cannot be read as an object is an empty one.

    They are not decoded: numbers keep all their digits.
    """
    data = mend_surrogates(arguments.encode())
    try:
        msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        return msgspec.Raw(msgspec.json.format(data, indent=-1))
    except (msgspec.DecodeError, RecursionError):
        return {}
