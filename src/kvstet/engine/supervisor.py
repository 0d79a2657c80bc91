"""Runs the engine in a process of its own, and starts it again when it dies.

A native abort ends that process, not the server: requests of which no client has seen anything yet are run again
unseen, the others end with `EngineCrashed`. A process that hangs is killed, and the same follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import wire
from kvstet.engine.flight import Flight
from kvstet.engine.messages import (
    LAST_EVENTS,
    Anticipate,
    Appraise,
    Appraised,
    Cancel,
    Event,
    Failed,
    Finished,
    Generate,
    ModelInfo,
    Stats,
)
from kvstet.engine.process import STOP_SIGNALS, Broken, Loader, Loading, Ready, Report, Start, Stop, load_llama
from kvstet.engine.watchdog import Watchdog
from kvstet.errors import EngineCrashed, KvstetError, ModelLoadError, QueueFull, ShuttingDown
from kvstet.types import RequestId

log = logging.getLogger(__name__)

STOP_SECONDS = 8.0
"""How long the process may take to write its state and end, before it is killed."""
KILL_SECONDS = 30.0
"""How long a killed process may take to be gone. One that a driver does not let go of never is; it is left behind."""

RESTART_SECONDS = (0.0, 1.0, 4.0, 15.0, 60.0)
"""Waits before each restart in a row; a finished request starts the count again. After the last, it stays down."""


class Supervisor:
    """Implements `kvstet.engine.client.EngineClient`."""

    def __init__(self, model: ModelOptions, engine: EngineOptions, *, load: Loader = load_llama) -> None:
        self._start_message = Start(load, model, engine, engine_log_level())
        self._max_flights = engine.queue_size + model.parallel
        self._flights: dict[RequestId, Flight] = {}
        self._info: ModelInfo | None = None
        self._stats = Stats()
        self._watchdog = Watchdog(engine.watchdog_seconds)
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._is_ready = False
        self._is_closing = False
        self._has_given_up = False
        self.num_restarts = 0
        self._num_failures = 0

    @property
    def info(self) -> ModelInfo:
        assert self._info is not None, "the engine was not started"
        return self._info

    @property
    def is_ready(self) -> bool:
        return self._is_ready

    def stats(self) -> Stats:
        return self._stats

    @property
    def pid(self) -> int | None:
        """Of the engine's process, while there is one."""
        return self._process.pid if self._process else None

    async def start(self, on_progress: Callable[[float], None] = lambda fraction: None) -> ModelInfo:
        """Load the model. Raises the `KvstetError` that stopped it, or ModelLoadError where the process died."""
        reader = await self._spawn()
        try:
            self._info = await self._load(reader, on_progress)
        except asyncio.IncompleteReadError:
            return await self._start_after_death(on_progress)
        self._keeper = asyncio.create_task(self._keep(reader), name="kvstet-engine")
        return self._info

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        """Events of one request; see `kvstet.engine.client.EngineClient`."""
        async with aclosing(self._events(request)) as events:
            async for event in events:
                yield event

    async def appraise(self, question: Appraise) -> Appraised:
        """What a prompt would cost; see `kvstet.engine.client.EngineClient`."""
        async with aclosing(self._events(question)) as events:
            return cast("Appraised", await anext(events))

    def anticipate(self, prompt: Anticipate) -> None:
        """Where the process is just starting, the guess is lost."""
        if self._is_ready:
            self._send(prompt)

    async def close(self) -> None:
        """Stop the process; requests in flight end with `ShuttingDown`."""
        self._is_closing = True
        self._fail_all(ShuttingDown("The server is stopping."))
        self._send(Stop())
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._hang_up()

    # Inside

    async def _events(self, request: Generate | Appraise) -> AsyncGenerator[Event, None]:
        flight = self._take_off(request)
        event = None
        try:
            while not isinstance(event, LAST_EVENTS):
                event = await flight.inbox.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            del self._flights[request.id]
            if not flight.is_over:
                self._send(Cancel(request.id))

    async def _start_after_death(self, on_progress: Callable[[float], None]) -> ModelInfo:
        """The process died with the model. Some machines claim instructions that they do not run."""
        assert self._process is not None
        code = await self._process.wait()
        await self._hang_up()
        model = self._start_message.model
        if code == -signal.SIGILL and model.repack:
            log.warning("This machine does not run the instructions that repacked weights need: --no-repack from here.")
            self._start_message = replace(self._start_message, model=replace(model, repack=False))
            return await self.start(on_progress)
        raise ModelLoadError(f"The engine process died while it loaded the model (exit status {code}); see the log.")

    def _take_off(self, request: Generate | Appraise) -> Flight:
        if self._is_closing:
            raise ShuttingDown("The server is stopping.")
        if self._has_given_up:
            raise EngineCrashed("The engine keeps crashing; it was stopped. See the server's log.")
        if len(self._flights) >= self._max_flights:
            raise QueueFull(f"{len(self._flights)} requests are in flight already.")
        flight = self._flights[request.id] = Flight(request)
        if self._is_ready:
            self._submit(flight)
        return flight

    def _submit(self, flight: Flight) -> None:
        self._send(flight.request)
        self._watchdog.expect(flight.request.id)

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs, stop_signals_blocked():
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "kvstet.engine", str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._send(self._start_message)
        return reader

    async def _load(self, reader: asyncio.StreamReader, on_progress: Callable[[float], None]) -> ModelInfo:
        while True:
            match await wire.read(reader):
                case Loading(fraction):
                    on_progress(fraction)
                case Ready(info, step_seconds):
                    self._is_ready = True
                    self._watchdog.allow(step_seconds)
                    for flight in self._flights.values():
                        if not flight.is_over:
                            self._submit(flight)
                    return info
                case Broken(error):
                    raise error
                case message:
                    raise AssertionError(message)

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hand out what the engine reports, and start it again whenever it dies or hangs."""
        while not self._is_closing:
            silent_seconds = await self._follow(reader)
            self._is_ready = False
            if self._is_closing:
                return
            if silent_seconds is None:
                await self._bury()
            else:
                await self._put_down(silent_seconds)
            restarted = await self._restart()
            if restarted is None:
                return
            reader = restarted

    async def _follow(self, reader: asyncio.StreamReader) -> float | None:
        """Hand out what the engine reports. Returns once it is dead: None; or hangs: the seconds of its silence."""
        dispatching = asyncio.create_task(self._dispatch(reader))
        watching = asyncio.create_task(self._watchdog.wait_for_hang())
        try:
            await asyncio.wait({dispatching, watching}, return_when=asyncio.FIRST_COMPLETED)
            return dispatching.result() if dispatching.done() else watching.result()
        finally:
            for task in (dispatching, watching):
                task.cancel()
            await asyncio.gather(dispatching, watching, return_exceptions=True)

    async def _dispatch(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                report: Report = await wire.read(reader)
                self._stats = report.stats or self._stats
                self._watchdog.hear(report.events)
                for event in report.events:
                    flight = self._flights.get(event.id)
                    if flight is not None:
                        flight.put(event)
                    if isinstance(event, Finished):
                        self._num_failures = 0

    async def _bury(self) -> None:
        """The process died by itself."""
        assert self._process is not None
        code = await self._process.wait()
        log.error("The engine process died (exit status %s); it is started again.", code)
        await self._clear_away(EngineCrashed("The engine crashed while it worked on this request."))

    async def _put_down(self, silent_seconds: float) -> None:
        """Kill a process that hangs."""
        assert self._process is not None
        log.error(
            "The engine process hangs: it has requests to work on, and was silent for %.0f seconds (--watchdog)."
            " It is killed and started again.",
            silent_seconds,
        )
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        try:
            await asyncio.wait_for(self._process.wait(), KILL_SECONDS)
        except TimeoutError:
            log.error("The engine process %d cannot be killed; it is left behind.", self._process.pid)
        sentence = (
            "The engine hung while it worked on this request: it was stopped after"
            f" {silent_seconds:.0f} seconds of silence."
        )
        await self._clear_away(EngineCrashed(sentence))

    async def _clear_away(self, error: EngineCrashed) -> None:
        """What the process was working on starts over, or ends with ``error``."""
        await self._hang_up()
        self._stats = Stats()  # The next process counts from nothing, and nothing of this one runs any more.
        self._watchdog.forget()
        for flight in self._flights.values():
            flight.crash(error)

    async def _restart(self) -> asyncio.StreamReader | None:
        while self._num_failures < len(RESTART_SECONDS):
            await asyncio.sleep(RESTART_SECONDS[self._num_failures])
            self._num_failures += 1
            try:
                reader = await self._spawn()
                await self._load(reader, lambda fraction: None)
                self.num_restarts += 1
                return reader
            except (KvstetError, asyncio.IncompleteReadError, ConnectionError) as error:
                await self._hang_up()
                log.error("The engine could not be started again: %s", error)
        self._has_given_up = True
        self._fail_all(EngineCrashed("The engine keeps crashing; it was stopped. See the server's log."))
        return None

    async def _hang_up(self) -> None:
        if self._writer is not None:
            # At once: there is nobody left to read what was not flushed.
            self._writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            self._writer = None

    def _fail_all(self, error: KvstetError) -> None:
        for flight in self._flights.values():
            flight.fail(error)

    def _send(self, message: object) -> None:
        """Never waits: the transport buffers. A message to a dead process is lost, as is whom it was for."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(wire.encode(message))


@contextlib.contextmanager
def stop_signals_blocked() -> Generator[None, None, None]:
    """A process that is started in here does not get the signals that stop the server, be it still at its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def engine_log_level() -> int:
    """The server's own level; but libllama warns of much that is no concern of a user's."""
    level = logging.getLogger().getEffectiveLevel()
    return logging.ERROR if level == logging.WARNING else level
