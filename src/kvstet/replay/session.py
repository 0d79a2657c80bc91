"""The requests of a trace that ask for a reply, in their order, with the pauses between them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from kvstet.dialects.dialect import Dialect
from kvstet.dialects.request import Request
from kvstet.errors import InvalidRequest, RequestError
from kvstet.traces.format import Plan
from kvstet.traces.reading import Exchange, read_trace

Body = dict[str, Any]

MAX_LABEL_CHARACTERS = 40

_TOLD_HEADERS = ("anthropic-", "x-claude-code-session-id", "x-session-", "session-id", "session_id", "openai-beta")
"""Beginnings of those that say something about the request; keys, lengths and names of programs do not."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, and what was replied."""

    number: int
    """As the trace counts them."""
    label: str
    dialect: Dialect
    body: Body = field(repr=False)
    request: Request = field(repr=False)
    """The same in no dialect."""
    headers: Mapping[str, str] = field(repr=False)
    pause_seconds: float = 0.0
    """From the end of the responses before it until it was sent."""
    reply_seconds: float = 0.0
    """Until its response was over."""
    plan: Plan | None = field(repr=False, default=None)
    """None: nothing was replied, or nobody knows what."""
    tokens: Sequence[int] = field(repr=False, default=())
    """The reply's, where the server told them."""
    model: str = ""
    """Whose tokens they are."""


@dataclass(frozen=True, slots=True)
class Session:
    """What is replayed, and why requests were left out, how often."""

    turns: tuple[Turn, ...]
    skipped: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is waited between a response and the next request."""

    seconds: float | None = None
    """The same everywhere; None: as recorded."""
    max_seconds: float = math.inf
    """No recorded pause is longer."""

    def pause_before(self, turn: Turn) -> float:
        return min(self.max_seconds, turn.pause_seconds) if self.seconds is None else self.seconds


def read_session(path: Path, *, max_turns: int | None = None) -> Session:
    """Of a trace's file. InvalidRequest: it cannot be read, or holds nothing to replay."""
    session = session_of(read_trace(path), max_turns=max_turns)
    if not session.turns:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in session.skipped.items())
        raise InvalidRequest(f"Nothing in {path} can be replayed ({reasons or 'it holds no requests'}).")
    return session


def session_of(exchanges: Iterable[Exchange], *, max_turns: int | None = None) -> Session:
    """Those of a trace, at most so many."""
    skipped: Counter[str] = Counter()
    return Session(tuple(islice(_turns(exchanges, skipped), max_turns)), skipped)


def _turns(exchanges: Iterable[Exchange], skipped: Counter[str]) -> Iterable[Turn]:
    over_seconds: float | None = None
    for exchange in exchanges:
        sent = exchange.request.t
        over = exchange.response.t if exchange.response is not None else sent
        try:
            turn = _turn(exchange, max(0.0, sent - over_seconds) if over_seconds is not None else 0.0)
        except RequestError as error:
            skipped[str(error)] += 1
            continue
        over_seconds = max(over_seconds or 0.0, over)
        yield turn


def _turn(exchange: Exchange, pause_seconds: float) -> Turn:
    """Raises RequestError."""
    dialect, response = exchange.dialect, exchange.response
    if dialect is None:
        raise InvalidRequest(f"{exchange.path} is none of Chat Completions, Messages and Responses")
    body = exchange.body
    return Turn(
        exchange.number,
        exchange.label[:MAX_LABEL_CHARACTERS],
        dialect,
        body,
        dialect.read_request(body),
        {name: value for name, value in exchange.request.headers if name.lower().startswith(_TOLD_HEADERS)},
        pause_seconds,
        max(0.0, response.t - exchange.request.t) if response is not None else 0.0,
        exchange.plan,
        tuple(response.tokens or ()) if response is not None else (),
        response.model if response is not None else "",
    )
