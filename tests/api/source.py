"""A fake stream for tests of what reads streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any


class Source:
    """Yields its steps, pauses for each float, waits for each event, and raises each exception.

    Remembers how far it came, and whether it was closed.
    """

    def __init__(self, *steps: object) -> None:
        self._steps = steps
        self.num_begun_steps = 0
        self.is_closed = False

    async def events(self) -> AsyncGenerator[Any, None]:
        try:
            for step in self._steps:
                self.num_begun_steps += 1
                match step:
                    case asyncio.Event():
                        await step.wait()
                    case float():
                        await asyncio.sleep(step)
                    case Exception():
                        raise step
                    case _:
                        yield self.event(step)
        finally:
            self.is_closed = True

    def event(self, step: object) -> object:
        """What a step is yielded as."""
        return step
