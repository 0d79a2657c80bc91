"""One question to a model, asked again where that may help, and timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from kvstet.agent.events import Replying, Retrying, Watch
from kvstet.agent.model import ModelClient
from kvstet.dialects.reply import ReplyBegin
from kvstet.dialects.request import Request
from kvstet.dialects.whole import Reply, ReplyBuilder
from kvstet.errors import ModelFailed

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that may be another the next time. 409: Anthropic's and OpenAI's SDKs retry it too."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How often and how long."""

    max_retries: int = 4
    first_seconds: float = 1.0
    """Before the first retry; each further one waits twice as long."""
    max_seconds: float = 60.0
    """A server that wants more than this is not waited for."""

    def pause(self, num_failures: int, error: ModelFailed) -> float | None:
        """Seconds to wait after so many failures; None: give up."""
        if num_failures > self.max_retries or (error.status is not None and error.status not in _RETRIED):
            return None
        seconds = max(self.first_seconds * 2 ** (num_failures - 1), error.retry_after_seconds or 0.0)
        return seconds if seconds <= self.max_seconds else None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply."""

    reply: Reply
    seconds: float
    first_token_seconds: float | None
    """None: nothing came that could be timed."""


class Asker:
    """Asks a model, and tells who watches."""

    def __init__(self, model: ModelClient, *, patience: Patience | None = None, sleep: Sleep = asyncio.sleep) -> None:
        self._model = model
        self._patience = patience or Patience()
        self._sleep = sleep

    async def ask(self, request: Request, watch: Watch, *, is_summary: bool = False) -> Answer:
        """Raises ModelFailed, once all retries are used up. A reply that breaks off is never kept in part."""
        num_failures = 0
        while True:
            try:
                return await self._asked(request, watch, is_summary)
            except ModelFailed as error:
                num_failures += 1
                pause = self._patience.pause(num_failures, error)
                if pause is None:
                    raise
                watch(Retrying(error, pause))
                await self._sleep(pause)

    async def _asked(self, request: Request, watch: Watch, is_summary: bool) -> Answer:
        builder, begun, first = ReplyBuilder(), time.monotonic(), None
        async with aclosing(self._model.complete(request)) as deltas:
            async for delta in deltas:
                if first is None and not isinstance(delta, ReplyBegin):
                    first = time.monotonic() - begun
                builder.add(delta)
                watch(Replying(delta, is_summary))
        return Answer(builder.reply, time.monotonic() - begun, first)
