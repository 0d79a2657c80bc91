"""The engine's process with little RAM and a disk, and killed at any moment: nothing is lost, nothing is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.engine.conversations import Agent, Conversation
from tests.engine.faults import FILE_FAULTS, FixedRates, digest_of, spoil
from tests.toys import toy_path

from kvstet.cache.disk import blobfile
from kvstet.cache.rates import Rates
from kvstet.config import MIB, EngineOptions, ModelOptions
from kvstet.engine.messages import Generate, Started, Token
from kvstet.engine.process import Loaded, load_llama
from kvstet.engine.supervisor import Supervisor
from kvstet.errors import DamagedBlob, EngineCrashed
from kvstet.types import GREEDY, RequestId, Reuse

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    logprobs: list[float]
    reuse: Reuse


class Client:
    """Asks an engine process; one that dies is asked again."""

    def __init__(self, supervisor: Supervisor, num_reply_tokens: int) -> None:
        self.supervisor = supervisor
        self.num_reply_tokens = num_reply_tokens
        self.num_crashes = 0
        self._names = iter(range(1_000_000))

    async def ask(self, tokens: list[int], cuts: tuple[int, ...] = (), **more: bool) -> Answer:
        while True:
            with suppress(EngineCrashed):
                return await self._ask(tokens, cuts, **more)
            self.num_crashes += 1

    async def _ask(self, tokens: list[int], cuts: tuple[int, ...], **more: bool) -> Answer:
        request = Generate(
            RequestId(f"r{next(self._names)}"),
            np.array(tokens, np.int32),
            cuts,
            max_new_tokens=self.num_reply_tokens,
            sampling=GREEDY,
            num_logprobs=0,
            ignore_eos=True,
            **more,
        )
        reuses: list[Reuse] = []
        said: list[Token] = []
        async for event in self.supervisor.generate(request):
            if isinstance(event, Started):
                reuses.append(event.reuse)
                said.clear()
            elif isinstance(event, Token):
                said.append(event)
        logprobs = [token.logprobs.logprob for token in said if token.logprobs]
        return Answer([token.token for token in said], logprobs, reuses[-1])

    async def until_written(self) -> None:
        await until(lambda: self.supervisor.is_ready and self.supervisor.stats().num_unwritten_blobs == 0)


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to pass"
        await asyncio.sleep(0.002)


def load_with_fixed_rates(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    """As `load_llama`, in a process where no plan depends on how long anything took."""
    Rates.observe_compute = FixedRates.observe_compute
    Rates.observe_load = FixedRates.observe_load
    return load_llama(options, on_progress)


@asynccontextmanager
async def engine_process(
    model: Path, folder: Path, *, ctx_size: int, ram_bytes: int = 1 << 30, num_reply_tokens: int = 8
) -> AsyncIterator[Client]:
    options = ModelOptions(
        model,
        ctx_size=ctx_size,
        live_cells=ctx_size,
        parallel=2,
        cache_type_k="f32",
        cache_type_v="f32",
        flash_attn="off",
        threads=1,
    )
    engine = EngineOptions(cache_ram_bytes=ram_bytes, cache_folder=folder)
    supervisor = Supervisor(options, engine, load=load_with_fixed_rates)
    await supervisor.start()
    try:
        yield Client(supervisor, num_reply_tokens)
    finally:
        await supervisor.close()


# Little RAM


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that is no file's: what it allocated and touched."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Anonymous:"))
    return int(line.split()[1]) * 1024


async def watch_memory(pid: int, found: list[int]) -> None:
    while True:
        found.append(anonymous_bytes(pid))
        await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Size:
    """Of sessions that are visited in turn."""

    num_tokens: int
    num_message_tokens: int
    num_rounds: int
    num_sessions: int = 6

    @property
    def ctx_size(self) -> int:
        return self.num_tokens + self.num_rounds * 150 + 512


TOKEN_BYTES = 4108 - 12
"""State of one token of the llama toy, in f32."""

ALLOWANCE_BYTES = 8 * MIB
"""What the process may take beside state: a larger tree, the index, the allocator's slack."""


async def visit_in_turn(folder: Path, size: Size) -> None:
    model = toy_path("llama-dense", context_length=size.ctx_size)
    span_bytes = size.num_message_tokens * TOKEN_BYTES
    cap_bytes = size.num_sessions * size.num_tokens * TOKEN_BYTES // 5
    agents = [Agent(lambda conversation: [], seed=seed) for seed in range(size.num_sessions)]
    for agent in agents:
        num_messages = size.num_tokens // size.num_message_tokens
        agent.history = Conversation(tuple(agent.message("tool", size.num_message_tokens) for _ in range(num_messages)))
    async with engine_process(model, folder, ctx_size=size.ctx_size, ram_bytes=cap_bytes) as client:
        # Everything that a request of this length takes but its state.
        await client.ask(agents[0].history.tokens, agents[0].history.cuts, cache_prompt=False)
        assert client.supervisor.pid is not None
        baseline = anonymous_bytes(client.supervisor.pid)
        found: list[int] = []
        watching = asyncio.create_task(watch_memory(client.supervisor.pid, found))
        seen = [0] * len(agents)
        for number in range(size.num_rounds):
            for i, agent in enumerate(agents):
                history = agent.history.add(agent.message("user", 60))
                answer = await client.ask(history.tokens, history.cuts)
                await client.until_written()  # However slow the disk is. What it has not is lost where RAM is full.
                num_new = len(history.tokens) - seen[i]
                excess = answer.reuse.num_computed_tokens - num_new
                assert excess <= size.num_message_tokens + 2, (number, i, answer.reuse)
                seen[i] = len(history.tokens)
                agent.history = history.add(replace(agent.message("assistant", 0), words=tuple(answer.tokens)))
        stats = client.supervisor.stats()
        watching.cancel()
        peak = max(found) - baseline
        print(f"cap {cap_bytes} peak {peak} span {span_bytes} of {baseline}: {stats}")
        assert stats.ram_bytes <= cap_bytes
        assert peak <= cap_bytes + span_bytes + ALLOWANCE_BYTES
        assert stats.disk_bytes > 4 * cap_bytes
        assert stats.num_damaged_blobs == 0


async def test_six_sessions_in_a_fifth_of_their_ram_recompute_nothing(tmp_path: Path):
    await visit_in_turn(tmp_path, Size(2_000, 100, 4))


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_six_sessions_of_20000_tokens_in_a_fifth_of_their_ram_recompute_nothing(tmp_path: Path):
    await visit_in_turn(tmp_path, Size(20_000, 500, 4))


# Kills


async def die_again_and_again(model: Path, folder: Path, num_kills: int, seed: int) -> int:
    """Kill the engine at any moment, mostly while it writes, and damage a file now and then before another reads it.

    How often a file was left half written.
    """
    random = np.random.default_rng(seed)
    temp = folder / "v1" / "temp"
    num_torn = 0
    spoilt: dict[Path, bytes | None] = {}

    def is_spoilt(path: Path) -> bool:
        return digest_of(path) in (spoilt[path], None)

    async with engine_process(model, folder, ctx_size=1024, num_reply_tokens=4) as client:
        agent = Agent(lambda conversation: [], seed=seed)
        history = head = Conversation((agent.message("system", 60),))
        num_asked = 0
        for number in range(num_kills):
            history = (head if len(history.tokens) > 700 else history).add(agent.message("user", 80))
            asking = asyncio.create_task(client.ask(history.tokens, history.cuts))
            if number % 3 == 0:
                await asyncio.sleep(float(random.random()) * 0.1)
            else:
                await asking
                with suppress(AssertionError):
                    await until(lambda: any(temp.iterdir()), 0.3)
            pid = client.supervisor.pid
            assert pid is not None
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: client.supervisor.pid != pid)
            num_torn += any(temp.iterdir())
            files = sorted(path for path in folder.glob("v1/*/*/*") if path.is_file())
            assert {path for path in files if not is_whole(path)} <= {path for path in spoilt if is_spoilt(path)}
            if files and number % 2:
                path = files[int(random.integers(len(files)))]
                with suppress(FileNotFoundError):  # The next process may just have removed it.
                    spoil(path, str(random.choice(FILE_FAULTS)), random)
                spoilt[path] = digest_of(path)
            warm = await asking
            for tokens in (history.tokens, history.add(agent.message("tool", 9)).tokens):
                warm = await client.ask(tokens)
                cold = await client.ask(tokens, cache_prompt=False)
                assert cold.reuse.num_computed_tokens == len(tokens)
                assert warm.tokens == cold.tokens
                assert warm.logprobs == pytest.approx(cold.logprobs, abs=1e-4)
                num_asked += 1
        assert client.supervisor.num_restarts >= num_kills
        await client.until_written()
        before = client.supervisor.stats().num_loaded_tokens
        print(f"{num_kills} kills, {num_torn} while a file was written, {client.num_crashes} seen, {before} loaded")
    assert list(temp.iterdir()) == []
    return num_torn


def is_whole(path: Path) -> bool:
    try:
        blobfile.verify(path)
    except DamagedBlob:
        return False
    except FileNotFoundError:
        pass  # The next process has removed it.
    return True


async def test_a_writer_that_is_killed_leaves_nothing_wrong_behind(tmp_path: Path):
    await die_again_and_again(toy_path("llama-dense", context_length=1024), tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["llama-dense", "qwen35-dense"])
async def test_a_writer_that_is_killed_thirty_times_leaves_nothing_wrong_behind(name: str, tmp_path: Path):
    assert await die_again_and_again(toy_path(name, context_length=1024), tmp_path, 30, seed=2) > 3
