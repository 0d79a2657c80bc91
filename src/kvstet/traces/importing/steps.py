"""What an importer finds in a session, step by step, and the lines of a trace that it gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import Any

from kvstet.dialects.values import number, text, to_json
from kvstet.errors import InvalidRequest
from kvstet.traces.format import VERSION, Header, Line, Plan, Request, Response

UNSEEN_SUMMARY = "a request for a summary, which is not in the file"
UNWRITABLE = "a request that cannot be written as JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What the client must have sent to the model once, and what it was replied."""

    path: str
    body: Mapping[str, Any] = field(repr=False)
    plan: Plan | None = field(default=None, repr=False)
    """None: there was no reply, or the session ends before it."""
    began: float | None = None
    """Unix time, seconds; so is ``ended``."""
    ended: float | None = None
    model: str = ""
    """Who replied."""
    usage: Mapping[str, Any] | None = None
    """In the words of the dialect."""
    status: int = 200
    error: str | None = None
    label: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Session:
    """What an importer has read of a session, or reads while the steps are asked for."""

    by: str
    """The client and, where the file tells it, its version."""
    steps: Iterator[Step] = field(repr=False)


def lines_of(session: Session, passed_over: Counter[str]) -> Iterator[Line]:
    """The trace of a session. Times that are not known are those of what came before."""
    first = next(session.steps, None)
    wall = None if first is None else first.began
    yield Header(kvstet_trace=VERSION, by=session.by, wall=wall)
    clock = _Clock(wall)
    for seq, step in enumerate(chain([first] if first is not None else [], session.steps), 1):
        try:
            request = _request(seq, step, clock)
        except InvalidRequest:
            passed_over[UNWRITABLE] += 1
            continue
        yield request
        if step.plan is not None or step.error is not None:
            yield _response(seq, step, clock)


class _Clock:
    """Seconds since the trace's beginning. Never runs backwards."""

    def __init__(self, wall: float | None) -> None:
        self._wall = wall
        self._now = 0.0

    def at(self, wall: float | None) -> float:
        if wall is not None:
            self._wall = wall if self._wall is None else self._wall
            self._now = max(self._now, round(wall - self._wall, 6))
        return self._now


def _request(seq: int, step: Step, clock: _Clock) -> Request:
    body = to_json(step.body)
    t = clock.at(step.began)
    return Request(seq=seq, t=t, path=step.path, headers=list(step.headers), body_raw=body, label=step.label)


def _response(seq: int, step: Step, clock: _Clock) -> Response:
    return Response(
        seq=seq,
        t=clock.at(step.ended),
        status=step.status,
        plan=step.plan,
        model=step.model,
        usage=dict(step.usage) if step.usage is not None else None,
        error_raw=step.error,
        kind=step.label,
    )


def seconds_of(value: object) -> float | None:
    """Unix time, of ISO 8601 or of milliseconds, seconds; None where it is neither."""
    milliseconds = number(value)
    if milliseconds is not None:
        return milliseconds / 1000.0
    try:
        # Python 3.11 reads the Z. A time without a zone is the machine's own, which nobody knows: it counts as UTC.
        moment = datetime.fromisoformat(text(value))
        return (moment if moment.tzinfo else moment.astimezone()).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def status_in(message: str) -> int:
    """The HTTP status that a client's own words about an error name; 500 where they name none."""
    found = re.search(r"\b[45]\d\d\b", message[:200])
    return int(found[0]) if found else 500
