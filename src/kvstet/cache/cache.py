"""The cache: one tree, the branches that live, and the tier that keeps what they leave behind.

Decides and keeps the books; the engine does the decoding and moves the bytes. Nothing here overwrites a branch: what
a request adds is a branch of its own.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from heapq import nlargest
from itertools import pairwise
from operator import itemgetter
from typing import Literal

from kvstet.cache.plan import Fork, Plan, plan
from kvstet.cache.policy import Piece, Policy, freed_bytes
from kvstet.cache.tier import BlobKey, Tier
from kvstet.cache.tree import Branch, CellRun, Match, Node, Stored, Tree
from kvstet.types import Blob, MemoryTraits, SeqId, Tokens

EVICTION_STEPS = 32
"""A full tier is relieved of at least one part in this many at a time."""

MAX_NODES = 100_000
"""Nodes to remember, with state or without; more, and the longest unused bare ones are forgotten."""


class Cache:
    """State of every prefix that is worth keeping, for one model. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        traits: MemoryTraits,
        tier: Tier,
        *,
        fingerprint: bytes = b"",
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        max_nodes: int = MAX_NODES,
    ) -> None:
        self.traits = traits
        self.tree = Tree(fingerprint)
        self.tier = tier
        self.policy = policy or Policy(traits)
        self.branches: set[Branch] = set()
        self.num_evicted_blobs = 0
        self._clock = clock
        self._max_nodes = max_nodes

    # Reading

    def plan(self, tokens: Tokens) -> Plan:
        """How to bring these tokens to life at the least cost. Changes nothing."""
        return plan(self.tree.match(tokens), len(tokens), self.traits)

    def plan_to(self, node: Node) -> Plan:
        """`plan` for the tokens that end where a node does, without reading them again."""
        return plan(Match.to(node), node.stop, self.traits)

    def plan_cold(self, tokens: Tokens) -> Plan:
        """The plan that uses nothing."""
        return Plan(self.tree.match(tokens), 0)

    @property
    def num_live_cells(self) -> int:
        """Cells the live branches take; a shared prefix counts once."""
        return self.num_cells(self.branches)

    def num_cells(self, branches: Iterable[Branch]) -> int:
        """Cells that these branches take; a shared prefix counts once."""
        return sum(end - run.start for run, end in _run_ends(branches).items())

    def num_own_cells(self) -> dict[Branch, int]:
        """For each branch, the cells that would be free without it."""
        holds: dict[CellRun, list[tuple[int, Branch]]] = defaultdict(list)
        for branch in self.branches:
            for run, end in branch.cells():
                holds[run].append((end, branch))
        counts = dict.fromkeys(self.branches, 0)
        for run, held in holds.items():
            # Only the longest hold on a run has something for itself: what it has beyond the second longest.
            (end, longest), (rest, _) = nlargest(2, [*held, (run.start, None)], key=itemgetter(0))
            if longest is not None:
                counts[longest] += end - rest
        return counts

    # Growing

    def insert(self, tokens: Tokens, cuts: tuple[int, ...], match: Match | None = None) -> Node:
        """The node that ends where the tokens do; it has no state yet. ``match`` spares the search for their prefix."""
        if self.tree.num_nodes > self._max_nodes:
            self._forget_bare_nodes()
            match = None
        return self.tree.insert(tokens, cuts, self._clock(), match)

    def open(self, seq: SeqId, node: Node, length: int, fork: Fork | None) -> Branch:
        """A sequence begins to live on the path to ``node``, of which it holds ``length`` tokens, forked or loaded."""
        own = CellRun(fork.stop if fork else 0)
        branch = Branch(seq, node, length, own, fork.branch.cells(fork.stop) if fork else ())
        self.branches.add(branch)
        for step in node.path():
            step.branches.add(branch)
        self.touch(node)
        return branch

    def reopen(self, branch: Branch, node: Node) -> None:
        """A parked branch runs on, to ``node`` below its own."""
        branch.is_running = True
        self._move(branch, node)
        self.touch(node)

    def extend(self, branch: Branch, tokens: Tokens) -> None:
        """Make the generated tail a node: ``tokens`` are all that the branch holds, prompt and reply."""
        assert len(tokens) == branch.length
        self._move(branch, self.tree.insert(tokens, (), self._clock()))

    def park(self, branch: Branch) -> None:
        """The branch stops running but stays live. What it never computed of its path is forgotten."""
        node = branch.node
        assert 0 < branch.length <= node.stop
        for step in node.path():
            if step.start < branch.length:
                self._move(branch, self.tree.cut(step, branch.length))
                break
        branch.is_running = False
        self.forget_path(node)

    def close(self, branch: Branch) -> None:
        """The branch is live no more; what was saved of it stays."""
        # Whoever waits for it must not wait for ever.
        branch.is_running = False
        self.branches.discard(branch)
        for step in branch.node.path():
            step.branches.discard(branch)
        self._join_runs()

    def forget_path(self, node: Node) -> None:
        """Remove a node whose tokens were never computed, and those above it that only led there."""
        while node.parent is not None and node.is_bare:
            parent = node.parent
            self.tree.remove(node)
            node = parent

    def touch(self, node: Node) -> None:
        """The prefix was asked for."""
        now = self._clock()
        for step in node.path():
            step.num_hits += 1
            step.last_used = now

    @contextmanager
    def lease(self, node: Node) -> Generator[Node]:
        """While it is held, no state on the path to ``node`` is evicted."""
        self.pin(node)
        try:
            yield node
        finally:
            self.unpin(node)

    def pin(self, node: Node) -> None:
        """Begin a lease whose end is not a block's."""
        for step in node.path():
            step.num_leases += 1

    def unpin(self, node: Node) -> None:
        """End a lease."""
        for step in node.path():
            assert step.num_leases > 0
            step.num_leases -= 1

    # Saving

    def unsaved(self, branch: Branch) -> list[Node]:
        """Nodes whose additive state lives in this branch alone and in no tier, from the top."""
        nodes: list[Node] = []
        for node in branch.node.path() if self.traits.has_spans else ():
            if any(other.length >= node.stop for other in node.branches if other is not branch):
                break
            if node.span is None and node.stop <= branch.length:
                nodes.append(node)
        return nodes[::-1]

    def lacks_checkpoint(self, branch: Branch) -> bool:
        """Whether the branch's tip could not be resumed once it is live no more."""
        return self.traits.has_checkpoints and branch.node.checkpoint is None and branch.length == branch.node.stop

    def store(self, node: Node, kind: Literal["span", "checkpoint"], blob: Blob) -> bool:
        """Keep a blob of the node's state, if there is room for what it is worth. False: it was not kept."""
        now = self._clock()
        stored = Stored(BlobKey(kind, node.id, blob.start), blob.start, blob.stop, blob.num_bytes)
        if kind == "span":
            self._release(node.span)
            node.span = stored
            piece = self.policy.span_piece(node, now)
        else:
            self._release(node.checkpoint)
            node.checkpoint = stored
            piece = self.policy.checkpoint_piece(node, now)
        # What is in use or needed by others is worth any price.
        value = piece.value if piece else float("inf")
        node.num_leases += 1
        has_room = self._make_room(blob.num_bytes, now, value)
        node.num_leases -= 1
        if has_room:
            self.tier.put(stored.key, blob)
        elif kind == "span":
            node.span = None
        else:
            node.checkpoint = None
        return has_room

    def fetch(self, stored: Stored) -> Blob | None:
        """The blob, or None where the tier lost it; `forget` it then and plan again."""
        return self.tier.get(stored.key)

    def forget(self, stored: Stored) -> None:
        """No node has a part in this blob any more."""
        for node in self.tree.nodes():
            if node.span is stored:
                node.span = None
            if node.checkpoint is stored:
                node.checkpoint = None
        self.tier.drop(stored.key)

    def by_value(self, branches: Iterable[Branch]) -> list[Branch]:
        """Parked branches, those first whose cells save the least."""
        now, num_own_cells = self._clock(), self.num_own_cells()
        return sorted(branches, key=lambda branch: self.policy.branch_value(branch, num_own_cells[branch], now))

    def evict(self, piece: Piece) -> None:
        """Drop one piece of saved state."""
        setattr(piece.node, piece.kind, None)
        self._release(piece.stored)
        self.num_evicted_blobs += 1

    # Checking

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold; for tests."""
        num_nodes = 0
        shares: Counter[Stored] = Counter()
        for node in self.tree.nodes():
            num_nodes += 1
            parent = node.parent
            assert parent is not None and node.start < node.stop and node.start == parent.stop
            assert parent.children[node.first_token] is node
            assert node.branches <= parent.branches or parent is self.tree.root
            assert node.num_leases <= parent.num_leases or parent is self.tree.root
            for stored in (node.span, node.checkpoint):
                if stored is not None:
                    shares[stored] += 1
                    assert stored.start <= node.start < node.stop <= stored.stop
            assert node.checkpoint is None or node.checkpoint.stop == node.stop
        assert num_nodes == self.tree.num_nodes
        assert all(stored.num_nodes == count for stored, count in shares.items())
        assert len({stored.key for stored in shares}) == len(shares)
        assert sum(stored.num_bytes for stored in shares) == self.tier.used_bytes, (shares, self.tier)
        assert self.tier.used_bytes <= self.tier.capacity_bytes
        seqs = [branch.seq for branch in self.branches]
        assert len(set(seqs)) == len(seqs)
        for branch in self.branches:
            assert all(branch in node.branches for node in branch.node.path())
            assert branch.is_running or branch.length == branch.node.stop

    # Inside

    def _move(self, branch: Branch, node: Node) -> None:
        for step in branch.node.path():
            step.branches.discard(branch)
        for step in node.path():
            step.branches.add(branch)
        branch.node = node

    def _join_runs(self) -> None:
        """Let a run that nobody fills any more go on as the one behind it, so that forks of forks do not add up."""
        filled = {branch.own for branch in self.branches}
        ends = _run_ends(self.branches)
        heirs: dict[CellRun, CellRun] = {}
        for branch in self.branches:
            for (run, end), (heir, _) in pairwise(branch.cells()):
                if run not in filled and end == ends[run]:
                    heirs[run] = heir
        for run in sorted(heirs, key=lambda run: run.start):
            heirs[run].start = run.start
        for branch in self.branches if heirs else ():
            joined: dict[CellRun, int] = {}
            for run, end in branch.shared:
                last = run
                while last in heirs:
                    last = heirs[last]
                joined[last] = end
            joined.pop(branch.own, None)
            branch.shared = tuple(joined.items())

    def _make_room(self, num_bytes: int, now: float, value: float) -> bool:
        """All or nothing: where too little would become free, nothing is evicted."""
        capacity_bytes = self.tier.capacity_bytes
        missing_bytes = self.tier.used_bytes + num_bytes - capacity_bytes
        if missing_bytes <= 0:
            return True
        if num_bytes > capacity_bytes:
            return False
        # A little more than needed: the search for victims reads the whole tree.
        wanted_bytes = max(missing_bytes, capacity_bytes // EVICTION_STEPS)
        victims = list(self.policy.victims(self.tree.nodes(), wanted_bytes, now, value))
        if freed_bytes(victims) < missing_bytes:
            return False
        for piece in victims:
            self.evict(piece)
        return True

    def _release(self, stored: Stored | None) -> None:
        if stored is None:
            return
        stored.num_nodes -= 1
        if stored.num_nodes == 0:
            self.tier.drop(stored.key)

    def _forget_bare_nodes(self) -> None:
        bare = sorted((node for node in self.tree.nodes() if node.is_bare), key=lambda node: node.last_used)
        for node in bare[: max(1, self._max_nodes // 10)]:
            self.forget_path(node)


def _run_ends(branches: Iterable[Branch]) -> dict[CellRun, int]:
    """Every run of cells that the branches hold, and where the longest hold on it ends."""
    ends: dict[CellRun, int] = {}
    for branch in branches:
        for run, end in branch.cells():
            ends[run] = max(end, ends.get(run, 0))
    return ends
