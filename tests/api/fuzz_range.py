"""A server under fire, and what is left after each volley."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from starlette.types import ASGIApp
from tests.api.fuzz_clients import Call, Magazine, Shot
from tests.api.test_fuzz import Alarm, _where

MAX_FAULTS = 10


class Target(Protocol):
    """An engine that can be looked into."""

    @property
    def is_at_rest(self) -> bool:
        """No request is known to anybody, and none is on its way."""
        ...

    def stage(self, prefix: str) -> str:
        """How far the request has come whose engine requests are called ``prefix`` and a number."""
        ...

    def faults(self) -> list[str]:
        """What is not as it must be when nobody asks for anything."""
        ...


@dataclass
class Outcome:
    """What came of a run."""

    name: str
    """How to have it again."""
    faults: list[str] = field(default_factory=list[str])
    shots: list[Shot] = field(default_factory=list[Shot])
    """The last volley, which the faults are of."""
    seen: Counter[str] = field(default_factory=Counter[str])
    """How often what has happened: statuses, where clients hung up, what the engine did."""

    def __str__(self) -> str:
        return f"{self.name}: {len(self.faults)} faults\n" + "\n".join(self.faults[:MAX_FAULTS])

    def keep_shots(self, folder: Path) -> str:
        """Write the bodies of the volley that failed, and say what is wrong."""
        for shot in self.shots:
            (folder / f"{shot.number}.body").write_bytes(shot.body)
        return f"{self}\nThe bodies of the last volley are in {folder}."


class Range:
    """Fires volleys at a server and looks at what is left of them."""

    def __init__(
        self,
        app: ASGIApp,
        target: Target,
        magazine: Magazine,
        outcome: Outcome,
        pause: Callable[[int], Awaitable[None]],
        settle_pauses: int,
    ) -> None:
        """``pause`` lets the engine do so many steps, more or less; after ``settle_pauses``, requests that were hung
        up must be over."""
        self.outcome = outcome
        self._app, self._target, self._magazine, self._pause = app, target, magazine, pause
        self._settle_pauses = settle_pauses
        self._others = asyncio.all_tasks()

    async def fire(self, num_shots: int, random: Random, sizes: tuple[int, ...]) -> None:
        """Volleys of these sizes, until there were so many damaged requests, or something is wrong."""
        while self.outcome.seen["damaged"] < num_shots and not self.outcome.faults:
            await self._volley(random.choice(sizes))

    async def _volley(self, count: int) -> None:
        """Several requests at once; returns when there should be nothing left of them."""
        calls = [Call(self._magazine.next(), self._pause, self._target.stage) for _ in range(count)]
        with alarm() as alarms:
            await asyncio.gather(*(call.run(self._app) for call in calls))
            await self._settle()
        self.outcome.shots = [call.shot for call in calls]
        self.outcome.faults += [f"{call.shot.label}: {fault}" for call in calls for fault in call.faults()]
        left = [*alarms, *self._target.faults(), *self._tasks_left()]
        labels = f"after shots {calls[0].shot.number} to {calls[-1].shot.number}"
        self.outcome.faults += [f"{labels}: {fault}" for fault in left]
        for call in calls:
            self._count(call)

    async def _settle(self) -> None:
        """The engine hears of those that hung up."""
        for _ in range(self._settle_pauses):
            if self._target.is_at_rest:
                return
            await self._pause(1)

    def _tasks_left(self) -> list[str]:
        return [f"a task is left: {task!r}" for task in asyncio.all_tasks() - self._others]

    def _count(self, call: Call) -> None:
        seen, shot = self.outcome.seen, call.shot
        seen["damaged" if shot.is_damaged else "sound"] += 1
        seen[f"at {shot.dialect}"] += 1
        if call.hung_up_in is not None:
            seen[f"hung up in {call.hung_up_in}"] += 1
        elif call.status is not None:
            seen[f"status {call.status}"] += 1
            if call.status == 200:
                seen["damaged and served"] += shot.is_damaged
                self._magazine.learn(shot, call.response())


@contextmanager
def alarm() -> Generator[list[str]]:
    """What the server calls unforeseen, and what the event loop has to complain of."""
    handler, found = Alarm(), list[str]()
    logger, loop = logging.getLogger("kvstet.api"), asyncio.get_running_loop()
    logger.addHandler(handler)
    loop.set_exception_handler(lambda _, context: found.append(f"the loop complains: {context}"))
    try:
        yield found
    finally:
        loop.set_exception_handler(None)
        logger.removeHandler(handler)
        found += map(_where, handler.records)
