"""Runs the engine in a process of its own, and starts it again when it dies.

A native abort ends that process, not the server: requests that had streamed nothing yet are run again unseen, the
others end with `EngineCrashed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import wire
from kvstet.engine.messages import Cancel, Event, Failed, Finished, Generate, ModelInfo, Stats, Token
from kvstet.engine.process import Broken, Loader, Loading, Ready, Report, Start, Stop, load_llama
from kvstet.errors import EngineCrashed, KvstetError, ModelLoadError, QueueFull, ShuttingDown
from kvstet.types import RequestId

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
RESTART_SECONDS = (0.0, 1.0, 4.0, 15.0, 60.0)
"""Waits before each restart in a row; a finished request starts the count again. After the last, it stays down."""


@dataclass(eq=False, slots=True)
class Flight:
    """A request in flight."""

    request: Generate
    inbox: asyncio.Queue[Event] = field(default_factory=asyncio.Queue[Event])
    has_streamed: bool = False
    """The client has seen a token, so the request cannot be run again unseen."""
    num_crashes: int = 0
    is_over: bool = False

    def put(self, event: Event) -> None:
        """Hand an event to whoever reads; nothing follows the last one."""
        if not self.is_over:
            self.is_over = isinstance(event, Finished | Failed)
            self.has_streamed |= isinstance(event, Token)
            self.inbox.put_nowait(event)


class Supervisor:
    """Implements `kvstet.engine.client.EngineClient`."""

    def __init__(self, model: ModelOptions, engine: EngineOptions, *, load: Loader = load_llama) -> None:
        self._start_message = Start(load, model, engine, engine_log_level())
        self._max_flights = engine.queue_size + model.parallel
        self._flights: dict[RequestId, Flight] = {}
        self._info: ModelInfo | None = None
        self._stats = Stats()
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
        flight = self._take_off(request)
        event = None
        try:
            while not isinstance(event, Finished):
                event = await flight.inbox.get()
                if isinstance(event, Failed):
                    raise event.error
                yield event
        finally:
            del self._flights[request.id]
            if not flight.is_over:
                self._send(Cancel(request.id))

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

    def _take_off(self, request: Generate) -> Flight:
        if self._is_closing:
            raise ShuttingDown("The server is stopping.")
        if self._has_given_up:
            raise EngineCrashed("The engine keeps crashing; it was stopped. See the server's log.")
        if len(self._flights) >= self._max_flights:
            raise QueueFull(f"{len(self._flights)} requests are in flight already.")
        flight = self._flights[request.id] = Flight(request)
        if self._is_ready:
            self._send(request)
        return flight

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
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
                case Ready(info):
                    self._is_ready = True
                    for flight in self._flights.values():
                        if not flight.is_over:
                            self._send(flight.request)
                    return info
                case Broken(error):
                    raise error
                case message:
                    raise AssertionError(message)

    async def _keep(self, reader: asyncio.StreamReader) -> None:
        """Hand out what the engine reports, and start it again whenever it dies."""
        while not self._is_closing:
            try:
                await self._dispatch(reader)
            except (asyncio.IncompleteReadError, ConnectionError):
                self._is_ready = False
            if self._is_closing:
                return
            await self._report_death()
            restarted = await self._restart()
            if restarted is None:
                return
            reader = restarted

    async def _dispatch(self, reader: asyncio.StreamReader) -> None:
        while True:
            report: Report = await wire.read(reader)
            self._stats = report.stats or self._stats
            for event in report.events:
                flight = self._flights.get(event.id)
                if flight is not None:
                    flight.put(event)
                if isinstance(event, Finished):
                    self._num_failures = 0

    async def _report_death(self) -> None:
        assert self._process is not None
        code = await self._process.wait()
        await self._hang_up()
        self._stats = Stats()  # The next process counts from nothing, and nothing of this one runs any more.
        log.error("The engine process died (exit status %s); it is started again.", code)
        for flight in self._flights.values():
            flight.num_crashes += 1
            if flight.has_streamed or flight.num_crashes > 1:
                error = EngineCrashed("The engine crashed while it worked on this request.")
                flight.put(Failed(flight.request.id, error))

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
            self._writer.close()
            # The other end may be gone already; then there is nothing left to flush.
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
            self._writer = None

    def _fail_all(self, error: KvstetError) -> None:
        for flight in self._flights.values():
            flight.put(Failed(flight.request.id, error))

    def _send(self, message: object) -> None:
        """Never waits: the transport buffers. A message to a dead process is lost, as is whom it was for."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(wire.encode(message))


def engine_log_level() -> int:
    """The server's own level; but libllama warns of much that is no concern of a user's."""
    level = logging.getLogger().getEffectiveLevel()
    return logging.ERROR if level == logging.WARNING else level
