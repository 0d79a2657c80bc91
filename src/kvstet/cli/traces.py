"""Recorded requests of clients, as JSON lines: what `kvstet verify --trace` replays.

A line may be a chat request itself (an object with ``messages``); hold one as ``body``, as the demo's session does; or
be one side of a recorded HTTP exchange, with ``dir``, ``path`` and ``body_raw``. Of the latter, requests to
``/chat/completions`` are taken.
"""

from __future__ import annotations

import lzma
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kvstet.api.job import render
from kvstet.api.openai.prompts import conversation_of
from kvstet.api.openai.requests import TemplateRequest
from kvstet.api.ports import Renderer
from kvstet.errors import InvalidRequest, RequestError
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


class _Skip(Exception):
    """This line is not replayed; the reason is for the user."""


class _NoRequest(Exception):
    """The line is no request: a header, a response."""


def read_trace(path: Path) -> Trace:
    """All of a file, which may be packed with xz. InvalidRequest: it cannot be read, or holds nothing to replay."""
    trace = parse_trace(read_lines(path))
    if not trace.requests:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in trace.skipped) or "it holds no requests"
        raise InvalidRequest(f"Nothing in {path} can be replayed ({reasons}).")
    return trace


def read_lines(path: Path) -> bytes:
    """A file's content, unpacked. InvalidRequest: it cannot be read."""
    try:
        return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    except (OSError, lzma.LZMAError) as error:
        raise InvalidRequest(f"Cannot read {path}: {error}") from error


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


def parse_trace(data: bytes) -> Trace:
    """The requests of a file's bytes."""
    requests: list[TraceRequest] = []
    skipped: Counter[str] = Counter()
    for line in data.splitlines():
        try:
            if line.strip():
                requests.append(_request(line, len(requests) + 1))
        except _Skip as reason:
            skipped[str(reason)] += 1
        except _NoRequest:
            continue
    return Trace(tuple(requests), tuple(skipped.items()))


def _request(line: bytes, number: int) -> TraceRequest:
    entry = _decoded(line)
    label = str(entry.get("label", f"request {number}"))[:MAX_LABEL_CHARACTERS]
    try:
        return TraceRequest(label, msgspec.convert(_body(entry), TemplateRequest))
    except msgspec.ValidationError as error:
        raise _Skip(f"not a chat request ({error})") from error


def _body(entry: dict[str, Any]) -> object:
    match entry:
        case {"dir": "request", "path": str(path), "body_raw": str(text)}:
            path = path.partition("?")[0]
            if not path.endswith("/chat/completions"):
                raise _Skip(f"{path} is not OpenAI's /chat/completions")
            return _decoded(text.encode())
        case {"dir": str()}:
            raise _NoRequest
        case {"body": _}:
            return entry["body"]
        case {"messages": _}:
            return entry
        case _:
            raise _NoRequest


def _decoded(text: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _Skip("not a JSON object") from error
