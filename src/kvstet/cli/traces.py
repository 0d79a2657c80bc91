"""Chat requests of traces: what `kvstet verify --trace` replays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvstet.api.job import render
from kvstet.api.openai.prompts import conversation_of
from kvstet.api.openai.requests import TemplateRequest
from kvstet.api.ports import Renderer
from kvstet.errors import InvalidRequest, RequestError
from kvstet.traces.reading import NO_OBJECT, Exchange, exchanges, lines_in, opened
from kvstet.types import Prompt

MAX_LABEL_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """The part of a chat request that makes its prompt."""

    label: str
    fields: TemplateRequest


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of the file, and why others were left out."""

    requests: tuple[TraceRequest, ...]
    skipped: tuple[tuple[str, int], ...]
    """Reason, and how many requests it kept out."""


def read_trace(path: Path) -> Trace:
    """All of a file. InvalidRequest: it cannot be read, or holds nothing to replay."""
    with opened(path) as file:
        trace = parse_trace(file)
    if not trace.requests:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in trace.skipped) or "it holds no requests"
        raise InvalidRequest(f"Nothing in {path} can be replayed ({reasons}).")
    return trace


def rendered(
    trace: Trace, renderer: Renderer, context_length: int
) -> tuple[list[tuple[TraceRequest, Prompt]], Counter[str]]:
    """The prompts that fit; and why requests were left out, of the trace and now, how often."""
    prompts: list[tuple[TraceRequest, Prompt]] = []
    skipped = Counter(dict(trace.skipped))
    for request in trace.requests:
        try:
            prompt = render(renderer, conversation_of(request.fields))
        except RequestError as error:
            skipped[str(error)] += 1
            continue
        if len(prompt.tokens) > context_length:
            skipped[f"longer than the context of {context_length:,} tokens"] += 1
        else:
            prompts.append((request, prompt))
    return prompts, skipped


def parse_trace(lines: Iterable[bytes]) -> Trace:
    """The requests of a file's lines."""
    requests: list[TraceRequest] = []
    passed_over: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for exchange in exchanges(lines_in(lines, passed_over)):
        request = _request(exchange, len(requests) + 1)
        if isinstance(request, str):
            skipped[request] += 1
        else:
            requests.append(request)
    return Trace(tuple(requests), tuple((skipped + Counter({NO_OBJECT: passed_over[NO_OBJECT]})).items()))


def _request(exchange: Exchange, number: int) -> TraceRequest | str:
    """Or why it is left out."""
    if not exchange.path.endswith("/chat/completions"):
        return f"{exchange.path} is not OpenAI's /chat/completions"
    try:
        label = (exchange.request.label or f"request {number}")[:MAX_LABEL_CHARACTERS]
        return TraceRequest(label, msgspec.convert(exchange.body, TemplateRequest))
    except InvalidRequest:
        return NO_OBJECT
    except msgspec.ValidationError as error:
        return f"not a chat request ({error})"
