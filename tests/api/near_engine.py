"""The real engine and cache behind the real supervisor, all in the test's own event loop, on a model that finds out
what is mixed up. Nothing depends on time or threads, so a run can be had again."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tests.api.books import client_faults, idle_faults, is_known

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import wire
from kvstet.engine.engine import Engine
from kvstet.engine.fake import FakeModel
from kvstet.engine.fake_client import TINY_MODEL
from kvstet.engine.messages import Command, Generate
from kvstet.engine.model import Batch
from kvstet.engine.process import Ready, Report, Stop
from kvstet.engine.supervisor import Supervisor
from kvstet.errors import EngineCrashed, GrammarError
from kvstet.types import Blob, MemoryTraits, Sampling, SeqId, Tokens

MAX_LENGTH = 3072
NUM_CELLS = MAX_LENGTH
"""One long conversation: with more at a time, somebody has to leave."""
NUM_SEQUENCES = 6
PARALLEL = 4
RAM_BYTES = 40_000
"""State of about ten thousand tokens."""
MAX_NODES = 300
OPTIONS = EngineOptions(prefill_chunk=96, queue_size=10, cache_ram_bytes=RAM_BYTES)

NewReply = Callable[[], list[int]]
"""What the model says to the next request that is admitted."""


class FuzzModel(FakeModel):
    """Says what it is told to, and finds out when a reply's state is that of other tokens."""

    def __init__(self, traits: MemoryTraits, random: Random, new_reply: NewReply, *, vocab_size: int, end: int) -> None:
        super().__init__(
            traits,
            num_sequences=NUM_SEQUENCES,
            num_cells=NUM_CELLS,
            max_length=MAX_LENGTH,
            max_batch=256,
            vocab_size=vocab_size,
            end_token=end,
        )
        self.num_open_samplers = 0
        self._random = random
        self._new_reply = new_reply
        self._held: list[list[int]] = []
        self._num_used: int | None = 0
        self._read: dict[int, tuple[object, list[int]]] = {}

    @property
    def num_used_cells(self) -> int:
        # Counting them all at every step would take longer than everything else.
        if self._num_used is None:
            self._num_used = super().num_used_cells
        return self._num_used

    def tokens(self, seq: int) -> list[int]:
        """What a sequence holds; grows with it."""
        cells = self._cells[seq]
        known = self._read.get(seq)
        if known is None or known[0] is not cells:
            known = self._read[seq] = (cells, [])
        known[1].extend([token for _, token in cells[len(known[1]) :]])
        return known[1]

    def decode(self, batch: Batch) -> None:
        num_used = self.num_used_cells
        self._held = []
        super().decode(batch)
        self._num_used = num_used + len(batch.tokens)

    def remove(self, seq: SeqId) -> None:
        super().remove(seq)
        self._num_used = None

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        super().load_span(seq, blob, start, stop)
        self._num_used = None

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        super().load_checkpoint(seq, blob)
        self._num_used = None

    def expected_logits(self, tokens: list[int], summary: bytes | None = None) -> NDArray[np.float32]:
        """Notes what the row stands behind; the numbers are only for reports of probabilities."""
        self._held.append(tokens)
        logits = np.full(self.vocab_size, -1.0, np.float32)
        logits[tokens[-1] % self.vocab_size] = 1.0
        return logits

    def sampler(self, sampling: Sampling, prompt: Tokens) -> FuzzSampler:
        if sampling.grammar is not None and self._random.random() < 0.05:
            raise GrammarError("The grammar cannot be compiled.")
        is_refusing = sampling.grammar is not None and self._random.random() < 0.05
        self.num_open_samplers += 1
        return FuzzSampler(self, prompt.tolist(), self._new_reply(), is_refusing=is_refusing)

    def held(self, row: int) -> list[int]:
        """The tokens that a row of logits stands behind."""
        return self._held[row]


class FuzzSampler:
    """Says what it was given to say, and then the end, again and again."""

    def __init__(self, model: FuzzModel, prompt: list[int], reply: list[int], *, is_refusing: bool) -> None:
        self._model = model
        self._held = prompt
        self._reply = iter(reply)
        self._is_refusing = is_refusing
        self._is_open = True

    def sample(self, row: int) -> int:
        assert self._is_open, "sampled for a request that is over"
        assert self._model.held(row) == self._held, "the state of other tokens"
        assert self._model.end_token is not None
        token = next(self._reply, self._model.end_token)
        if self._is_refusing and len(self._held) % 7 == 0:
            raise GrammarError("No token fits the grammar.")
        self._held.append(token)
        return token

    def close(self) -> None:
        assert self._is_open, "closed twice"
        self._is_open = False
        self._model.num_open_samplers -= 1


class NearSupervisor(Supervisor):
    """A supervisor whose engine runs in this event loop, one step at a time; they talk as they do over a socket."""

    def __init__(self, model: FuzzModel, cache: Cache, engine: Engine) -> None:
        super().__init__(ModelOptions(Path("near"), parallel=PARALLEL), OPTIONS)
        self.model, self.cache, self.engine = model, cache, engine
        self.crash: str | None = None
        """The traceback of what would have been the engine process's end."""
        self._commands: list[Command] = []
        self._wake = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, traits: MemoryTraits, random: Random, new_reply: NewReply, *, vocab_size: int, end: int):
        """With an engine and a cache that have little room for anything."""
        ticks = count()

        def clock() -> float:
            return next(ticks) * 1e-3

        model = FuzzModel(traits, random, new_reply, vocab_size=vocab_size, end=end)
        cache = Cache(traits, RamTier(RAM_BYTES), clock=clock, unix_clock=clock, max_nodes=MAX_NODES)
        return cls(model, cache, Engine(model, cache, OPTIONS, parallel=PARALLEL, clock=clock))

    @property
    def is_at_rest(self) -> bool:
        """No request is known to anybody, and none is on its way."""
        return self.engine.is_idle and not self._commands and not is_known(self)

    def stage(self, prefix: str) -> str:
        """How far a request has come whose engine requests are called ``prefix`` and a number."""
        running = [job for job in self.engine._running if job.id.startswith(prefix)]
        if running:
            return "prompt" if any(job.is_computing for job in running) else "reply"
        return "queue" if any(job.id.startswith(prefix) for job in self.engine._waiting) else "elsewhere"

    def faults(self) -> list[str]:
        """What is not as it must be when nobody asks for anything."""
        if self.crash is not None:
            return [f"the engine crashed: {self.crash}"]
        faults = [*client_faults(self), *idle_faults(self.engine, self.model)]
        num_cells = FakeModel.num_used_cells.fget(self.model)
        if num_cells != self.cache.num_live_cells:
            faults.append(f"{num_cells} cells are used, not {self.cache.num_live_cells}")
        if self.model.num_open_samplers:
            faults.append(f"{self.model.num_open_samplers} samplers are open")
        return faults

    def history(self) -> Counter[str]:
        """How much has happened to whom."""
        stats = self.engine.stats()
        names = "requests preemptions evicted_blobs reused_tokens loaded_tokens computed_tokens generated_tokens"
        return Counter({name: getattr(stats, f"num_{name}") for name in names.split()})

    async def close(self) -> None:
        await super().close()
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)

    # In the place of the process

    async def _spawn(self) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        self._writer = cast(asyncio.StreamWriter, _Writer(self._obey_later))
        info = replace(
            TINY_MODEL,
            context_length=MAX_LENGTH,
            live_cells=NUM_CELLS,
            parallel=PARALLEL,
            vocab_size=self.model.vocab_size,
            memory_kind=self.model.traits.kind,
        )
        reader.feed_data(wire.encode(Ready(info, 0.0)))
        self._working = asyncio.create_task(self._work(reader), name="near engine")
        return reader

    async def _bury(self) -> None:
        await self._clear_away(EngineCrashed("The engine crashed while it worked on this request."))

    async def _restart(self) -> None:
        self._has_given_up = True
        self._fail_all(EngineCrashed("The engine crashed."))

    def _obey_later(self, command: object) -> None:
        if not isinstance(command, Stop):
            self._commands.append(cast(Command, command))
            self._wake.set()

    async def _work(self, reader: asyncio.StreamReader) -> None:
        """What `kvstet.engine.process` does."""
        try:
            while True:
                self._wake.clear()
                commands, self._commands = self._commands, []
                for command in commands:
                    if isinstance(command, Generate):
                        self.engine.submit(command)
                    else:
                        self.engine.cancel(command.id)
                events = self.engine.step()
                if events:
                    is_idle = self.engine.is_idle
                    reader.feed_data(wire.encode(Report(events, self.engine.stats() if is_idle else None)))
                if self.engine.is_idle and self.engine.idle_step() is None:
                    await self._wake.wait()
                else:
                    await asyncio.sleep(0)
        except Exception:
            self.crash = traceback.format_exc()
            reader.feed_eof()


class _Writer:
    """The supervisor's end of the socket."""

    def __init__(self, on_message: Callable[[object], None]) -> None:
        self._on_message = on_message
        self.transport = self

    def write(self, data: bytes) -> None:
        self._on_message(pickle.loads(data[wire.LENGTH.size :]))

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        """Nobody is there any more."""

    async def wait_closed(self) -> None:
        """At once."""
