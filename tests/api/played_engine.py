"""A real engine and cache on a model that computes nothing, in the test's own process; it says what it is told to."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION
from kvstet.engine.fake_client import TINY_MODEL
from kvstet.engine.messages import (
    Anticipate,
    Appraise,
    Appraised,
    Event,
    Failed,
    Finished,
    Generate,
    ModelInfo,
    Started,
    Stats,
)
from kvstet.engine.model import Batch, Model
from kvstet.types import Blob, Reuse, Sampling, SeqId, Tokens


class LengthModel:
    """Knows how long its sequences are, and nothing else."""

    num_sequences = 16
    num_cells = 1 << 24
    max_batch = 2048
    shift_refusal = None
    traits = ATTENTION

    def __init__(self, max_length: int, end: int) -> None:
        self.max_length = max_length
        self._end = end
        self._lengths = [0] * self.num_sequences

    def length(self, seq: SeqId) -> int:
        return self._lengths[seq]

    def decode(self, batch: Batch) -> None:
        for seq, count in zip(*np.unique(batch.seqs, return_counts=True), strict=True):
            self._lengths[seq] += int(count)

    def logits(self, row: int) -> NDArray[np.float32]:
        return np.zeros(2, np.float32)

    def is_end(self, token: int) -> bool:
        return token == self._end

    def sampler(self, sampling: Sampling, prompt: Tokens) -> Silence:
        return Silence(self._end)

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        self._lengths[target] = stop

    def remove(self, seq: SeqId) -> None:
        self._lengths[seq] = 0

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        return Blob(start, stop, np.empty(8 * (stop - start), np.uint8))

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] = stop

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] += stop - start

    def save_checkpoint(self, seq: SeqId) -> Blob:
        raise NotImplementedError

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to free."""


class Silence:
    """Ends a reply at once."""

    def __init__(self, end: int) -> None:
        self._end = end

    def sample(self, row: int) -> int:
        return self._end

    def close(self) -> None:
        """Nothing to free."""


class PlayedEngine:
    """An `EngineClient` for requests that come one after the other."""

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        end: int,
        model: Model | None = None,
        ram_bytes: int = 1 << 40,
        anticipate_share: float = 0.0,
    ) -> None:
        """``model``: one that computes, for the one that does not."""
        model = model or LengthModel(context_length, end)
        self.cache = Cache(model.traits, RamTier(ram_bytes))
        options = EngineOptions(prefill_chunk=2048, anticipate_share=anticipate_share)
        self.engine = Engine(model, self.cache, options, parallel=4)
        self.info: ModelInfo = replace(TINY_MODEL, context_length=context_length, vocab_size=vocab_size)
        self.is_ready = True
        self.next_reply: tuple[int, ...] = ()
        self.reuses: list[Reuse] = []
        self.requests: list[Generate] = []

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.engine.submit(replace(request, forced=self.next_reply or request.forced))
        while not self.engine.is_idle:
            for event in self.engine.step():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Started):
                    self.reuses.append(event.reuse)
                yield event
                if isinstance(event, Finished):
                    return
            await asyncio.sleep(0)

    async def appraise(self, question: Appraise) -> Appraised:
        self.engine.appraise(question)
        (event,) = self.engine.step()
        assert isinstance(event, Appraised)
        return event

    def anticipate(self, prompt: Anticipate) -> None:
        self.engine.anticipate(prompt)

    def idle(self, max_tokens: float = math.inf) -> None:
        """Nobody asks, until nothing is left to do or so many tokens were computed ahead."""
        anticipator = self.engine.anticipator
        stop = anticipator.num_tokens + max_tokens
        while anticipator.num_tokens < stop and (pause := self.engine.idle_step()) is not None:
            time.sleep(pause)

    def stats(self) -> Stats:
        return self.engine.stats()

    async def close(self) -> None:
        self.engine.finish(0)
