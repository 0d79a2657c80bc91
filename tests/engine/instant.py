"""An engine whose model and disk cost nothing but bookkeeping. Time is that of the model's own clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tests.engine.pressure import (
    BYTES_PER_TOKEN,
    CHECKPOINT_BYTES,
    MAX_TOKENS,
    NUM_REPLY_TOKENS,
    VOCABULARY,
    Request,
    replies,
)

from kvstet.cache.archive import HEADER_BYTES
from kvstet.cache.cache import Cache
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.tier import DiskTier, ForeignBlob, Written
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Generate, Started, Token
from kvstet.engine.model import Batch
from kvstet.types import GREEDY, Blob, MemoryTraits, RequestId, Sampling, SeqId, Tokens

SECONDS_PER_TOKEN = 1e-2
SECONDS_PER_LOOK = 1e-7


class InstantModel:
    """Knows how long its sequences are and what time it would be by now, and nothing else."""

    num_sequences = 2
    max_length = 1 << 16
    max_batch = 2048
    shift_refusal = None

    def __init__(self, traits: MemoryTraits, *, num_cells: int, bytes_per_token: float, checkpoint_bytes: int) -> None:
        self.traits = traits
        self.num_cells = num_cells
        self.now = 0.0
        self._bytes_per_token = bytes_per_token
        self._checkpoint_bytes = checkpoint_bytes
        self._lengths = [0] * self.num_sequences
        self._replies = replies()

    def length(self, seq: SeqId) -> int:
        return self._lengths[seq]

    def decode(self, batch: Batch) -> None:
        for seq in batch.seqs.tolist():
            self.now += SECONDS_PER_TOKEN + self._lengths[seq] * SECONDS_PER_LOOK
            self._lengths[seq] += 1

    def logits(self, row: int) -> NDArray[np.float32]:
        return np.zeros(VOCABULARY, np.float32)

    def is_end(self, token: int) -> bool:
        return False

    def sampler(self, sampling: Sampling, prompt: Tokens) -> InstantSampler:
        return InstantSampler(next(self._replies))

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        self._lengths[target] = stop

    def remove(self, seq: SeqId) -> None:
        self._lengths[seq] = 0

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        return Blob(start, stop, np.empty(max(1, int((stop - start) * self._bytes_per_token)), np.uint8))

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] = stop

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] += stop - start

    def save_checkpoint(self, seq: SeqId) -> Blob:
        return Blob(0, self._lengths[seq], np.empty(self._checkpoint_bytes, np.uint8))

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        self._lengths[seq] = blob.stop

    def close(self) -> None:
        """Nothing to free."""


class InstantSampler:
    """Says what it was given to say."""

    def __init__(self, reply: Tokens) -> None:
        self._tokens = iter(reply.tolist())

    def sample(self, row: int) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """Nothing to free."""


class InstantDisk:
    """A disk whose writer is always done at once; in the place of a `DiskTier`, of which it has what the cache uses."""

    quarantined: frozenset[bytes] = frozenset()

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._blobs: dict[BlobKey, tuple[Blob, int]] = {}
        self._finished: list[Written] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._finished)

    def records(self) -> list[Record]:
        return []

    def new_records(self) -> list[Record]:
        return []

    def foreign(self) -> list[ForeignBlob]:
        return []

    def get(self, key: BlobKey) -> Blob | None:
        return self._blobs[key][0] if key in self._blobs else None

    def can_write(self, num_bytes: int) -> bool:
        return True

    def write(self, record: Record, data: NDArray[np.uint8]) -> None:
        num_bytes = len(data) + len(record.tokens) + HEADER_BYTES
        self.drop([record.key])
        self._blobs[record.key] = (Blob(record.key.start, record.stop, data), num_bytes)
        self.used_bytes += num_bytes
        assert self.used_bytes <= self.capacity_bytes
        self._finished.append(Written(replace(record, num_bytes=num_bytes), None))

    def finished(self) -> list[Written]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> None:
        """It is done already."""

    def touch(self, used: Iterable[tuple[BlobKey, int, float]]) -> None:
        """Nobody else wants to know."""

    def drop(self, keys: Iterable[BlobKey]) -> None:
        for key in keys:
            if key in self._blobs:
                self.used_bytes -= self._blobs.pop(key)[1]


class World:
    """An engine on a model that computes nothing, and the time that passes there."""

    def __init__(
        self,
        traits: MemoryTraits,
        ram_bytes: int,
        disk_bytes: int = 0,
        *,
        num_cells: int = MAX_TOKENS + 512,
        bytes_per_token: float = BYTES_PER_TOKEN,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        self.model = InstantModel(
            traits, num_cells=num_cells, bytes_per_token=bytes_per_token, checkpoint_bytes=checkpoint_bytes
        )
        self.tier = RamTier(ram_bytes)
        disk = cast(DiskTier, InstantDisk(disk_bytes)) if disk_bytes else None
        self.cache = Cache(traits, self.tier, disk, clock=self.clock)
        self.engine = Engine(self.model, self.cache, EngineOptions(), parallel=4, clock=self.clock)
        self.num_computed_tokens = 0
        self._random = np.random.default_rng(1)
        self._num_requests = 0

    def clock(self) -> float:
        return self.model.now

    def ask(self, request: Request, num_reply_tokens: int = NUM_REPLY_TOKENS) -> Tokens:
        """Run one request to its end, and let some time go by, as if the agent used a tool."""
        self._num_requests += 1
        self.engine.submit(
            Generate(
                RequestId(str(self._num_requests)),
                request.tokens,
                request.cuts,
                cut_kinds=request.cut_kinds,
                max_new_tokens=num_reply_tokens,
                sampling=GREEDY,
            )
        )
        reply: list[int] = []
        while not self.engine.is_idle:
            for event in self.engine.step():
                if isinstance(event, Started):
                    self.num_computed_tokens += event.reuse.num_computed_tokens
                elif isinstance(event, Token):
                    reply.append(event.token)
        assert len(reply) == num_reply_tokens
        self.pass_time(float(self._random.exponential(3.0)))
        return np.array(reply, np.int32)

    def pass_time(self, seconds: float) -> None:
        """Nobody asks anything; the engine has time to tidy up."""
        until = self.model.now + seconds
        while (due := self.engine.idle_step()) is not None:
            self.model.now += max(due, 1e-3)
        self.model.now = max(self.model.now, until)
