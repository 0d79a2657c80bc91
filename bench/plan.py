"""How long the cache's own work takes in a large tree: everything about a request but computing and moving state.

::

    python bench/plan.py                       10,000 nodes, a prompt of 100,000 tokens with 500 nodes on its path
    python bench/plan.py --nodes 50000 --limit-ms 5

The engine runs on a model that computes nothing, so what is measured is bookkeeping, in CPU time. Told is the best of
several runs, since whatever else the machine does only adds to it. The exit status is 1 where an admission takes longer
than ``--limit-ms``, hashing of new tokens not counted.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.cache.tree import Branch
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION, HYBRID
from kvstet.engine.messages import Generate, Started
from kvstet.engine.model import Batch
from kvstet.types import GREEDY, Blob, MemoryTraits, RequestId, Sampling, SeqId, Tokens

VOCABULARY = 32_000
BYTES_PER_TOKEN = 64
CHECKPOINT_BYTES = 4096


class InstantModel:
    """Knows how long its sequences are, and nothing else."""

    num_sequences = 16
    num_cells = 1 << 24
    max_length = 1 << 20
    max_batch = 2048

    def __init__(self, traits: MemoryTraits) -> None:
        self.traits = traits
        self._lengths = [0] * self.num_sequences

    def length(self, seq: SeqId) -> int:
        return self._lengths[seq]

    def decode(self, batch: Batch) -> None:
        for seq, count in zip(*np.unique(batch.seqs, return_counts=True), strict=True):
            self._lengths[seq] += int(count)

    def logits(self, row: int) -> NDArray[np.float32]:
        return np.zeros(VOCABULARY, np.float32)

    def is_end(self, token: int) -> bool:
        return False

    def sampler(self, sampling: Sampling, prompt: Tokens) -> InstantSampler:
        return InstantSampler()

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        self._lengths[target] = stop

    def remove(self, seq: SeqId) -> None:
        self._lengths[seq] = 0

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        return Blob(start, stop, np.empty((stop - start) * BYTES_PER_TOKEN, np.uint8))

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] = stop

    def save_checkpoint(self, seq: SeqId) -> Blob:
        return Blob(0, self._lengths[seq], np.empty(CHECKPOINT_BYTES, np.uint8))

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        self._lengths[seq] = blob.stop

    def close(self) -> None:
        """Nothing to free."""


class InstantSampler:
    """Says the same token again and again."""

    def sample(self, row: int) -> int:
        return 1

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class Times:
    """Seconds per named piece of work."""

    limit_seconds: float
    runs: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    limited: set[str] = field(default_factory=set[str])

    @contextmanager
    def measure(self, name: str, *, is_admission: bool = False, minus_seconds: float = 0.0) -> Generator[None]:
        gc.collect()
        begun = time.thread_time()
        yield
        self.runs.setdefault(name, []).append(time.thread_time() - begun - minus_seconds)
        if is_admission:
            self.limited.add(name)

    def report(self) -> bool:
        """Print all times. False: an admission took too long."""
        is_good = True
        for name, seconds in self.runs.items():
            best = min(seconds)
            is_over = name in self.limited and best > self.limit_seconds
            is_good &= not is_over
            note = f"over {self.limit_seconds * 1e3:g} ms" if is_over else ""
            print(f"{name:<58} {best * 1e3:8.2f} ms  {note}".rstrip())
        return is_good


class Session:
    """A tree of many prompts, and the engine that grew it."""

    def __init__(self, traits: MemoryTraits, *, num_nodes: int, num_tokens: int, path_nodes: int) -> None:
        self.rng = np.random.default_rng(0)
        self.model = InstantModel(traits)
        self.cache = Cache(traits, RamTier(1 << 40))
        options = EngineOptions(prefill_chunk=2048, queue_size=64)
        self.engine = Engine(self.model, self.cache, options, parallel=8)
        self._num_requests = 0
        self.prompt = self.words(num_tokens)
        self.cuts = tuple(np.linspace(0, num_tokens, path_nodes + 1).astype(int).tolist()[1:])
        self.ask(self.prompt, self.cuts)
        self.release_all()
        while self.cache.tree.num_nodes < num_nodes:
            self.grow()
        self.release_all()

    def grow(self) -> None:
        """Another conversation: forks from the long prompt at a message's end, and has twenty messages of its own."""
        stop = int(self.rng.choice(self.cuts[: len(self.cuts) // 10]))
        tokens = np.concatenate([self.prompt[:stop], self.words(400)])
        self.ask(tokens, tuple(range(stop + 20, len(tokens), 20)))

    def words(self, count: int) -> Tokens:
        return self.rng.integers(0, VOCABULARY, count).astype(np.int32)

    def submit(self, tokens: Tokens, cuts: tuple[int, ...]) -> None:
        self._num_requests += 1
        request = Generate(RequestId(str(self._num_requests)), tokens, cuts, max_new_tokens=2, sampling=GREEDY)
        self.engine.submit(request)

    def finish(self) -> None:
        while not self.engine.is_idle:
            self.engine.step()

    def ask(self, tokens: Tokens, cuts: tuple[int, ...]) -> None:
        self.submit(tokens, cuts)
        self.finish()

    def parked(self) -> list[Branch]:
        return self.engine.live.parked

    def release_all(self) -> None:
        for branch in self.parked():
            self.engine.live.release(branch)


def measure_requests(session: Session, times: Times, kind: str) -> None:
    """One round of what an agent does."""
    more = session.words(200)
    turn = np.concatenate([session.prompt, more])
    cuts = (*session.cuts, len(turn))

    def admit(name: str, tokens: Tokens) -> None:
        session.submit(tokens, cuts)
        hashing = seconds_of(lambda: hashlib.blake2b(tokens[len(session.prompt) :].tobytes()).digest())
        with times.measure(f"{kind}: {name}", is_admission=True, minus_seconds=hashing):
            events = session.engine.step()
        assert any(isinstance(event, Started) for event in events)

    admit("load a saved prompt and append", turn)
    with times.measure(f"{kind}: finish and park"):
        session.finish()
    admit("ask it again", turn)
    session.finish()
    admit("append to the live prompt", np.concatenate([turn, session.words(200)]))
    session.finish()
    edited = turn.copy()
    edited[-150:] = session.words(150)
    admit("edit the last message", edited)
    session.finish()
    with times.measure(f"{kind}: one saving step while idle"):
        session.engine.idle_step()
    with times.measure(f"{kind}: release what is parked"):
        session.release_all()


def measure_plan(session: Session, times: Times, kind: str) -> None:
    with times.measure(f"{kind}: plan alone"):
        session.cache.plan(session.prompt)


def measure_new_prompt(session: Session, times: Times, kind: str) -> None:
    """A first prompt of the same size and as many messages: hashing is most of it."""
    tokens = session.words(len(session.prompt))
    session.submit(tokens, session.cuts)
    hashing = seconds_of(lambda: hashlib.blake2b(tokens.tobytes()).digest())
    with times.measure(f"{kind}: a new prompt of that size", is_admission=True, minus_seconds=hashing):
        session.engine.step()
    session.finish()
    with times.measure(f"{kind}: release it, all its nodes unsaved"):
        session.release_all()


def measure_lineage(session: Session, times: Times, kind: str, repeat: int, num_forks: int = 200) -> None:
    """A live conversation whose last message is edited again and again, each time behind one more message."""
    tokens = session.prompt
    for _ in range(num_forks):
        tokens = np.concatenate([tokens[:-20], session.words(40)])
        session.submit(tokens, (*session.cuts, len(tokens) - 20))
        session.finish()
    for _ in range(repeat):
        session.submit(np.concatenate([tokens[:-20], session.words(40)]), session.cuts)
        with times.measure(f"{kind}: a fork of a fork, {num_forks} times over", is_admission=True):
            session.engine.step()
        session.finish()
    session.release_all()


def measure_pressure(session: Session, times: Times, kind: str) -> None:
    """The tier is full, so that what is saved takes the place of something else."""
    tier = session.cache.tier
    assert isinstance(tier, RamTier)
    session.ask(session.words(50), ())
    capacity_bytes, tier.capacity_bytes = tier.capacity_bytes, tier.used_bytes
    with times.measure(f"{kind}: one saving step in a full tier"):
        session.engine.idle_step()
    session.release_all()
    tier.capacity_bytes = capacity_bytes


def seconds_of(work: Callable[[], object]) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes in the tree")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the long prompt")
    parser.add_argument("--path", type=int, default=500, help="nodes on its path")
    parser.add_argument("--repeat", type=int, default=10, help="runs, of which the best is told")
    parser.add_argument("--limit-ms", type=float, default=5.0, help="most time for an admission")
    options = parser.parse_args()
    times = Times(options.limit_ms / 1e3)
    for traits in (ATTENTION, HYBRID):
        session = Session(traits, num_nodes=options.nodes, num_tokens=options.tokens, path_nodes=options.path)
        num_path_nodes = len(session.cache.tree.match(session.prompt).path)
        print(
            f"{traits.kind}: {session.cache.tree.num_nodes} nodes, {num_path_nodes} on the path, {session.cache.tier}"
        )
        for _ in range(options.repeat):
            measure_plan(session, times, traits.kind)
            measure_requests(session, times, traits.kind)
            measure_new_prompt(session, times, traits.kind)
            measure_pressure(session, times, traits.kind)
        measure_lineage(session, times, traits.kind, options.repeat)
    return 0 if times.report() else 1


if __name__ == "__main__":
    sys.exit(main())
