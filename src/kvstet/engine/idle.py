"""What the engine does while nobody asks, one small piece at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvstet.cache.cache import Cache
from kvstet.engine.anticipation import Anticipator
from kvstet.engine.approximation import Approximator
from kvstet.engine.audit import Auditor
from kvstet.engine.live import LiveSet

WRITING_SECONDS = 0.005
"""How long to wait before looking again whether a blob is on disk."""


class IdleWork:
    """In order of urgency: save, write, compute what will be asked for, bring back what may be, and audit."""

    def __init__(
        self,
        cache: Cache,
        live: LiveSet,
        approximator: Approximator,
        anticipator: Anticipator,
        auditor: Auditor,
        *,
        audit_delay_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._live = live
        self._approximator = approximator
        self._anticipator = anticipator
        self._auditor = auditor
        self._audit_delay_seconds = audit_delay_seconds
        self._clock = clock
        self._idle_since: float | None = None

    def step(self) -> float | None:
        """Seconds after which there is more to do, 0: at once; None: nothing is left until a request has come."""
        if self._idle_since is None:
            self._idle_since = self._clock()
        if self._live.idle_step():
            return 0.0
        # The disk works beside it, on a thread of its own.
        is_writing_more = self._cache.write_step()
        self._approximator.tidy()
        if self._anticipator.step() or is_writing_more:
            return 0.0
        if self._cache.is_writing:
            return WRITING_SECONDS
        if self._cache.flush_step() or self._cache.warm_step():
            return 0.0
        return self._audit_step(self._idle_since)

    def _audit_step(self, idle_since: float) -> float | None:
        """Nobody waits for an audit, so the next step of an agent that is at work should not have to wait for one."""
        if not self._auditor.is_due:
            return None
        early = idle_since + self._audit_delay_seconds - self._clock()
        if early > 0:
            return early
        return 0.0 if self._auditor.step() else None

    def give_way(self) -> None:
        """A request comes: leave the model as if nothing was under way."""
        self._idle_since = None
        self._auditor.give_way()
        self._anticipator.give_way()

    def finish(self, seconds: float) -> None:
        """Save and write what would be lost with the process, for so long at most."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._live.idle_step() or self._cache.write_step():
                continue
            if not self._cache.is_writing:
                break
            time.sleep(WRITING_SECONDS)
