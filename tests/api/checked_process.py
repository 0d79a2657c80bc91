"""An engine process that looks at its own books whenever it has nothing to do, and dies if they are wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from tests.api.books import client_faults, idle_faults, is_known

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import process
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Event, Generate, Started, Token
from kvstet.engine.process import Loaded
from kvstet.engine.supervisor import Supervisor


class CheckedEngine(Engine):
    """Raises AssertionError where something is left of requests that are over."""

    def step(self) -> list[Event]:
        events = super().step()
        if events and self.is_idle:
            faults = idle_faults(self, self._model)
            assert not faults, faults
        return events


def load_checked(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    """Load a GGUF, in a process whose engine will be a `CheckedEngine`."""
    process.Engine = CheckedEngine
    return process.load_llama(options, on_progress)


class WatchedSupervisor(Supervisor):
    """Knows how far each request has come."""

    def __init__(self, model: ModelOptions, options: EngineOptions) -> None:
        super().__init__(model, options, load=load_checked)
        self._stages: dict[str, str] = {}

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        self._stages[request.id] = "queue"
        try:
            async with aclosing(super().generate(request)) as events:
                async for event in events:
                    if isinstance(event, Started | Token):
                        self._stages[request.id] = "reply" if isinstance(event, Token) else "prompt"
                    yield event
        finally:
            del self._stages[request.id]

    @property
    def is_at_rest(self) -> bool:
        """No request is known to anybody, as far as the engine has told."""
        return not is_known(self)

    def stage(self, prefix: str) -> str:
        """How far a request has come whose engine requests are called ``prefix`` and a number."""
        return next((stage for name, stage in self._stages.items() if name.startswith(prefix)), "elsewhere")

    def faults(self) -> list[str]:
        """What is not as it must be when nobody asks for anything. The process says on standard error what died."""
        return client_faults(self)

    @property
    def exit_status(self) -> int | None:
        """How the process ended."""
        return self._process.returncode if self._process else None
