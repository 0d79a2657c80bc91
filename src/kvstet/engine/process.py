"""The engine's process: loads a model, then steps the engine until the server is gone.

Run as ``python -m kvstet.engine FD`` by `kvstet.engine.supervisor`, with one end of a socket pair. The only
module of this package that imports `kvstet.llama`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace

from kvstet.cache.cache import Cache
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.fingerprint import model_fingerprint
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine.engine import Engine
from kvstet.engine.gate import DriftGate
from kvstet.engine.messages import Anticipate, Appraise, Cancel, Command, Event, Generate, ModelInfo, Stats
from kvstet.engine.model import Model
from kvstet.engine.power import Power
from kvstet.engine.wire import Channel
from kvstet.errors import DiskUnavailable, KvstetError

MEMORY_SUMMARIES = {
    "attention": "a prompt resumes at any token that was seen before",
    "swa": "a sliding window: a prompt resumes at message ends, where the window was kept",
    "recurrent": "a recurrent state: a prompt resumes at message ends, where the state was kept",
    "hybrid": "attention and a recurrent state: a prompt resumes at message ends, where the state was kept",
    "opaque": "only whole sequences can be saved: a prompt resumes at message ends, where all of it was kept",
}
"""What the cache can do with each kind of memory; told at start-up."""

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""They may reach the whole process group, but when to stop is the server's to say."""

FINISH_SECONDS = 5.0
"""How long state may be written when the server stops, or is gone."""

STATS_SECONDS = 0.25
"""How often counters go to the server while the engine works. A busy engine reports after every step at least this
long after the last report, and so is never silent for longer than this and one step (`kvstet.engine.watchdog`)."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to run."""

    model: Model
    info: ModelInfo
    identity: tuple[str, ...] = ()
    """What besides the model's file decides the numbers in its state."""
    prompt_token_seconds: float = 0.0
    """About how long this machine computes on one token of a prompt; 0 where it was not measured."""


Loader = Callable[[ModelOptions, Callable[[float], None]], Loaded]


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to the process. ``load`` is a module's function, since it travels by name."""

    load: Loader
    model: ModelOptions
    engine: EngineOptions
    log_level: int
    """What the process writes to standard error: this level of Python's logging and above."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Part of the model that is loaded, 0 to 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine takes requests."""

    info: ModelInfo
    step_seconds: float
    """About how long a full step will take; 0 where it was not measured."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The model could not be loaded; the process ends."""

    error: KvstetError


@dataclass(frozen=True, slots=True)
class Report:
    """What one or more steps brought."""

    events: list[Event]
    stats: Stats | None


class Stop:
    """End the process."""


def load_llama(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    """Load a GGUF with libllama."""
    from kvstet.llama.context import Context
    from kvstet.llama.identity import state_identity
    from kvstet.llama.model import Model as LlamaModel

    model = LlamaModel.load(options, on_progress)
    context = Context(model, options)
    span_bytes, checkpoint_bytes = context.measure_state()
    prompt_token_seconds = context.warm_up()
    info = ModelInfo(
        name=model.name or options.path.stem,
        architecture=model.architecture,
        description=model.description,
        num_parameters=model.num_parameters,
        size_bytes=model.size_bytes,
        vocab_size=model.vocab.num_tokens,
        context_length=context.max_length,
        training_context_length=model.training_context_length,
        live_cells=context.num_cells,
        parallel=options.parallel,
        memory_kind=context.traits.kind,
        memory_summary=MEMORY_SUMMARIES[context.traits.kind],
        span_bytes_per_token=span_bytes,
        checkpoint_bytes=checkpoint_bytes,
        chat_template=model.chat_template,
    )
    return Loaded(context, info, state_identity(model, options, context.traits), prompt_token_seconds)


def run(channel: Channel) -> None:
    """Load, then serve until the server says stop or is gone."""
    start: Start
    # Others may have come with the first message.
    start, *commands = channel.receive(None)
    if any(isinstance(command, Stop) for command in commands):
        return
    logging.basicConfig(level=start.log_level, format="%(message)s")
    try:
        loaded = start.load(start.model, lambda fraction: channel.send(Loading(fraction)))
    except KvstetError as error:
        channel.send(Broken(error))
        return
    with opened_cache(start.model, start.engine, loaded) as cache:
        info = replace(loaded.info, num_found_blobs=cache.num_found_blobs)
        channel.send(Ready(info, loaded.prompt_token_seconds * start.engine.prefill_chunk))
        engine = Engine(
            loaded.model,
            cache,
            start.engine,
            parallel=start.model.parallel,
            has_energy=Power().is_plugged_in,
            gate=_gate_of(cache),
        )
        try:
            _serve(engine, channel, commands)
        finally:
            if start.engine.cache_folder is not None:
                engine.finish(FINISH_SECONDS)
            loaded.model.close()


def _gate_of(cache: Cache) -> DriftGate | None:
    """What `kvstet verify` has found out about the model."""
    text = cache.archive.disk.drift_gate() if cache.archive else None
    return DriftGate.from_json(text) if text else None


@contextmanager
def opened_cache(model: ModelOptions, options: EngineOptions, loaded: Loaded) -> Generator[Cache]:
    """The model's cache, with what is on disk of it. Where the disk cannot be used: one warning, and without it."""
    traits, ram = loaded.model.traits, RamTier(options.cache_ram_bytes)
    if options.cache_folder is None:
        yield Cache(traits, ram)
        return
    with ExitStack() as stack:
        try:
            store = stack.enter_context(closing(DiskStore(options.cache_folder)))
            fingerprint = model_fingerprint(model.path, loaded.identity, store, [lora.path for lora in model.lora])
        except (DiskUnavailable, OSError) as error:
            log.warning("The cache on disk is not used: %s", error)
            yield Cache(traits, ram)
            return
        disk = DiskTier(
            store,
            fingerprint,
            capacity_bytes=options.cache_disk_bytes,
            write_bytes_per_hour=options.cache_disk_write_bytes_per_hour,
            model_name=loaded.info.name,
        )
        cache = Cache(traits, ram, disk, fingerprint=fingerprint)
        stack.callback(cache.finish)
        yield cache


def _serve(engine: Engine, channel: Channel, commands: list[Command | Stop]) -> None:
    """``commands`` are those that have come before."""
    reported = 0.0
    while True:
        for command in commands:
            if isinstance(command, Stop):
                return
            _obey(engine, command)
        events = engine.step()
        now = time.monotonic()
        is_due = now - reported >= STATS_SECONDS or (events and engine.is_idle)
        if events or is_due:
            channel.send(Report(events, engine.stats() if is_due else None))
        reported = now if is_due else reported
        timeout = engine.idle_step() if engine.is_idle else 0.0
        if timeout is None or timeout >= STATS_SECONDS:
            # Nothing follows for a while, so what was last told stays for long.
            channel.send(Report([], engine.stats()))
        commands = channel.receive(timeout)


def _obey(engine: Engine, command: Command) -> None:
    match command:
        case Generate():
            engine.submit(command)
        case Anticipate():
            engine.anticipate(command)
        case Appraise():
            engine.appraise(command)
        case Cancel():
            engine.cancel(command.id)


def main() -> None:
    # The supervisor has started this process with them blocked.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        run(Channel(socket.socket(fileno=int(sys.argv[1]))))
    except (EOFError, ConnectionError):
        # The server is gone, and no one is left to answer to. Not sys.exit: native threads may still be at work.
        os._exit(1)
