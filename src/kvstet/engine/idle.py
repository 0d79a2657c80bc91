"""What the engine does while nobody asks, one small piece at a time."""

from __future__ import annotations

import time

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
        self, cache: Cache, live: LiveSet, approximator: Approximator, anticipator: Anticipator, auditor: Auditor
    ) -> None:
        self._cache = cache
        self._live = live
        self._approximator = approximator
        self._anticipator = anticipator
        self._auditor = auditor

    def step(self) -> float | None:
        """Seconds after which there is more to do, 0: at once; None: nothing is left until a request has come."""
        if self._live.idle_step():
            return 0.0
        # The disk works beside it, on a thread of its own.
        is_writing_more = self._cache.write_step()
        self._approximator.tidy()
        if self._anticipator.step() or is_writing_more:
            return 0.0
        if self._cache.is_writing:
            return WRITING_SECONDS
        return 0.0 if self._cache.flush_step() or self._cache.warm_step() or self._auditor.step() else None

    def give_way(self) -> None:
        """A request comes: leave the model as if nothing was under way."""
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
