"""Calls one after the other.

In a Chat stream pieces of several calls may alternate, and text may come between them. The blocks of a Messages reply,
and in practice the items of a Responses reply, lie one behind the other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from kvstet.dialects.reply import ArgumentsDelta, CallBegin, CallEnd, Delta, Failure, ReplyBegin, ReplyEnd, UsageNews


@dataclass(slots=True)
class _Lane:
    """What belongs together: one call, or what is said between calls."""

    call: int | None
    waiting: list[Delta] = field(default_factory=list[Delta])
    is_over: bool = False


class Sequencer:
    """Deltas in, the same deltas out, each call whole before the next thing begins. The first is never held back."""

    def __init__(self) -> None:
        self._lanes: deque[_Lane] = deque()

    def __repr__(self) -> str:
        return f"Sequencer({len(self._lanes)} lanes)"

    def feed(self, delta: Delta) -> list[Delta]:
        match delta:
            case ReplyBegin() | UsageNews():
                return [delta]
            case ReplyEnd() | Failure():
                return [*self._all(), delta]
            case CallBegin(index=index):
                self._lanes.append(_Lane(index, [delta]))
            case ArgumentsDelta(index=index) | CallEnd(index=index):
                lane = self._lane(index)
                if lane is None:
                    return []
                lane.waiting.append(delta)
                lane.is_over = isinstance(delta, CallEnd)
            case _:
                if not self._lanes or self._lanes[-1].call is not None:
                    self._lanes.append(_Lane(None))
                self._lanes[-1].waiting.append(delta)
        return self._ready()

    def _lane(self, call: int) -> _Lane | None:
        """None: of a call that never began, or is over."""
        return next((lane for lane in self._lanes if lane.call == call and not lane.is_over), None)

    def _ready(self) -> list[Delta]:
        ready: list[Delta] = []
        while self._lanes:
            first = self._lanes[0]
            ready += first.waiting
            first.waiting.clear()
            if not (first.is_over or (first.call is None and len(self._lanes) > 1)):
                break
            self._lanes.popleft()
        return ready

    def _all(self) -> list[Delta]:
        ready: list[Delta] = []
        for lane in self._lanes:
            ready += lane.waiting
            if lane.call is not None and not lane.is_over:
                ready.append(CallEnd(lane.call))
        self._lanes.clear()
        return ready
