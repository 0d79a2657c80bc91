"""The whole of ``kvstet bench``: find the servers, start them, run the suite, and say what came of it."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kvstet.bench import results
from kvstet.bench.about import model_of
from kvstet.bench.drifting import Drifted, drift_told_by, verification
from kvstet.bench.machine import this_machine
from kvstet.bench.measuring import Effort
from kvstet.bench.runner import News, Runner
from kvstet.bench.servers import Local, Server, remote
from kvstet.bench.software import Settings, Software, kvstet
from kvstet.bench.suite import Scenario
from kvstet.errors import ServerGone


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is done, and for how long at most."""

    name: Literal["quick", "full"]
    effort: Effort
    max_context_length: int
    """Where the user says nothing, and the model was trained for more."""
    seconds: float
    num_drift_edits: int = 0
    """Edits on which the drift of moved state is measured; there are four kinds."""


QUICK = Amount("quick", Effort(1, 4096, 64, (500,)), 8192, 330.0)
FULL = Amount("full", Effort(5, 100_000, 128, (500, 3000), size=2), 32_768, 2640.0, num_drift_edits=4)

FIRST_CONTEXT_LENGTH = 8192
"""With which kvstet starts, to say what the model was trained for."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted."""

    model: Path
    peers: Sequence[Software]
    urls: Sequence[str]
    suite: Sequence[Scenario]
    amount: Amount
    seed: int
    command: str
    """As it was typed."""
    context_length: int | None = None


class Benchmark:
    """One run of ``kvstet bench``; ``results`` are there at any time."""

    def __init__(
        self,
        order: Order,
        say: Callable[[str], None] = lambda sentence: None,
        watch: Callable[[News], None] = lambda news: None,
    ) -> None:
        """``say`` is told what stands in no number: what is started, and what does not start."""
        self._order = order
        self._say = say
        self._watch = watch
        self._began_wall, self._began = time.time(), time.monotonic()
        self._runner: Runner | None = None
        self._model: results.Model | None = None
        self._servers: list[results.Server] = []
        self._drifted = Drifted([], None)

    def __repr__(self) -> str:
        return f"Benchmark({self._runner or 'not started'})"

    @property
    def results(self) -> results.Results | None:
        """What was found until now; None before the servers stand."""
        if self._runner is None or self._model is None:
            return None
        return results.Results(
            began_wall=self._began_wall,
            seconds=time.monotonic() - self._began,
            command=self._order.command,
            seed=self._order.seed,
            is_quick=self._order.amount.name == "quick",
            machine=this_machine(),
            model=self._model,
            servers=self._servers,
            scenarios=[scenario for scenario in self._runner.scenarios if scenario.runs],
            drift=self._drifted.points,
            noise_divergence=self._drifted.noise_divergence,
        )

    async def run(self) -> None:
        """Returns when all is done or the time is up. ServerGone: kvstet does not start, or at an address is nobody."""
        with tempfile.TemporaryDirectory(prefix="kvstet-bench-", ignore_cleanup_errors=True) as folder:
            try:
                async with asyncio.timeout(self._order.amount.seconds):
                    async with AsyncExitStack() as stack:
                        await self._run(await self._start(Path(folder), stack))
                    await self._measure_drift(Path(folder))
            except TimeoutError:
                self._say("The time is up; what is missing was not measured.")

    async def _run(self, servers: Sequence[Server]) -> None:
        assert self._model is not None
        order = self._order
        self._servers = [
            results.Server(name=server.name, version=server.version, command=server.command) for server in servers
        ]
        self._runner = Runner(
            servers,
            order.suite,
            order.amount.effort,
            context_length=self._model.context_length,
            seed=order.seed,
            watch=self._watch,
        )
        await self._runner.run()

    async def _measure_drift(self, folder: Path) -> None:
        """Of kvstet alone: no other server moves state."""
        num_edits = self._order.amount.num_drift_edits
        if not num_edits:
            return
        self._say("Measuring how far moved state drifts ...")
        try:
            self._drifted = await drift_told_by(verification(self._order.model, num_edits, folder / "verify"))
        except ServerGone as error:
            self._say(str(error))
        if self._drifted.refusal is not None:
            self._say(f"State of this model cannot be moved: {self._drifted.refusal}.")

    async def _start(self, folder: Path, stack: AsyncExitStack) -> list[Server]:
        """kvstet first, then its peers; those that do not start are told, and left out."""
        order = self._order
        remotes = [await remote(url) for url in order.urls]
        servers: list[Server] = [await self._start_kvstet(folder, stack)]
        settings = Settings(order.model, folder, self._context_length)
        for software in order.peers:
            try:
                servers.append(await self._start_local(software, settings, stack))
            except ServerGone as error:
                self._say(str(error))
        return [*servers, *remotes]

    async def _start_kvstet(self, folder: Path, stack: AsyncExitStack) -> Server:
        """It also says what the model was trained for; where that is less or more than was thought, it starts again."""
        order = self._order
        first_length = order.context_length or FIRST_CONTEXT_LENGTH
        server = await self._start_local(kvstet(), Settings(order.model, folder, first_length), stack)
        self._model = await model_of(server, order.model)
        length = order.context_length or min(self._model.context_length, order.amount.max_context_length)
        self._model.context_length = length
        if length == first_length:
            return server
        await server.stop()
        return await self._start_local(kvstet(), Settings(order.model, folder, length), stack)

    async def _start_local(self, software: Software, settings: Settings, stack: AsyncExitStack) -> Local:
        self._say(f"Starting {software.name} ({software.version}) ...")
        server = Local(software, settings)
        stack.callback(server.kill)
        await server.start()
        return server

    @property
    def _context_length(self) -> int:
        assert self._model is not None
        return self._model.context_length
