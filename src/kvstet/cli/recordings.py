"""Recorded sessions of clients in any dialect, and what was replied: what `kvstet explain --trace` looks at.

The lines are those of `kvstet.cli.traces`. Of a recorded exchange the response's ``plan``, if there is one, says what
was replied: ``reasoning``, ``text``, and ``calls`` with a ``name`` and ``args_raw``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from kvstet.api.anthropic.conversation import conversation_of as anthropic_conversation
from kvstet.api.anthropic.requests import CountRequest
from kvstet.api.body import decode
from kvstet.api.job import Conversation
from kvstet.api.models import Named
from kvstet.api.openai.prompts import conversation_of as openai_conversation
from kvstet.api.openai.requests import TemplateRequest
from kvstet.api.responses.conversation import conversation_of as responses_conversation
from kvstet.api.responses.conversation import found_tools, items_of
from kvstet.api.responses.requests import ResponsesRequest
from kvstet.api.responses.tools import toolbox_of
from kvstet.api.sessions import session_of
from kvstet.cli.traces import MAX_LABEL_CHARACTERS, read_lines
from kvstet.edits.snapshot import Item, Snapshot, snapshot_of
from kvstet.errors import InvalidRequest, RequestError

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request, and the reply to it where that was recorded."""

    number: int
    """As the recording counts them, or else the line."""
    label: str
    snapshot: Snapshot
    reply: Item | None


def read_recording(path: Path) -> list[RecordedRequest]:
    """All requests of a file that make a prompt. InvalidRequest: it cannot be read, or holds none."""
    found = list(recorded_requests(read_lines(path)))
    if not found:
        raise InvalidRequest(f"{path} holds no request that could be explained.")
    return found


def recorded_requests(data: bytes) -> Iterator[RecordedRequest]:
    """Those of a file's bytes; what cannot be understood is left out."""
    entries = [(number, entry) for number, line in enumerate(data.splitlines(), 1) if (entry := _entry(line))]
    answers = {entry.get("seq"): entry for _, entry in entries if entry.get("dir") == "response"}
    for line, entry in entries:
        answer: Entry = answers.get(entry.get("seq"), {}) if "seq" in entry else {}
        try:
            sent = _sent(entry)
        except (RequestError, msgspec.ValidationError):
            continue
        if sent is not None:
            number, label = int(entry.get("seq", line)), str(answer.get("kind", entry.get("label", "")))
            yield RecordedRequest(number, label[:MAX_LABEL_CHARACTERS], sent, _reply(sent, answer.get("plan")))


def _entry(line: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(line, type=dict[str, Any]) if line.strip() else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _sent(entry: Entry) -> Snapshot | None:
    match entry:
        case {"dir": "request", "path": str(path), "body_raw": str(text)}:
            return _snapshot(path.partition("?")[0], text.encode(), entry.get("headers"))
        case {"dir": str()}:
            return None
        case {"body": dict()} | {"messages": list()}:
            return _snapshot("/chat/completions", msgspec.json.encode(entry.get("body", entry)), None)
        case _:
            return None


def _snapshot(path: str, body: bytes, headers: object) -> Snapshot | None:
    conversation = _conversation(path, body)
    if conversation is None:
        return None
    named = decode(body, Named)
    pairs = cast("list[list[str]]", headers) if isinstance(headers, list) else []
    session = session_of(((name.lower(), value) for name, value in pairs), named)
    return snapshot_of(conversation.messages, conversation.tools, model=named.model, session=session)


def _conversation(path: str, body: bytes) -> Conversation | None:
    """By the end of the path; None where it is none that makes a prompt."""
    if path.endswith("/chat/completions"):
        return openai_conversation(decode(body, TemplateRequest))
    if path.endswith("/messages"):
        return anthropic_conversation(decode(body, CountRequest))
    if path.endswith("/responses"):
        fields = decode(body, ResponsesRequest)
        items = items_of(fields.input)
        return responses_conversation(fields, [], items, toolbox_of(fields.tools or (), found_tools(items)))
    return None


def _reply(sent: Snapshot, plan: object) -> Item | None:
    match plan:
        case dict():
            said = cast("dict[str, Any]", plan)
            # A tool of a namespace has one name for the model.
            calls = [(str(call["name"]).replace(".", "__"), str(call["args_raw"])) for call in said.get("calls") or ()]
            return sent.reply_of(said.get("text") or "", said.get("reasoning") or "", calls)
        case _:
            return None
