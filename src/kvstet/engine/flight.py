"""A request on its way through an engine process, seen from the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from kvstet.engine.messages import LAST_EVENTS, Appraise, Event, Failed, Generate, Token
from kvstet.errors import KvstetError

MAX_RUNS = 2
"""A request that was under way when the engine died is run again once; it may be what kills it."""


@dataclass(eq=False, slots=True)
class Flight:
    """A request in flight."""

    request: Generate | Appraise
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue[Event], repr=False)
    is_seen: bool = False
    """The client has seen a token, so the request cannot be run again unseen."""
    num_crashes: int = 0
    is_over: bool = False

    def put(self, event: Event) -> None:
        """Hand an event to whoever reads; nothing follows the last one."""
        if not self.is_over:
            self.is_over = isinstance(event, LAST_EVENTS)
            self.is_seen |= self.request.is_streamed and isinstance(event, Token)
            self.inbox.put_nowait(event)

    def fail(self, error: KvstetError) -> None:
        """End it with what went wrong."""
        self.put(Failed(self.request.id, error))

    def crash(self, error: KvstetError) -> None:
        """The engine died: the request fails, unless it can be run again unseen."""
        self.num_crashes += 1
        if self.is_seen or self.num_crashes >= MAX_RUNS:
            self.fail(error)
