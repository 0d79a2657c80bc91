"""A cache driven by hand: does the engine's part with letters for tokens, and no model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kvstet.cache.cache import MAX_NODES, Cache
from kvstet.cache.plan import Plan
from kvstet.cache.policy import Policy, Rates
from kvstet.cache.tier import RamTier
from kvstet.cache.tree import Branch, Node, Tree
from kvstet.engine.fake import ATTENTION
from kvstet.types import Blob, MemoryTraits, SeqId, Tokens

Outline = dict[str, "Outline"]

FLAT = Rates(seconds_per_token=1.0, seconds_per_token_and_position=0.0, load_seconds_per_token=0.01)
"""Every token costs a second, wherever it stands."""


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


class Shelf:
    """Keeps one cache; a span has one byte per token, a checkpoint ``checkpoint_bytes``."""

    def __init__(
        self,
        traits: MemoryTraits = ATTENTION,
        ram_bytes: int = 1000,
        *,
        checkpoint_bytes: int = 4,
        max_nodes: int = MAX_NODES,
        rates: Rates = FLAT,
    ) -> None:
        self.now = 0.0
        self.checkpoint_bytes = checkpoint_bytes
        self.evicted: list[str] = []
        policy = Policy(traits, rates)
        self.cache = Cache(traits, RamTier(ram_bytes), policy=policy, clock=lambda: self.now, max_nodes=max_nodes)

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

    def kept(self) -> list[str]:
        """Prefixes that have saved state, with what they have."""
        return sorted(
            f"{prefix(node)} {kind}"
            for node in self.cache.tree.nodes()
            for kind in ("span", "checkpoint")
            if getattr(node, kind)
        )

    # Reading

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
