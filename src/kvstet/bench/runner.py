"""Runs the suite: each scenario on each server in turn, again and again, with other text each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kvstet.bench import results
from kvstet.bench.asking import client_of
from kvstet.bench.measuring import Effort, Measurement, prepare
from kvstet.bench.rates import prefill_rate
from kvstet.bench.resident import Peaks, watched
from kvstet.bench.servers import Server
from kvstet.bench.software import Limits
from kvstet.bench.stage import Stage
from kvstet.bench.suite import Scenario
from kvstet.bench.text import CHARACTERS_PER_TOKEN, Text
from kvstet.bench.yardstick import Yardstick
from kvstet.errors import ServerGone
from kvstet.replay.bound import Known
from kvstet.replay.results import Run

NUM_WARMUP_TOKENS = 530
"""More than a physical batch, so that whatever is allocated late is there before anything is measured."""

GROWTH_SHARE = 0.9
"""Of the context: lengths are estimated, and no request may be too long."""

BROKEN_OFF = "Broken off: the time was up, or somebody ended it."

_NUM_SAMPLE_TOKENS = 2000


@dataclass(frozen=True, slots=True)
class News:
    """What is being done."""

    scenario: str
    server: str
    repetition: int
    num_done: int
    num_runs: int


class Runner:
    """Fills ``scenarios``, from which what was found can be taken at any time."""

    def __init__(
        self,
        servers: Sequence[Server],
        suite: Sequence[Scenario],
        effort: Effort,
        *,
        context_length: int,
        seed: int,
        watch: Callable[[News], None] = lambda news: None,
    ) -> None:
        """The first server is kvstet: it counts tokens for all. ``context_length``: of all servers."""
        self.scenarios = [_empty(scenario) for scenario in suite]
        self._servers = tuple(servers)
        self._suite = tuple(suite)
        self._effort = effort
        self._context_length = context_length
        self._seed = seed
        self._watch = watch
        self._known = {server.name: Known() for server in servers}
        self._warm_urls: set[str] = set()
        self._characters_per_token = CHARACTERS_PER_TOKEN
        self._num_done = 0
        self._peaks = Peaks()

    def __repr__(self) -> str:
        return f"Runner({self._num_done} of {self.num_runs} runs, {self._servers})"

    @property
    def num_runs(self) -> int:
        return sum(map(self._num_pairs, self._suite)) * len(self._servers)

    def _num_pairs(self, scenario: Scenario) -> int:
        return min(self._effort.num_pairs, scenario.max_pairs or self._effort.num_pairs)

    async def run(self) -> None:
        """All of it. Where it is cancelled, ``scenarios`` hold what was done until then."""
        async with watched(self._servers, self._peaks):
            await self._measure_text()
            for repetition in range(self._effort.num_pairs):
                await self._round(repetition)

    async def _measure_text(self) -> None:
        """How long this model's tokens are."""
        sample = Text("sample").code(_NUM_SAMPLE_TOKENS)
        async with client_of(self._servers[0]) as client:
            self._characters_per_token = len(sample) / len(await Yardstick(client).tokens(sample))

    async def _round(self, repetition: int) -> None:
        for place, scenario in enumerate(self._suite):
            if repetition < self._num_pairs(scenario):
                # Who goes first alternates, from scenario to scenario as well as from pair to pair.
                is_backward = (place + repetition) % 2 == 1
                await self._pair(place, repetition, self._servers[::-1] if is_backward else self._servers)

    async def _pair(self, place: int, repetition: int, servers: Sequence[Server]) -> None:
        scenario = self._suite[place]
        failures = {server.name: await self._failure_to_fit(server, scenario) for server in self._servers}
        measurement = await self._prepare(scenario, repetition)
        for server in servers:
            self._watch(News(scenario.name, server.name, repetition, self._num_done, self.num_runs))
            run = Run(server=server.name, repetition=repetition, failure=failures[server.name])
            self.scenarios[place].runs.append(run)
            if run.failure is None:
                await self._take(measurement, server, run)
            self._num_done += 1
        self._note_memory(scenario)

    async def _failure_to_fit(self, server: Server, scenario: Scenario) -> str | None:
        """Give it the scenario's room, and warm it up where it is new; why it cannot have that."""
        try:
            await server.fit(scenario.limits)
            if server.url not in self._warm_urls:
                await self._warm_up(server, scenario.limits)
        except ServerGone as error:
            return str(error)
        return None

    async def _warm_up(self, server: Server, limits: Limits | None) -> None:
        num_tokens = NUM_WARMUP_TOKENS if limits is None else min(NUM_WARMUP_TOKENS, limits.context_length // 4)
        text = Text(f"warm-up {server.url}", self._characters_per_token).unique(num_tokens)
        async with client_of(server) as client:
            await prefill_rate(client, server.model, text, num_tokens)
        self._warm_urls.add(server.url)

    async def _prepare(self, scenario: Scenario, repetition: int) -> Measurement:
        text = Text(f"{self._seed} {scenario.name} {repetition}", self._characters_per_token)
        stage = Stage(
            text, min(self._effort.max_growth_tokens, int(GROWTH_SHARE * self._context_length)), self._effort.size
        )
        async with client_of(self._servers[0]) as client:
            return await prepare(scenario.work, stage, Yardstick(client), self._effort)

    async def _take(self, measurement: Measurement, server: Server, run: Run) -> None:
        with self._alone(server):
            try:
                await measurement.take(server, self._known[server.name], run)
            except ServerGone as error:
                run.failure = str(error)
            except asyncio.CancelledError:
                run.failure = BROKEN_OFF
                raise

    @contextmanager
    def _alone(self, server: Server) -> Generator[None]:
        """The others stand still meanwhile."""
        others = [other for other in self._servers if other is not server]
        try:
            for other in others:
                other.rest()
            yield
        finally:
            for other in others:
                other.wake()

    def _note_memory(self, scenario: Scenario) -> None:
        """The highest until now; and what is taken at the end, as long as servers have all that they had."""
        for server, run in self._weighed():
            now, most = self._peaks.look(server), self._peaks.of(server)
            if now is not None and not scenario.forgets:
                run.values["end_bytes"] = now
            if most is not None:
                run.values["peak_bytes"] = most

    def _weighed(self) -> list[tuple[Server, Run]]:
        """The servers' runs of the scenario about memory, where there is one."""
        by_name = {server.name: server for server in self._servers}
        runs = [run for scenario in self.scenarios if scenario.kind == "memory" for run in scenario.runs]
        return [(by_name[run.server], run) for run in runs]


def _empty(scenario: Scenario) -> results.Scenario:
    return results.Scenario(name=scenario.name, title=scenario.title, about=scenario.about, kind=scenario.kind)
