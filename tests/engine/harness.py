"""An engine on a fake model, driven by hand."""

from __future__ import annotations

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION, FakeModel
from kvstet.engine.messages import Event, Generate, Started, Token
from kvstet.errors import SnapshotMismatch
from kvstet.types import GREEDY, Blob, MemoryTraits, RequestId, SeqId, Tokens


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
    """An engine on a fake model, driven by hand; every reply is checked against a cold run."""

    def __init__(
        self,
        traits: MemoryTraits = ATTENTION,
        *,
        ram_bytes: int = 1 << 20,
        parallel: int = 4,
        prefill_chunk: int = 64,
        queue_size: int = 8,
        **model: int,
    ) -> None:
        self.now = 0.0
        self.model = PickyModel(traits, **model)
        self.tier = LossyTier(ram_bytes)
        self.cache = Cache(traits, self.tier, clock=self.clock)
        self.options = EngineOptions(prefill_chunk=prefill_chunk, queue_size=queue_size)
        self.engine = Engine(self.model, self.cache, self.options, parallel=parallel, clock=self.clock)
        self.events: dict[str, list[Event]] = {}
        self.prompts: dict[str, Tokens] = {}

    def clock(self) -> float:
        self.now += 0.001
        return self.now

    def submit(self, name: str, tokens: list[int], *, cuts: tuple[int, ...] = (), new: int | None = 4, **more) -> None:
        self.prompts[name] = np.array(tokens, np.int32)
        self.engine.submit(
            Generate(RequestId(name), self.prompts[name], cuts, max_new_tokens=new, sampling=GREEDY, **more)
        )

    def step(self) -> None:
        for event in self.engine.step():
            self.events.setdefault(str(event.id), []).append(event)
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
        while self.engine.idle_step():
            self.cache.check()

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
