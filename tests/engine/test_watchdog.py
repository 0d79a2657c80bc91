"""A process that hangs is noticed, killed and started again; a slow one is left alone."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from tests.engine.test_supervisor import collect, generate, load_dawdling, reading_reply, until

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import supervisor as supervisor_module
from kvstet.engine import wire
from kvstet.engine.fake import FakeModel
from kvstet.engine.fake_client import TINY_MODEL
from kvstet.engine.messages import Event, Failed, Finished, Generate, Progress, Stats, Token
from kvstet.engine.model import Batch
from kvstet.engine.process import STATS_SECONDS, Loaded, Report, Stop
from kvstet.engine.process import _serve as serve
from kvstet.engine.supervisor import Supervisor
from kvstet.engine.watchdog import Watchdog
from kvstet.errors import ContextOverflow, EngineCrashed
from kvstet.types import GREEDY, RequestId

pytestmark = pytest.mark.timeout(300)

HANG, SLOW = 100, 101
"""Tokens that the model never says by itself."""

SECONDS = 3.0
"""The limit in tests with processes: a healthy one says something well within it, on a busy machine too. A machine that
takes its time over a report before the hang raises it."""

A, B = RequestId("a"), RequestId("b")


class Sluggish(FakeModel):
    """Never comes back from the token HANG, where ``marker`` does not stand in the way; takes its time over SLOW."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self._marker = marker

    def decode(self, batch: Batch) -> None:
        if HANG in batch.tokens and not self._marker.exists():
            if self._marker.suffix == ".once":
                self._marker.touch()
            time.sleep(3600)
        if SLOW in batch.tokens:
            time.sleep(0.3 * SECONDS if len(batch.tokens) < 10 else 1.4 * SECONDS)
        super().decode(batch)


def load_sluggish(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    return Loaded(Sluggish(options.path), TINY_MODEL)


def load_measured(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    """Loads for longer than the limit, and measured that a full step takes half of it."""
    time.sleep(1.2 * SECONDS)
    return Loaded(
        Sluggish(options.path), TINY_MODEL, prompt_token_seconds=0.5 * SECONDS / EngineOptions().prefill_chunk
    )


class Halting(FakeModel):
    """Stands still for good in the middle of a reply."""

    def decode(self, batch: Batch) -> None:
        if self.num_decoded_tokens > 20:
            time.sleep(3600)
        super().decode(batch)


def load_halting(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    """Halts in the first process, and in no other."""
    is_first = not options.path.exists()
    options.path.touch()
    return Loaded(Halting() if is_first else FakeModel(), TINY_MODEL)


Start = Callable[..., Awaitable[Supervisor]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncGenerator[Start, None]:
    """Starts supervisors of sluggish models, and closes them in the end."""
    supervisors: list[Supervisor] = []

    async def start(marker: str = "always", *, load=load_sluggish, seconds: float | None = SECONDS) -> Supervisor:
        options = EngineOptions(watchdog_seconds=seconds)
        supervisors.append(Supervisor(ModelOptions(tmp_path / marker), options, load=load))
        await supervisors[-1].start()
        return supervisors[-1]

    yield start
    for supervisor in supervisors:
        await supervisor.close()


def hangs_after(watchdog: Watchdog, seconds: float, *, at_most: float = 10_000.0) -> bool:
    """Whether it bites no sooner than after so many seconds of silence, and soon then."""
    passed = 0.0
    while not watchdog.tick(0.1):
        passed += 0.1
        if passed > at_most:
            return False
    return seconds - 0.2 <= passed <= seconds + 0.2


# The watchdog alone


def test_silence_over_a_request_is_a_hang_and_idle_silence_is_none():
    watchdog = Watchdog(10)
    assert not any(watchdog.tick(0.5) for _ in range(100))
    watchdog.expect(A)
    assert hangs_after(watchdog, 10)


def test_every_report_begins_the_silence_anew():
    watchdog = Watchdog(10)
    watchdog.expect(A)
    for _ in range(50):
        assert not any(watchdog.tick(0.5) for _ in range(19))
        watchdog.hear([])
    assert watchdog.silent_seconds == 0


def test_what_the_slowest_step_took_raises_the_limit_tenfold():
    watchdog = Watchdog(10)
    watchdog.expect(A)
    for _ in range(8):
        assert not watchdog.tick(0.5)
    watchdog.hear([Progress(A, 1, 2)])
    watchdog.tick(0.5)
    watchdog.hear([Progress(A, 1, 2)])
    assert watchdog.limit_seconds == pytest.approx(40)
    assert hangs_after(watchdog, 40)


def test_it_watches_until_the_last_request_has_its_end():
    watchdog = Watchdog(10)
    watchdog.expect(A)
    watchdog.expect(B)
    watchdog.hear([Token(A, 1), Finished(A, "cancelled", 1, 0.0, 0.0)])
    assert watchdog.tick(0.5) is False
    assert watchdog.silent_seconds == 0.5
    watchdog.hear([Failed(B, EngineCrashed("no"))])
    assert not any(watchdog.tick(0.5) for _ in range(100))
    assert watchdog.silent_seconds == 0


def test_a_request_that_joins_others_does_not_hide_a_hang():
    watchdog = Watchdog(10)
    watchdog.expect(A)
    for _ in range(10):
        watchdog.tick(0.5)
    watchdog.expect(B)
    assert hangs_after(watchdog, 5)


def test_time_in_which_the_server_stood_still_too_is_not_counted():
    watchdog = Watchdog(10)
    watchdog.expect(A)
    assert not watchdog.tick(3600.0)
    watchdog.hear([])
    assert watchdog.limit_seconds == 10


def test_an_idle_silence_is_no_measure_of_a_step():
    watchdog = Watchdog(10)
    for _ in range(100):
        watchdog.tick(0.5)
    watchdog.expect(A)
    watchdog.hear([])
    assert watchdog.limit_seconds == 10


def test_none_switches_it_off():
    watchdog = Watchdog(None)
    watchdog.expect(A)
    assert not any(watchdog.tick(10.0) for _ in range(1000))


# What the process says


class Quiet:
    """An engine whose steps take a while and bring nothing; the server is gone after some of them."""

    is_idle = False

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.num_steps = 0

    def step(self) -> list[Event]:
        time.sleep(STATS_SECONDS / 2)
        self.num_steps += 1
        if self.num_steps == 6:
            self._server.sendall(wire.encode(Stop()))
        return []

    def stats(self) -> Stats:
        return Stats()


def test_a_busy_process_reports_though_its_steps_bring_nothing():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serve(Quiet(ours), wire.Channel(theirs), [])
        reports = wire.Channel(ours).receive(0.0)
    assert len(reports) >= 3
    assert all(isinstance(report, Report) for report in reports)


# With processes


async def test_a_request_that_hung_the_engine_by_bad_luck_is_run_again_unseen(
    start: Start, caplog: pytest.LogCaptureFixture
):
    supervisor = await start("marker.once")
    pid = supervisor.pid
    with caplog.at_level(logging.ERROR):
        events = await collect(supervisor, generate("a", [1, 2, HANG]))
    assert [type(event) for event in events].count(Token) == 4
    assert supervisor.num_restarts == 1
    assert supervisor.pid != pid
    (line,) = caplog.messages
    assert re.fullmatch(
        r"The engine process hangs: it has requests to work on, and was silent for ([3-9]|\d\d+) seconds"
        r" \(--watchdog\)\. It is killed and started again\.",
        line,
    )


async def test_a_request_that_hangs_the_engine_twice_fails_and_others_are_served(start: Start):
    supervisor = await start()
    with pytest.raises(EngineCrashed, match=r"The engine hung .* stopped after ([3-9]|\d\d+) seconds of silence"):
        await collect(supervisor, generate("a", [1, 2, HANG]))
    events = await collect(supervisor, generate("b", [1, 2, 3]))
    assert isinstance(events[-1], Finished)


async def test_a_hang_is_noticed_though_the_client_has_lost_patience(start: Start):
    supervisor = await start()
    pid = supervisor.pid
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(collect(supervisor, generate("a", [HANG])), SECONDS / 2)
    await until(lambda: supervisor.num_restarts == 1)
    assert supervisor.pid != pid
    # The new process owes nothing.
    await asyncio.sleep(SECONDS / 2)
    assert supervisor._watchdog.silent_seconds == 0


async def test_an_engine_that_is_stopped_in_the_middle_of_a_reply_is_killed(start: Start):
    supervisor = await start(load=load_dawdling)
    reading = await reading_reply(supervisor)
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGSTOP)
    with pytest.raises(EngineCrashed, match="hung"):
        await reading


async def test_steps_that_grow_slower_are_left_alone(start: Start):
    supervisor = await start()
    limits = [supervisor._watchdog.limit_seconds or 0.0]
    while limits[-1] < 2 * SECONDS:  # Where the server was late as well, the silence counted for less.
        assert len(limits) < 10, limits
        await collect(supervisor, generate("a", [SLOW] * 3))
        limits.append(supervisor._watchdog.limit_seconds or 0.0)
    assert limits[0] == SECONDS
    events = await collect(supervisor, generate("b", [SLOW] * 30))
    assert isinstance(events[-1], Finished)
    assert supervisor.num_restarts == 0


async def test_a_slow_machine_is_known_before_its_first_step_and_loading_takes_what_it_takes(start: Start):
    supervisor = await start(load=load_measured)
    events = await collect(supervisor, generate("b", [SLOW] * 30))
    assert isinstance(events[-1], Finished)
    assert supervisor.num_restarts == 0


async def test_an_idle_engine_may_be_silent(start: Start):
    supervisor = await start(seconds=1.5)
    await collect(supervisor, generate("a", [1, 2, 3]))
    await asyncio.sleep(2.5)
    assert supervisor.num_restarts == 0
    assert supervisor.is_ready


async def test_an_engine_that_cannot_even_be_killed_is_left_behind(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """As a process in a driver's uninterruptible sleep."""
    monkeypatch.setattr(supervisor_module, "KILL_SECONDS", 0.3)
    supervisor = await start("marker.once")
    undead = supervisor._process
    assert undead is not None
    kill = undead.kill
    monkeypatch.setattr(undead, "kill", lambda: None)
    try:
        hanging = asyncio.create_task(collect(supervisor, generate("a", [HANG])))
        await until((tmp_path / "marker.once").exists)
        # More than fits between the two: it is never read.
        with pytest.raises(ContextOverflow):
            await collect(supervisor, generate("b", [1] * 500_000))
        assert isinstance((await hanging)[-1], Finished)
        assert supervisor.pid != undead.pid
        assert undead.returncode is None
        assert f"The engine process {undead.pid} cannot be killed; it is left behind." in caplog.messages
    finally:
        kill()
        await undead.wait()


async def test_closing_does_not_wait_for_a_hang(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor_module, "STOP_SECONDS", 0.2)
    supervisor = await start("marker.once", seconds=None)
    reading = asyncio.create_task(collect(supervisor, generate("a", [HANG])))
    await until((tmp_path / "marker.once").exists)
    await asyncio.wait_for(supervisor.close(), 30)
    await asyncio.gather(reading, return_exceptions=True)


# Replies that nobody has seen


async def test_a_reply_that_is_not_streamed_is_begun_anew_after_a_crash(start: Start):
    supervisor = await start("marker.once", load=load_halting, seconds=None)
    request = Generate(
        RequestId("a"), np.array([1, 2, 3], np.int32), max_new_tokens=200, sampling=GREEDY, is_streamed=False
    )
    seen: list[Event] = []

    async def read() -> None:
        async for event in supervisor.generate(request):
            seen.append(event)

    reading = asyncio.create_task(read())
    await until(lambda: any(isinstance(event, Token) for event in seen))
    assert supervisor.pid is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    await reading
    (first, again) = [index for index, event in enumerate(seen) if type(event).__name__ == "Started"]
    assert first < again
    assert len([event for event in seen[again:] if isinstance(event, Token)]) == 200
