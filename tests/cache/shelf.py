"""A cache driven by hand: does the engine's part with letters for tokens, and no model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.archive import Archive
from kvstet.cache.cache import MAX_NODES, Cache
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.placement import EditDepths
from kvstet.cache.plan import Plan
from kvstet.cache.policy import Appraisal, Piece, Policy
from kvstet.cache.rates import Rates, TierName
from kvstet.cache.tier import RamTier
from kvstet.cache.tree import Branch, Node, Stored, Tree
from kvstet.engine.fake import ATTENTION
from kvstet.types import Blob, MemoryTraits, SeqId, Tokens

Outline = dict[str, "Outline"]

FLAT = Rates(1.0, 0.0, ram_bytes_per_second=100.0, disk_bytes_per_second=10.0)
"""Every token costs a second, wherever it stands, and a byte a hundredth of one to load, or a tenth from disk."""


QUICK = Rates(1.0, 0.0, ram_bytes_per_second=1e6, disk_bytes_per_second=1e5)
"""Any state is loaded faster than computed."""


class EvenDepths(EditDepths):
    """Every node end is as likely to be gone on from as any other, and each as likely as in a path of one."""

    def chances(self, count: int) -> NDArray[np.float64]:
        return np.ones(count)


def tokens(text: str) -> Tokens:
    """One token per letter."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def text(array: Tokens) -> str:
    return array.astype(np.uint8).tobytes().decode()


def prefix(node: Node) -> str:
    """All letters from the root to the node's end."""
    return "".join(text(step.tokens) for step in reversed([*node.path()]))


def outline(node: Node | Tree) -> Outline:
    """What hangs below a node, as nested dicts of letters."""
    top = node.root if isinstance(node, Tree) else node
    return {text(child.tokens): outline(child) for child in top.children.values()}


NOW = 1_700_000_000.0
"""Unix time when a shelf's clock says 0."""

MODEL = b"fingerprint-of-a"
OTHER_MODEL = b"fingerprint-of-b"


@contextmanager
def memory_folder() -> Generator[Path]:
    """A folder in memory where the system has one: nothing waits for a disk. Gone afterwards."""
    in_memory = Path("/dev/shm")
    path = tempfile.mkdtemp(dir=in_memory if os.access(in_memory, os.W_OK) else None)
    try:
        yield Path(path)
    finally:
        shutil.rmtree(path)


class Shelf:
    """Keeps one cache; a span has one byte per token, a checkpoint ``checkpoint_bytes``.

    With a ``folder`` it has a disk behind RAM. Nothing is written there unless a test says so, or RAM is too small.
    """

    def __init__(
        self,
        traits: MemoryTraits = ATTENTION,
        ram_bytes: int = 1000,
        *,
        checkpoint_bytes: int = 4,
        max_nodes: int = MAX_NODES,
        rates: Rates = FLAT,
        folder: Path | None = None,
        disk_bytes: int = 1 << 20,
        model: bytes = MODEL,
        now: float = 0.0,
    ) -> None:
        self.now = now
        self.checkpoint_bytes = checkpoint_bytes
        self.evicted: list[str] = []
        disk = self._disk(folder, disk_bytes, model) if folder else None
        self.cache = Cache(
            traits,
            RamTier(ram_bytes),
            disk,
            fingerprint=model,
            policy=Policy(traits, rates, EvenDepths()),
            clock=lambda: self.now,
            unix_clock=self.unix_time,
            max_nodes=max_nodes,
        )

    def _disk(self, folder: Path, capacity_bytes: int, model: bytes) -> DiskTier:
        self.store = DiskStore(folder, clock=self.unix_time)
        return DiskTier(self.store, model, capacity_bytes=capacity_bytes, write_bytes_per_hour=None)

    def unix_time(self) -> float:
        return NOW + self.now

    def close(self) -> None:
        """End the process in good order."""
        self.cache.finish()
        self.store.close()

    def kill(self) -> None:
        """End the process without a word: what the writer had in hand is on disk, and nobody has noted it."""
        self.archive.disk.wait()
        self.store.close()

    # The disk

    @property
    def archive(self) -> Archive:
        assert self.cache.archive is not None
        return self.cache.archive

    def write(self) -> list[str]:
        """Write all that should be on disk, as far as it can be; the files that are new, in the order of writing."""
        written: list[str] = []
        before = self.on_disk()
        for _ in range(1000):
            if not self.cache.write_step() and not self.cache.is_writing:
                return written
            self.archive.disk.wait()
            self.archive.collect()
            self.cache.check()
            after = self.on_disk()
            written += [name for name in after if name not in before]
            before = after
        raise AssertionError("Writing has no end.")

    def on_disk(self) -> list[str]:
        return self.kept("disk")

    def path(self, prompt: str, kind: str = "span") -> Path:
        """The file of a node's state."""
        stored = getattr(self.node(prompt), kind)
        return self.store.path(MODEL, stored.key)

    # Live branches

    def start(self, seq: int, prompt: str, *, cuts: tuple[int, ...] = (), length: int = 0) -> Branch:
        """A branch that forks what it can, loads the rest of its plan, and has computed up to ``length``."""
        node = self.cache.insert(tokens(prompt), cuts)
        plan = self.plan(prompt)
        branch = self.cache.open(SeqId(seq), node, max(plan.resume, length), plan.fork)
        self.cache.check()
        return branch

    def run(self, seq: int, prompt: str, *, cuts: tuple[int, ...] = ()) -> Branch:
        """A branch that has computed all of its prompt and still runs."""
        return self.start(seq, prompt, cuts=cuts, length=len(prompt))

    def park(self, branch: Branch) -> Branch:
        self.cache.park(branch)
        self.cache.check()
        return branch

    def parked(self, seq: int, prompt: str, *, cuts: tuple[int, ...] = ()) -> Branch:
        """A branch that has computed all of its prompt and stopped."""
        return self.park(self.run(seq, prompt, cuts=cuts))

    # Saved state

    def save_span(self, node: Node, num_bytes: int | None = None) -> bool:
        return self._store(node, "span", Blob(node.start, node.stop, _data(num_bytes or len(node.tokens))))

    def save_checkpoint(self, node: Node, num_bytes: int | None = None) -> bool:
        return self._store(node, "checkpoint", Blob(0, node.stop, _data(num_bytes or self.checkpoint_bytes)))

    def saved(self, prompt: str, *, cuts: tuple[int, ...] = (), at: float | None = None) -> Node:
        """A prompt whose spans (or, without spans, checkpoint) were saved, and whose branch is gone."""
        self.now = self.now if at is None else at
        branch = self.parked(99, prompt, cuts=cuts)
        if self.cache.traits.has_spans:
            for node in self.cache.unsaved(branch):
                assert self.save_span(node)
        else:
            assert self.save_checkpoint(branch.node)
        self.cache.close(branch)
        self.cache.check()
        return branch.node

    def kept(self, tier: TierName | None = None) -> list[str]:
        """Prefixes that have saved state (in a tier), with what they have."""
        return sorted(
            f"{prefix(node)} {kind}"
            for node in self.cache.tree.nodes()
            for kind in ("span", "checkpoint")
            if (stored := getattr(node, kind))
            and (tier is None or (stored.in_ram if tier == "ram" else stored.on_disk))
        )

    def order(self, tier: TierName = "ram", num_bytes: int = 1_000_000, newcomer: Stored | None = None) -> list[str]:
        """Everything that may be evicted from a tier, worst first."""
        return [f"{prefix(p.stored.nodes[-1])} {p.stored.key.kind}" for p in self.victims(tier, num_bytes, newcomer)]

    def victims(self, tier: TierName, num_bytes: int, newcomer: Stored | None = None) -> list[Piece]:
        return self.appraisal().victims(tier, num_bytes, newcomer)

    # Reading

    def appraisal(self) -> Appraisal:
        return Appraisal(self.cache.policy, self.cache.tree.nodes(), self.now)

    def branch_value(self, branch: Branch) -> float:
        return self.cache.policy.branch_value(branch, self.cache.num_own_cells()[branch], self.now)

    def node(self, prompt: str) -> Node:
        """The node that ends where the prompt does."""
        match = self.cache.tree.match(tokens(prompt))
        assert match.length == len(prompt) == match.path[-1].stop
        return match.path[-1]

    def plan(self, prompt: str) -> Plan:
        return self.cache.plan(tokens(prompt))

    def nodes(self, prompts: Iterable[str]) -> list[Node]:
        return [self.node(prompt) for prompt in prompts]

    def _store(self, node: Node, kind: str, blob: Blob) -> bool:
        before = self.kept()
        was_kept = self.cache.store(node, "span" if kind == "span" else "checkpoint", blob)
        self.evicted += [name for name in before if name not in self.kept()]
        self.cache.check()
        return was_kept


def _data(num_bytes: int):
    return np.zeros(num_bytes, np.uint8)
