"""An engine on a fake model, driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION, FakeModel
from kvstet.engine.gate import DriftGate
from kvstet.engine.messages import Anticipate, Appraise, Appraised, Event, Generate, Started, Token
from kvstet.errors import SnapshotMismatch
from kvstet.types import GREEDY, Blob, MemoryTraits, RequestId, SeqId, Tokens

NOW = 1_700_000_000.0
"""Unix time when the clock says 0."""

MODEL = b"fingerprint-of-a"

MAX_IDLE_STEPS = 3_000


class LossyTier(RamTier):
    """Loses or tears blobs when told to; they still take their bytes, as a file would whose pages went bad."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._damaged: dict[BlobKey, Blob | None] = {}

    @property
    def keys(self) -> list[BlobKey]:
        return sorted(self._blobs)

    def lose(self, key: BlobKey) -> None:
        self._damaged[key] = None

    def tear(self, key: BlobKey) -> None:
        blob = self._blobs[key]
        self._damaged[key] = Blob(blob.start, blob.stop, blob.data[:1])

    def get(self, key: BlobKey) -> Blob | None:
        return self._damaged[key] if key in self._damaged else super().get(key)

    def drop(self, key: BlobKey) -> None:
        self._damaged.pop(key, None)
        super().drop(key)


class PickyModel(FakeModel):
    """Refuses a torn span, as libllama does."""

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        if blob.num_bytes != 4 * (blob.stop - blob.start):
            raise SnapshotMismatch("torn")
        super().load_span(seq, blob, start, stop)


class Harness:
    """An engine on a fake model, driven by hand; every reply is checked against a cold run.

    With a ``folder``, it has a disk too, which is waited for after every step: what happens depends on no thread.
    """

    def __init__(
        self,
        traits: MemoryTraits = ATTENTION,
        *,
        ram_bytes: int = 1 << 20,
        parallel: int = 4,
        prefill_chunk: int = 64,
        queue_size: int = 8,
        folder: Path | None = None,
        disk_bytes: int = 1 << 20,
        audit_share: float = 0.0,
        audit_delay_seconds: float = 0.0,
        anticipate_share: float = 0.0,
        has_energy: Callable[[], bool] = lambda: True,
        gate: DriftGate | None = None,
        **model: int,
    ) -> None:
        self.now = 0.0
        self.options = EngineOptions(
            prefill_chunk=prefill_chunk,
            queue_size=queue_size,
            cache_ram_bytes=ram_bytes,
            cache_folder=folder,
            cache_disk_bytes=disk_bytes,
            audit_share=audit_share,
            audit_delay_seconds=audit_delay_seconds,
            anticipate_share=anticipate_share,
        )
        self.has_energy = has_energy
        self.gate = gate
        self.traits = traits
        self.parallel = parallel
        self.model_options = model
        self.store: DiskStore | None = None
        self.events: dict[str, list[Event]] = {}
        self.prompts: dict[str, Tokens] = {}
        self.start_process()

    def start_process(self) -> None:
        """Load the model anew; of the cache there is what is on disk."""
        self.model = PickyModel(self.traits, **self.model_options)
        self.tier = LossyTier(self.options.cache_ram_bytes)
        self.cache = Cache(
            self.traits, self.tier, self._disk(), fingerprint=MODEL, clock=self.clock, unix_clock=self.unix_clock
        )
        self.engine = Engine(
            self.model,
            self.cache,
            self.options,
            parallel=self.parallel,
            clock=self.clock,
            has_energy=self.has_energy,
            gate=self.gate,
        )

    def _disk(self) -> DiskTier | None:
        if self.options.cache_folder is None:
            return None
        self.store = DiskStore(self.options.cache_folder, clock=self.unix_clock)
        capacity_bytes = self.options.cache_disk_bytes
        return DiskTier(self.store, MODEL, capacity_bytes=capacity_bytes, write_bytes_per_hour=None)

    def end_process(self, *, is_killed: bool = False) -> None:
        """What was in flight is lost; killed, the process notes nothing of what it has done last."""
        if not is_killed:
            self.cache.finish()
        if self.store is not None:
            self.wait_for_disk()
            self.store.close()

    def restart(self, *, is_killed: bool = False) -> None:
        self.end_process(is_killed=is_killed)
        self.start_process()

    def wait_for_disk(self) -> None:
        if self.cache.archive is not None:
            self.cache.archive.disk.wait()

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def unix_clock(self) -> float:
        return NOW + self.now

    def submit(self, name: str, tokens: list[int], *, cuts: tuple[int, ...] = (), new: int | None = 4, **more) -> None:
        self.prompts[name] = np.array(tokens, np.int32)
        self.engine.submit(
            Generate(RequestId(name), self.prompts[name], cuts, max_new_tokens=new, sampling=GREEDY, **more)
        )

    def anticipate(self, tokens: list[int], *, cuts: tuple[int, ...] = ()) -> None:
        self.engine.anticipate(Anticipate(np.array(tokens, np.int32), cuts))

    def appraise(self, tokens: list[int], **more) -> Appraised:
        """What these tokens would cost now."""
        self.engine.appraise(Appraise(RequestId("question"), np.array(tokens, np.int32), **more))
        (event,) = [event for event in self.engine.step() if event.id == "question"]
        assert isinstance(event, Appraised), event
        return event

    def step(self) -> None:
        for event in self.engine.step():
            self.events.setdefault(str(event.id), []).append(event)
        self.wait_for_disk()
        self.cache.check()
        assert self.model.num_used_cells == self.cache.num_live_cells

    def run(self) -> None:
        for _ in range(10_000):
            if self.engine.is_idle:
                break
            self.step()
        assert self.engine.is_idle
        for name in self.prompts:
            self.check_reply(name)

    def idle(self) -> None:
        """All that there is to do in idle time."""
        for _ in range(MAX_IDLE_STEPS):
            pause = self.engine.idle_step()
            self.wait_for_disk()
            self.cache.check()
            if pause is None:
                return
        raise AssertionError("Idle work has no end.")

    def ask(self, name: str, tokens: list[int], **more) -> list[int]:
        """Run a request to its end, and return the prompt and all of the reply that was decoded."""
        self.submit(name, tokens, **more)
        self.run()
        return tokens + self.reply(name)

    def reply(self, name: str) -> list[int]:
        return [event.token for event in self.events[name] if isinstance(event, Token)]

    def reuse(self, name: str):
        return next(event.reuse for event in self.events[name] if isinstance(event, Started))

    def last(self, name: str) -> Event:
        return self.events[name][-1]

    def check_reply(self, name: str) -> None:
        tokens = self.prompts[name].tolist()
        for token in self.reply(name) if name in self.events else []:
            assert token == int(self.model.expected_logits(tokens).argmax()), name
            tokens.append(token)


def words(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 60, n).tolist()
