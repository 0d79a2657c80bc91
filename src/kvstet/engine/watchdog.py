"""Notices an engine that hangs: it has requests to work on, and says nothing for longer than any step should take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from kvstet.engine.messages import LAST_EVENTS, Event
from kvstet.types import RequestId

NUM_TIMES_LONGEST = 10
"""A silence is a hang once it is this many times as long as the longest that was none."""

MAX_TICK_SECONDS = 1.0
NUM_TICKS = 20
"""Into how many ticks the shortest limit is divided, where these are shorter than `MAX_TICK_SECONDS`."""


class Watchdog:
    """Counts how long an engine with work has been silent; the engine reports after every step.

    Silence is counted in ticks of the server's own event loop, and not read off a clock. So time in which the server
    stood still as well (Ctrl-Z, a suspended machine) is not held against the engine. It is counted as long as the
    engine owes some request its end, whether or not a client still waits for it: clients whose patience is shorter
    than the limit would hide a hang for ever.
    """

    def __init__(self, seconds: float | None) -> None:
        """``seconds``: the shortest silence that may be a hang. None: nothing is one."""
        self._seconds = seconds
        self._tick_seconds = min(MAX_TICK_SECONDS, (seconds or MAX_TICK_SECONDS) / NUM_TICKS)
        self._owed: set[RequestId] = set()
        self._silent_seconds = 0.0
        self._longest_seconds = 0.0

    def __repr__(self) -> str:
        return f"Watchdog({self._silent_seconds:.1f} of {self.limit_seconds} s silent, owed={len(self._owed)})"

    @property
    def limit_seconds(self) -> float | None:
        """From how long on a silence is a hang; grows with the slowest step."""
        if self._seconds is None:
            return None
        return max(self._seconds, NUM_TIMES_LONGEST * self._longest_seconds)

    @property
    def silent_seconds(self) -> float:
        """How long the engine has said nothing since it has had work."""
        return self._silent_seconds if self._owed else 0.0

    def expect(self, request_id: RequestId) -> None:
        """The engine was given a request."""
        if not self._owed:
            self._silent_seconds = 0.0
        self._owed.add(request_id)

    def hear(self, events: Sequence[Event]) -> None:
        """The engine has reported: its silence, however long, was none."""
        self.allow(self.silent_seconds)
        self._silent_seconds = 0.0
        self._owed.difference_update(event.id for event in events if isinstance(event, LAST_EVENTS))

    def allow(self, step_seconds: float) -> None:
        """A step may take this long on this machine."""
        self._longest_seconds = max(self._longest_seconds, step_seconds)

    def forget(self) -> None:
        """The engine's process is over, and owes nothing."""
        self._owed.clear()

    def tick(self, seconds: float) -> bool:
        """Time has passed; whether the engine hangs. Much more than one tick is time in which nobody was awake."""
        self._silent_seconds += min(seconds, 2 * self._tick_seconds)
        limit = self.limit_seconds
        return limit is not None and self.silent_seconds >= limit

    async def wait_for_hang(self) -> float:
        """Returns once the engine hangs, with the seconds of its silence; cancel it where it need not be known."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(self._tick_seconds)
            now = loop.time()
            if self.tick(now - last):
                return self.silent_seconds
            last = now
