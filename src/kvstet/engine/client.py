"""How the server talks to an engine, wherever that runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from kvstet.engine.messages import Anticipate, Appraise, Appraised, Event, Generate, ModelInfo, Stats


class EngineClient(Protocol):
    """One model's engine, seen from the server's event loop.

    `kvstet.engine.supervisor.Supervisor` is the real one, in a process of its own;
    `kvstet.engine.fake_client.ScriptedEngine` is the fake.
    """

    @property
    def info(self) -> ModelInfo: ...

    @property
    def is_ready(self) -> bool:
        """False while the engine starts or restarts; requests then wait for it."""
        ...

    def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Events of one request: Started, Progress..., Token..., Finished. Closing the generator cancels it.

        Raises what went wrong (a `RequestError` or `Unavailable`) instead of yielding ``Failed``.
        """
        ...

    async def appraise(self, question: Appraise) -> Appraised:
        """What a prompt would cost, were it asked for now. Raises what `generate` raises."""
        ...

    def anticipate(self, prompt: Anticipate) -> None:
        """A prompt will probably come. Never waits and never fails; nothing depends on it."""
        ...

    def stats(self) -> Stats:
        """The latest counters; never waits."""
        ...

    async def close(self) -> None:
        """Stop the engine; requests in flight end with `ShuttingDown`."""
        ...
