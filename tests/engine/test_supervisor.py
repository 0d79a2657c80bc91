from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import supervisor as supervisor_module
from kvstet.engine.fake import FakeModel
from kvstet.engine.fake_client import TINY_MODEL
from kvstet.engine.messages import Event, Finished, Generate, Progress, Token
from kvstet.engine.model import Batch
from kvstet.engine.process import Loaded, Loader
from kvstet.engine.supervisor import Supervisor
from kvstet.errors import ContextOverflow, EngineCrashed, ModelLoadError, ShuttingDown
from kvstet.types import GREEDY, RequestId

pytestmark = pytest.mark.timeout(300)

POISON = 61


class Mortal(FakeModel):
    """Aborts its process, as libllama may, when it meets the poisonous token."""

    def decode(self, batch: Batch) -> None:
        if POISON in batch.tokens:
            os.abort()
        super().decode(batch)


class Dawdling(FakeModel):
    """Takes minutes over a reply that nobody ends."""

    def decode(self, batch: Batch) -> None:
        time.sleep(0.05)
        super().decode(batch)


def load_mortal(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    on_progress(0.5)
    marker = options.path
    if marker.suffix == ".once" and not marker.exists():
        # Only the first process is mortal: the poison is a passing fault.
        marker.touch()
        return Loaded(Mortal(), TINY_MODEL)
    return Loaded(FakeModel() if marker.suffix == ".once" else Mortal(), TINY_MODEL)


def load_dawdling(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return Loaded(Dawdling(), TINY_MODEL)


def load_nothing(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    raise ModelLoadError("no such file")


def load_and_die(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    os.abort()


def generate(name: str, tokens: list[int], new: int | None = 4) -> Generate:
    return Generate(RequestId(name), np.array(tokens, np.int32), max_new_tokens=new, sampling=GREEDY)


async def collect(supervisor: Supervisor, request: Generate) -> list[Event]:
    return [event async for event in supervisor.generate(request)]


async def reading_reply(supervisor: Supervisor) -> asyncio.Task[None]:
    """What reads a reply without an end, of which the first token has come."""
    has_begun = asyncio.Event()

    async def read() -> None:
        async for event in supervisor.generate(generate("a", [1, 2, 3], new=None)):
            if isinstance(event, Token):
                has_begun.set()

    reading = asyncio.create_task(read())
    await until(has_begun.is_set)
    return reading


async def started(path: str = "fake", load: Loader = load_mortal) -> Supervisor:
    supervisor = Supervisor(ModelOptions(Path(path)), EngineOptions(), load=load)
    await supervisor.start()
    return supervisor


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it never came to pass")


async def test_a_request_streams_its_tokens_through_the_process():
    supervisor = await started()
    events = await collect(supervisor, generate("a", list(range(40))))
    tokens = [event.token for event in events if isinstance(event, Token)]
    expected: list[int] = []
    for _ in range(4):
        expected.append(int(FakeModel().expected_logits([*range(40), *expected]).argmax()))
    assert tokens == expected
    assert isinstance(events[-1], Finished)
    await supervisor.close()


async def test_a_refused_request_raises_and_the_engine_serves_on():
    supervisor = await started()
    with pytest.raises(ContextOverflow, match="4096 tokens"):
        await collect(supervisor, generate("a", [1] * 5000))
    assert len(await collect(supervisor, generate("b", [1, 2, 3]))) == 6
    await supervisor.close()


async def test_a_model_that_does_not_load_is_told_and_one_that_aborts_too():
    for load, text in ((load_nothing, "no such file"), (load_and_die, "died while it loaded")):
        supervisor = Supervisor(ModelOptions(Path("x")), EngineOptions(), load=load)
        with pytest.raises(ModelLoadError, match=text):
            await supervisor.start()
        await supervisor.close()


async def test_a_request_that_streamed_nothing_is_run_again_unseen_after_a_crash(tmp_path: Path):
    supervisor = await started(str(tmp_path / "marker.once"))
    events = await collect(supervisor, generate("a", [1, 2, POISON]))
    assert [type(event) for event in events].count(Token) == 4
    assert supervisor.num_restarts == 1
    await supervisor.close()


async def test_a_request_that_kills_the_engine_twice_fails_and_others_are_served():
    supervisor = await started()
    with pytest.raises(EngineCrashed):
        await collect(supervisor, generate("a", [1, 2, POISON]))
    events = await collect(supervisor, generate("b", [1, 2, 3]))
    assert isinstance(events[-1], Finished)
    await supervisor.close()


async def test_a_killed_engine_ends_what_had_streamed_and_comes_back():
    supervisor = await started(load=load_dawdling)
    reading = await reading_reply(supervisor)
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashed):
        await reading
    assert isinstance((await collect(supervisor, generate("b", [1, 2, 3])))[-1], Finished)
    await supervisor.close()


def test_an_engine_that_keeps_dying_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor_module, "RESTART_SECONDS", (0.0, 0.0))

    async def main() -> None:
        supervisor = await started()
        for name in "ab":
            with pytest.raises(EngineCrashed):
                await collect(supervisor, generate(name, [POISON]))
        await until(lambda: not supervisor.is_ready)
        with pytest.raises(EngineCrashed, match="keeps crashing"):
            await collect(supervisor, generate("c", [1, 2, 3]))
        await supervisor.close()

    asyncio.run(main())


async def test_an_engine_that_is_just_starting_does_not_mind_the_signals_that_stop_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\nfor number in (signal.SIGINT, signal.SIGTERM): os.kill(os.getpid(), number)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    supervisor = await started()
    assert isinstance((await collect(supervisor, generate("a", [1, 2, 3])))[-1], Finished)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    await supervisor.close()


async def test_closing_the_generator_frees_the_request():
    supervisor = await started(load=load_dawdling)
    events = supervisor.generate(generate("a", [1, 2, 3], new=None))
    async for event in events:
        if isinstance(event, Token):
            break
    await events.aclose()
    await until(lambda: supervisor.stats().num_running == 0 and supervisor.stats().num_parked_branches == 1)
    await supervisor.close()


async def test_closing_the_server_ends_requests_in_flight():
    supervisor = await started(load=load_dawdling)
    reading = await reading_reply(supervisor)
    await supervisor.close()
    with pytest.raises(ShuttingDown):
        await reading


async def test_long_prompts_report_their_progress():
    supervisor = await started()
    events = await collect(supervisor, generate("a", [1] * 1200))
    ready = [event.num_ready_tokens for event in events if isinstance(event, Progress)]
    assert ready == [512, 1024]
    await supervisor.close()
