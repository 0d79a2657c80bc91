"""An engine on a real context in this process, whose every logit can be compared with a cold run's."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine.engine import Engine
from kvstet.engine.gate import DriftGate
from kvstet.engine.messages import Event, Failed, Generate, Started, Token
from kvstet.engine.model import Batch, Sampler
from kvstet.llama.context import Context
from kvstet.llama.model import Model
from kvstet.types import GREEDY, RequestId, Reuse, Sampling, SeqId, Tokens

Logits = NDArray[np.float32]

CHUNK = 256
"""Most prompt tokens in one batch, warm and cold."""


class RecordingSampler:
    """Keeps every row of logits that one request's tokens were sampled from."""

    def __init__(self, context: RecordingContext, inner: Sampler, prompt: Tokens) -> None:
        self._context, self._inner = context, inner
        self.prompt = prompt.tolist()
        self.reply: list[int] = []
        self.rows: list[Logits] = []

    def sample(self, row: int) -> int:
        self.rows.append(self._context.logits(row).copy())
        self.reply.append(self._inner.sample(row))
        return self.reply[-1]

    def close(self) -> None:
        self._inner.close()


class RecordingContext(Context):
    """Keeps every row that was sampled from, and counts what was decoded."""

    def __init__(self, model: Model, options: ModelOptions) -> None:
        super().__init__(model, options)
        self.samplers: list[RecordingSampler] = []
        self.num_decoded_tokens = 0

    def sampler(self, sampling: Sampling, prompt: Tokens) -> Sampler:
        self.samplers.append(RecordingSampler(self, super().sampler(sampling, prompt), prompt))
        return self.samplers[-1]

    def decode(self, batch: Batch) -> None:
        super().decode(batch)
        self.num_decoded_tokens += len(batch.tokens)


@dataclass
class RealEngine:
    """Drives the engine step by step on one model file."""

    path: Path
    ctx_size: int
    live_cells: int | None = None
    ram_bytes: int = 1 << 30
    parallel: int = 8
    num_reply_tokens: int = 12
    gate: DriftGate | None = None
    reuses: list[Reuse] = field(default_factory=list[Reuse])

    def __post_init__(self) -> None:
        options = ModelOptions(
            self.path,
            ctx_size=self.ctx_size,
            live_cells=self.live_cells or self.ctx_size,
            parallel=self.parallel,
            cache_type_k="f32",
            cache_type_v="f32",
            # Flash attention on the CPU rounds differently for each shape of batch (KL up to 1e-5 on toys).
            flash_attn="off",
            threads=1,
        )
        self.model = Model.load(options)
        self.context = RecordingContext(self.model, options)
        self.cold = Context(self.model, options)
        self.cache = Cache(self.context.traits, RamTier(self.ram_bytes))
        options = EngineOptions(prefill_chunk=CHUNK)
        self.engine = Engine(self.context, self.cache, options, parallel=self.parallel, gate=self.gate)
        self.events: dict[str, list[Event]] = {}
        self._names = iter(range(1_000_000))

    def close(self) -> None:
        self.context.close()
        self.cold.close()
        self.model.close()

    def submit(self, tokens: list[int], cuts: tuple[int, ...] = (), **more: Any) -> str:
        name = f"r{next(self._names)}"
        request = Generate(
            RequestId(name),
            np.array(tokens, np.int32),
            cuts,
            max_new_tokens=self.num_reply_tokens,
            sampling=GREEDY,
            ignore_eos=True,
            **more,
        )
        self.engine.submit(request)
        return name

    def step(self) -> None:
        for event in self.engine.step():
            self.events.setdefault(str(event.id), []).append(event)
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Started):
                self.reuses.append(event.reuse)

    def run(self) -> None:
        while not self.engine.is_idle:
            self.step()
        self.cache.check()

    def idle(self) -> None:
        while (pause := self.engine.idle_step()) is not None:
            time.sleep(pause)

    def reply(self, name: str) -> list[int]:
        return [event.token for event in self.events[name] if isinstance(event, Token)]

    def ask(self, tokens: list[int], cuts: tuple[int, ...] = (), **more: Any) -> list[int]:
        name = self.submit(tokens, cuts, **more)
        self.run()
        return self.reply(name)

    def release_all(self) -> None:
        """Move every parked branch to RAM."""
        for branch in self.engine.live.parked:
            self.engine.live.release(branch)

    def cold_rows(self, prompt: list[int], reply: list[int]) -> list[Logits]:
        """Logits after the prompt and after each token of the reply but the last, computed from nothing."""
        seq = SeqId(0)
        self.cold.remove(seq)
        tokens = np.array(prompt + reply[:-1], np.int32)
        wanted = np.arange(len(tokens)) >= len(prompt) - 1
        rows: list[Logits] = []
        for start in range(0, len(tokens), CHUNK):
            part = slice(start, start + CHUNK)
            self.cold.decode(Batch(tokens[part], np.zeros(len(tokens[part]), np.int32), wanted[part]))
            rows += [self.cold.logits(row).copy() for row in range(int(wanted[part].sum()))]
        return rows

    def divergences(self) -> NDArray[np.float64]:
        """KL(cold || warm) of every token sampled since the last call."""
        samplers, self.context.samplers = self.context.samplers, []
        pairs = [
            pair
            for sampler in samplers
            if sampler.rows
            for pair in zip(self.cold_rows(sampler.prompt, sampler.reply), sampler.rows, strict=True)
        ]
        return np.array([divergence(cold, warm) for cold, warm in pairs])


def divergence(a: Logits, b: Logits) -> float:
    """KL(softmax(a) || softmax(b)) in nats, in double precision."""
    p, q = (x.astype(np.float64) - x.max() for x in (a, b))
    p -= np.log(np.exp(p).sum())
    q -= np.log(np.exp(q).sum())
    return float((np.exp(p) * (p - q)).sum())
