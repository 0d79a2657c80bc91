"""The latest requests, by conversation: what each was, what it cost, and why. No text of any prompt."""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol, cast

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.envelopes import json_response
from kvstet.api.wishes import Wishes
from kvstet.chat.deltas import ParsedReply
from kvstet.config import ApiKey
from kvstet.edits.edit import Edit
from kvstet.edits.history import History, Place
from kvstet.edits.snapshot import Snapshot
from kvstet.edits.verdict import Verdict, explained, for_log
from kvstet.edits.words import advice_of, sentence_of
from kvstet.errors import InvalidRequest
from kvstet.types import Fidelity, Reuse

VERDICTS = "kvstet.verdicts"
"""Name of the log that has one line for each request that is over."""

logger = logging.getLogger(VERDICTS)

MAX_RECORDS = 1000

_DEFAULT_LIMIT = 20
_SESSION_HEADERS = ("x-claude-code-session-id", "x-session-id", "session-id", "session_id", "x-session-affinity")


class Sender(Struct):
    """What a body says of who sent it, in any dialect."""

    prompt_cache_key: Any = None
    metadata: Any = None


class Costs(Protocol):
    """What a report says of a request that is over."""

    @property
    def reuse(self) -> Reuse: ...
    @property
    def queue_seconds(self) -> float: ...
    @property
    def load_seconds(self) -> float: ...
    @property
    def compute_seconds(self) -> float: ...
    @property
    def decode_seconds(self) -> float: ...
    @property
    def num_new_tokens(self) -> int: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def fidelity(self) -> Fidelity: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One request that is over."""

    id: str
    owner: str
    """Name of the API key that sent it."""
    time: float
    """When it came; seconds since 1970."""
    model: str
    session: str | None
    conversation: int
    parent: int | None
    num_messages: int
    costs: dict[str, Any]
    verdict: str
    edits: list[dict[str, Any]] = field(repr=False)

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "time": self.time,
            "model": self.model,
            "messages": self.num_messages,
            **self.costs,
            "verdict": self.verdict,
            "edits": self.edits,
        }


@dataclass(frozen=True, slots=True)
class Visit:
    """One request, from when it is understood until it is answered."""

    sessions: Sessions = field(repr=False)
    history: History = field(repr=False)
    id: str
    owner: str
    began_at: float
    snapshot: Snapshot = field(repr=False)
    place: Place

    def reply(self, tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None:
        """What was said to it."""
        calls = [(call.name, call.arguments) for call in reply.calls]
        self.history.reply(self.place.branch, self.snapshot.reply_of(reply.text, reply.reasoning, calls))

    def verdict(self, reuse: Reuse, seconds: float) -> Verdict:
        """Why it cost what it did; ``seconds`` is what computing took."""
        return explained(self.place, self.snapshot, reuse, seconds)

    def close(self, costs: Costs) -> None:
        """It is over."""
        record = Record(
            self.id,
            self.owner,
            self.began_at,
            self.snapshot.model or "",
            self.snapshot.session,
            self.place.conversation,
            self.place.parent,
            len(self.snapshot.items),
            _costs(costs),
            costs.verdict.sentence,
            [edit_as_json(edit) for edit in costs.verdict.edits],
        )
        self.sessions.add(record)
        logger.info("%s conversation %d: %s", self.id[-6:], self.place.conversation, for_log(costs.verdict))


class Sessions:
    """What the server remembers of its conversations; each API key has its own, and is told of no others. Visits may
    begin in any thread, the records are the event loop's."""

    def __init__(self) -> None:
        self._histories: dict[str, History] = {}
        self._records: deque[Record] = deque(maxlen=MAX_RECORDS)

    def __repr__(self) -> str:
        return f"Sessions({len(self._records)} records, {self._histories})"

    def visit(self, id: str, snapshot: Snapshot, wishes: Wishes) -> Visit:
        """A request comes."""
        history = self._history(wishes)
        place = history.note(snapshot)
        if wishes.redacts:
            history.forget_others(place)
        return Visit(self, history, id, wishes.owner, time.time(), snapshot, place)

    def peek(self, snapshot: Snapshot, wishes: Wishes) -> Place:
        """What a request would be, if it came now."""
        return self._history(wishes).peek(snapshot)

    def add(self, record: Record) -> None:
        """A request is over."""
        self._records.append(record)

    async def list(self, request: Request) -> Response:
        """The latest conversations of the key that asks, the newest first."""
        limit, key = limit_of(request, _DEFAULT_LIMIT), getattr(request.state, "api_key", None)
        owner = key.name if isinstance(key, ApiKey) else ""
        grouped: dict[int, list[Record]] = {}
        for record in (record for record in reversed(self._records) if record.owner == owner):
            grouped.setdefault(record.conversation, []).append(record)
        latest = list(grouped.values())[:limit]
        return json_response({"object": "list", "data": [_conversation(records[::-1]) for records in latest]})

    def _history(self, wishes: Wishes) -> History:
        return self._histories.setdefault(wishes.owner, History())


def edit_as_json(edit: Edit) -> dict[str, Any]:
    """As responses and `/v1/kvstet/sessions` tell it."""
    return {
        "kind": edit.kind,
        "message": edit.message,
        "role": edit.role,
        "was": edit.was,
        "character": edit.character,
        "what": list(edit.what),
        "token": edit.token,
        "num_tokens": edit.num_tokens,
        "num_tokens_alone": edit.num_tokens_alone,
        "seconds": edit.seconds,
        "sentence": sentence_of(edit),
        "advice": advice_of(edit),
    }


def sent_by(request: Request, snapshot: Snapshot) -> Snapshot:
    """The snapshot, with the client's session."""
    sender = getattr(request.state, "sender", Sender())
    return replace(snapshot, session=session_of(request.headers.items(), sender))


def session_of(headers: Iterable[tuple[str, str]], sender: Sender) -> str | None:
    """A short name of the client's session, where it says which one it is. The id itself may tell who the user is."""
    named = dict(headers)
    said = [*(named.get(name) for name in _SESSION_HEADERS), sender.prompt_cache_key, _user_id(sender.metadata)]
    id = next((text for text in said if isinstance(text, str) and text), None)
    return None if id is None else blake2b(id.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _user_id(metadata: Any) -> object:
    """Claude Code's holds a JSON object, with the session's id in it."""
    user_id = cast("dict[str, object]", metadata).get("user_id") if isinstance(metadata, dict) else None
    if not isinstance(user_id, str):
        return None
    try:
        parsed = json.loads(user_id)
    except (ValueError, RecursionError):
        return user_id
    return cast("dict[str, object]", parsed).get("session_id", user_id) if isinstance(parsed, dict) else user_id


def _costs(costs: Costs) -> dict[str, Any]:
    return {
        "reused": costs.reuse.num_reused_tokens,
        "loaded": costs.reuse.num_loaded_tokens,
        "shifted": costs.reuse.num_shifted_tokens,
        "computed": costs.reuse.num_computed_tokens,
        "known": costs.reuse.num_known_tokens,
        "generated": costs.num_new_tokens,
        "queue_seconds": costs.queue_seconds,
        "load_seconds": costs.load_seconds,
        "compute_seconds": costs.compute_seconds,
        "decode_seconds": costs.decode_seconds,
        "fidelity": costs.fidelity,
    }


def _conversation(records: Sequence[Record]) -> dict[str, Any]:
    first = records[0]
    return {
        "id": first.conversation,
        "parent": first.parent,
        "session": first.session,
        "requests": [record.as_json for record in records],
    }


def limit_of(request: Request, default: int) -> int:
    """How many entries of a list are asked for. Raises InvalidRequest."""
    text = request.query_params.get("limit", str(default))
    # Python refuses to read thousands of digits.
    if not text.isdecimal() or len(text) > len(str(MAX_RECORDS)) or not 1 <= int(text) <= MAX_RECORDS:
        raise InvalidRequest(f"limit is a number from 1 to {MAX_RECORDS}.", param="limit")
    return int(text)
