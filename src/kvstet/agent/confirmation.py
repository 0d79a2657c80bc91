"""Who is asked before something is run or written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from kvstet.agent.tools.tool import Action


class Confirmation(Protocol):
    """Says whether something may be done."""

    async def allows(self, action: Action) -> bool: ...


class Yes:
    """Allows everything: ``--yes``."""

    async def allows(self, action: Action) -> bool:
        return True


class No:
    """Allows nothing: nobody is there to be asked."""

    async def allows(self, action: Action) -> bool:
        return False


class Scripted:
    """The fake: gives these answers one after the other, then only no; ``asked`` is what for."""

    def __init__(self, answers: Iterable[bool]) -> None:
        self._answers = iter(answers)
        self.asked: list[Action] = []

    async def allows(self, action: Action) -> bool:
        self.asked.append(action)
        return next(self._answers, False)


class Asking:
    """Asks the user, who may allow some tools once for all."""

    def __init__(self, show: Callable[[Action], None], ask: Callable[[str], str]) -> None:
        """``ask`` shows a question and returns what is typed. EOFError means no, and KeyboardInterrupt that the work
        shall stop, as anywhere else in it."""
        self._show = show
        self._ask = ask
        self._allowed: set[str] = set()

    async def allows(self, action: Action) -> bool:
        if action.repeats and action.tool in self._allowed:
            return True
        self._show(action)
        answer = self._answer(action)
        if answer == "always":
            self._allowed.add(action.tool)
        return answer != "no"

    def _answer(self, action: Action) -> str:
        always = f" (a: always allow {action.tool})" if action.repeats else ""
        while True:
            try:
                typed = self._ask(f"May it? y/n{always} ").strip().casefold()
            except EOFError:
                return "no"
            except KeyboardInterrupt:
                # The event loop hears of it as well, but at its next turn, when the next request may have been sent.
                raise asyncio.CancelledError from None
            if typed in ("y", "yes"):
                return "yes"
            if typed in ("n", "no", ""):
                return "no"
            if action.repeats and typed in ("a", "always"):
                return "always"
