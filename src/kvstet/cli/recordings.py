"""Traces in any dialect as the comparison of conversations sees them: what `kvstet explain --trace` looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
from kvstet.cli.traces import MAX_LABEL_CHARACTERS
from kvstet.dialects.dialect import DialectName
from kvstet.edits.snapshot import Item, Snapshot, snapshot_of
from kvstet.errors import InvalidRequest, RequestError
from kvstet.traces.format import Plan
from kvstet.traces.reading import Exchange, read_trace


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request, and the reply to it where that was recorded."""

    number: int
    """As the trace counts them, or else the line."""
    label: str
    snapshot: Snapshot
    reply: Item | None


def read_recording(path: Path) -> list[RecordedRequest]:
    """All requests of a file that make a prompt. InvalidRequest: it cannot be read, or holds none."""
    found = list(recorded_requests(read_trace(path)))
    if not found:
        raise InvalidRequest(f"{path} holds no request that could be explained.")
    return found


def recorded_requests(exchanges: Iterable[Exchange]) -> Iterator[RecordedRequest]:
    """Those that make a prompt; what cannot be understood is left out."""
    for exchange in exchanges:
        try:
            sent = _sent(exchange)
        except RequestError:
            continue
        if sent is not None:
            label = exchange.label[:MAX_LABEL_CHARACTERS]
            yield RecordedRequest(exchange.number, label, sent, _reply(sent, exchange.plan))


def _sent(exchange: Exchange) -> Snapshot | None:
    if exchange.dialect is None:
        return None
    body = exchange.request.body_raw.encode()
    conversation = _conversation(exchange.dialect.name, body)
    named = decode(body, Named)
    session = session_of(((name.lower(), value) for name, value in exchange.request.headers), named)
    return snapshot_of(conversation.messages, conversation.tools, model=named.model, session=session)


def _conversation(dialect: DialectName, body: bytes) -> Conversation:
    match dialect:
        case "chat":
            return openai_conversation(decode(body, TemplateRequest))
        case "messages":
            return anthropic_conversation(decode(body, CountRequest))
        case "responses":
            fields = decode(body, ResponsesRequest)
            items = items_of(fields.input)
            return responses_conversation(fields, [], items, toolbox_of(fields.tools or (), found_tools(items)))


def _reply(sent: Snapshot, plan: Plan | None) -> Item | None:
    if plan is None:
        return None
    # A tool of a namespace has one name for the model.
    calls = [(call.name.replace(".", "__"), call.args_raw) for call in plan.calls]
    return sent.reply_of(plan.text, plan.reasoning, calls)
