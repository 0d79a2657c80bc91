"""One run: one scenario, once, on one server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2

from kvstet.bench.asking import PATHS, ask, client_of
from kvstet.bench.servers import Server
from kvstet.bench.steps import PAUSE_SECONDS, SAVING_SECONDS, Ask, Body, Restart, Step, asks_of
from kvstet.bench.yardstick import Prompt, Yardstick
from kvstet.errors import ServerGone
from kvstet.replay.bound import Known
from kvstet.replay.results import Asked, Run


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step, and the prompts of its requests."""

    step: Step
    prompts: tuple[Prompt, ...]

    @property
    def requests(self) -> list[tuple[Ask, Prompt]]:
        return list(zip(asks_of(self.step), self.prompts, strict=True))


async def prepared(steps: Sequence[Step], yardstick: Yardstick) -> list[Prepared]:
    """Once for all servers, before the first of them is asked."""
    return [Prepared(step, tuple([await yardstick.prompt(each.body) for each in asks_of(step)])) for step in steps]


@dataclass(slots=True)
class Player:
    """Plays steps to one server, and notes in ``run`` what each request cost."""

    server: Server
    known: Known
    run: Run
    _began: float = field(default_factory=time.perf_counter, init=False)

    async def play(self, prepared: Sequence[Prepared]) -> None:
        """ServerGone: the server is gone, or has refused a request; what would have come behind it is not sent."""
        for each in prepared:
            if isinstance(each.step, Restart):
                await asyncio.sleep(SAVING_SECONDS)
                self.run.values["start_seconds"] = await self.server.restart()
            else:
                await asyncio.sleep(PAUSE_SECONDS)
                await self._ask_together(each.requests)

    async def _ask_together(self, requests: Sequence[tuple[Ask, Prompt]]) -> None:
        bounds: list[int] = []
        for _, prompt in requests:
            bounds.append(self.known.num_bound_tokens(prompt.tokens))
            self.known.add(prompt.tokens)
        async with client_of(self.server) as client:
            asked = await asyncio.gather(*(self._ask(client, one, prompt) for one, prompt in requests))
        for each, bound in zip(asked, bounds, strict=True):
            each.num_bound_tokens = bound
        self.run.asked += asked
        for each in asked:
            if each.error is not None:
                raise ServerGone(f"{each.label}: {each.error}")

    async def _ask(self, client: httpx2.AsyncClient, one: Ask, prompt: Prompt) -> Asked:
        asked = await ask(client, PATHS[self.server.endpoint], self._body(one, prompt), one.label, self._began)
        if asked.num_prompt_tokens is None and asked.error is None:
            asked.num_prompt_tokens = len(prompt.tokens)
        return asked

    def _body(self, one: Ask, prompt: Prompt) -> Body:
        what = one.body if self.server.endpoint == "chat" else {"prompt": prompt.text}
        return {**what, "max_tokens": 1, "model": self.server.model}
