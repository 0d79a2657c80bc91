"""The cache: one tree, the branches that live, and the tier that keeps what they leave behind.

Decides and keeps the books; the engine does the decoding and moves the bytes. Nothing here overwrites a branch: what
a request adds is a branch of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager

from kvstet.cache import cells, invariants
from kvstet.cache.archive import Archive
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.plan import Fork, Plan, plan
from kvstet.cache.policy import Appraisal, Piece, Policy, total_bytes
from kvstet.cache.tier import BlobKey, BlobKind, Tier
from kvstet.cache.tree import Branch, CellRun, Match, Node, Stored, Tree
from kvstet.cache.warmup import Warmup
from kvstet.types import Blob, CutKind, MemoryTraits, SeqId, Tokens

EVICTION_STEPS = 16
"""Full RAM is relieved of at least one part in this many at a time."""

REFUSED_SECONDS = 0.5
"""How long it is taken for granted that there is no room, once a search has found none: it reads the whole tree."""

SIDE_REQUEST_PART = 4
"""A prompt of which less than one part in this many is known is a conversation of its own, and edits none."""

MIN_CHECKPOINTS = 4
"""Checkpoints that a prompt gets in any case, to compete with others for room."""

DISK_PART = 4
"""One prompt's checkpoints may take one part of the disk in so many."""

MAX_NODES = 100_000
"""Nodes to remember, with state or without; more, and the longest unused bare ones are forgotten."""


class Cache:
    """State of every prefix that is worth keeping, for one model. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        traits: MemoryTraits,
        tier: Tier,
        disk: DiskTier | None = None,
        *,
        fingerprint: bytes = b"",
        policy: Policy | None = None,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
        max_nodes: int = MAX_NODES,
    ) -> None:
        """``fingerprint`` names the model and all that changes its numbers; what is on disk bears it too."""
        self.traits = traits
        self.tree = Tree(fingerprint)
        self.tier = tier
        self.policy = policy or Policy(traits)
        self.archive = Archive(self.tree, self.policy, tier, disk, clock=clock, unix_clock=unix_clock) if disk else None
        self.branches: set[Branch] = set()
        self.astray: set[Branch] = set()
        """Live sequences whose state is not that of any path: the tree knows nothing of them, only of their cells."""
        self.num_evicted_blobs = 0
        self.num_quarantined_nodes = 0
        self._quarantined: set[bytes] = set(disk.quarantined) if disk else set()
        self._clock = clock
        self._max_nodes = max_nodes
        self._checkpoint_bytes: int | None = None
        self._refused: tuple[float, int] = (0.0, 0)
        found = self.archive.restore() if self.archive else []
        self.num_found_blobs = len(found)
        self._warmup = Warmup(found)

    # Reading

    def plan(self, tokens: Tokens) -> Plan:
        """How to bring these tokens to life at the least cost. Changes nothing."""
        return plan(self._sound(self.tree.match(tokens)), len(tokens), self.traits, self.policy.rates)

    def plan_to(self, node: Node) -> Plan:
        """`plan` for the tokens that end where a node does, without reading them again."""
        return plan(self._sound(Match.to(node)), node.stop, self.traits, self.policy.rates)

    def appraise(self, tokens: Tokens) -> Plan:
        """`plan`, as it would be for a request that came now."""
        if self.archive:
            self.archive.sync()
        return self.plan(tokens)

    def plan_cold(self, tokens: Tokens) -> Plan:
        """The plan that uses nothing."""
        return Plan(self.tree.match(tokens), 0)

    @property
    def live(self) -> set[Branch]:
        """All live sequences."""
        return self.branches | self.astray

    @property
    def num_live_cells(self) -> int:
        """Cells the live branches take; a shared prefix counts once."""
        return cells.num_cells(self.live)

    def num_cells(self, branches: Iterable[Branch]) -> int:
        """Cells that these branches take; a shared prefix counts once."""
        return cells.num_cells(branches)

    def num_own_cells(self) -> dict[Branch, int]:
        """For each branch, the cells that would be free without it."""
        return cells.num_own_cells(self.live)

    # Growing

    def look_up(self, tokens: Tokens) -> Match:
        """What is known of a new request's prompt, by this process and others that share the disk."""
        if self.archive:
            self.archive.sync()
        match = self.tree.match(tokens)
        if match.path and match.length * SIDE_REQUEST_PART > len(tokens):
            self.policy.depths.observe(_num_ends_behind(match))
        return match

    def insert(self, tokens: Tokens, cuts: Mapping[int, CutKind] | tuple[int, ...], match: Match | None = None) -> Node:
        """The node that ends where the tokens do; it has no state yet.

        The path is cut at ``cuts``, of which may be told what stands behind them; ``match`` spares the search for
        the tokens' prefix.
        """
        if self.tree.num_nodes > self._max_nodes:
            self._forget_bare_nodes()
            match = None
        node = self.tree.insert(tokens, tuple(cuts), self._clock(), match)
        if not isinstance(cuts, tuple):
            for step in node.path():
                step.kind = cuts.get(step.stop, step.kind)
        return node

    def open(self, seq: SeqId, node: Node, length: int, fork: Fork | None) -> Branch:
        """A sequence begins to live on the path to ``node``, of which it holds ``length`` tokens, forked or loaded."""
        own = CellRun(fork.stop if fork else 0)
        branch = Branch(seq, node, length, own, fork.branch.cells(fork.stop) if fork else ())
        self.branches.add(branch)
        for step in self.touch(node):
            step.branches.add(branch)
        return branch

    def stray(self, seq: SeqId, source: Branch, stop: int) -> Branch:
        """A sequence shares the first tokens of a live branch, and what follows is no state of its path."""
        branch = Branch(seq, source.node, stop, CellRun(stop), source.cells(stop))
        self.astray.add(branch)
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
        self.astray.discard(branch)
        for step in branch.node.path():
            step.branches.discard(branch)
        cells.join_runs(self.live)

    def forget_path(self, node: Node) -> None:
        """Remove a node whose tokens were never computed, and those above it that only led there."""
        while node.parent is not None and node.is_bare:
            parent = node.parent
            self.tree.remove(node)
            node = parent

    def touch(self, node: Node) -> tuple[Node, ...]:
        """The prefix was asked for; the path to it."""
        path = tuple(node.path())
        self.tree.touch(path, self._clock())
        if self.archive:
            self.archive.touch(path)
        return path

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
        """Nodes whose additive state is live in this branch and in no tier, from the top."""
        if not self.traits.has_spans or self._is_quarantined(branch.node):
            return []
        return [node for node in branch.node.path() if node.span is None and node.stop <= branch.length][::-1]

    def lacks_checkpoint(self, branch: Branch) -> bool:
        """Whether the branch's tip could not be resumed once it is live no more."""
        return self.traits.has_checkpoints and branch.node.checkpoint is None and branch.length == branch.node.stop

    def store(self, node: Node, kind: BlobKind, blob: Blob) -> bool:
        """Keep a blob of the node's state, if there is room for what it is worth. False: it was not kept."""
        if self._is_quarantined(node):
            return False
        if kind == "checkpoint":
            self._checkpoint_bytes = blob.num_bytes
        stored = Stored(BlobKey(kind, node.id, blob.start), blob.start, blob.stop, blob.num_bytes, [node])
        known = node.span if kind == "span" else node.checkpoint
        if known is not None:
            self._drop(known)
        stored.attach()
        if self._make_room(stored):
            self._put(stored, blob)
        elif self.archive is None or not self.policy.is_worth_writing(stored):
            stored.detach()
        else:
            self.archive.write_now(stored, blob)
            if not stored.on_disk:
                stored.detach()
        return bool(stored.nodes)

    def fetch(self, stored: Stored) -> Blob | None:
        """The blob, or None where every tier lost it; `forget` it then and plan again."""
        if stored.in_ram:
            blob = self.tier.get(stored.key)
            if blob is not None:
                return blob
            self._drop_from_ram(stored)
        if self.archive is None or not stored.on_disk:
            return None
        blob = self.archive.fetch(stored)
        if blob is not None:
            stored.num_bytes = blob.num_bytes
            if self._make_room(stored):
                self._put(stored, blob)
        return blob

    def forget(self, stored: Stored) -> None:
        """No tier has this blob any more, or what they have cannot be used."""
        self._drop(stored)

    def quarantine(self, node: Node, divergence: float, floor: float) -> list[Branch]:
        """Never again use state of this prefix or of anything behind it; the parked branches that must be closed."""
        nodes = [node]
        for step in nodes:
            nodes += step.children.values()
            for stored in (step.span, step.checkpoint):
                if stored is not None:
                    self._drop(stored)
        prefixes = {step.id for step in nodes}
        self._quarantined |= prefixes
        self.num_quarantined_nodes += len(nodes)
        if self.archive:
            self.archive.disk.quarantine(prefixes, divergence, floor)
        return [branch for branch in node.branches if not branch.is_running]

    # Idle work

    @property
    def is_writing(self) -> bool:
        """The disk has something in hand."""
        return self.archive is not None and self.archive.is_busy

    @property
    def num_unwritten_blobs(self) -> int:
        """State that should be on disk and is not yet, what only parked branches hold included."""
        if self.archive is None:
            return 0
        parked = [branch for branch in self.branches if not branch.is_running]
        unsaved = {(node, "span") for branch in parked for node in self.unsaved(branch)}
        unsaved |= {(branch.node, "checkpoint") for branch in parked if self.lacks_checkpoint(branch)}
        return self.archive.num_unwritten_blobs + len(unsaved)

    @property
    def num_checkpoints_that_fit(self) -> int | None:
        """As many as one prompt may have; None: their size is not known yet."""
        if self._checkpoint_bytes is None:
            return None
        num_bytes = self.tier.capacity_bytes
        if self.archive:
            num_bytes += self.archive.disk.capacity_bytes // DISK_PART
        return max(MIN_CHECKPOINTS, num_bytes // max(1, self._checkpoint_bytes))

    def write_step(self, share: float = 1.0) -> bool:
        """Let the disk take the next blob that only RAM has. False: there is none, or it is busy, or may not.

        Writing takes at most this ``share`` of the time.
        """
        return self.archive is not None and self.archive.write_step(share)

    def flush_step(self) -> bool:
        """Tell the disk's index what was used. False: it knows all of it."""
        return self.archive is not None and self.archive.flush_step()

    def warm_step(self) -> bool:
        """Bring one likely blob from disk to RAM, as long as there is room. False: that was all."""
        stored = self._warmup.next(self.tier.capacity_bytes - self.tier.used_bytes)
        if stored is None or self.archive is None:
            return False
        blob = self.archive.fetch(stored)
        if blob is None:
            self.forget(stored)
        elif blob.num_bytes <= self.tier.capacity_bytes - self.tier.used_bytes:
            stored.num_bytes = blob.num_bytes
            self._put(stored, blob)
        return True

    def by_value(self, branches: Iterable[Branch]) -> list[Branch]:
        """Parked branches, those first whose cells save the least."""
        now, num_own_cells = self._clock(), self.num_own_cells()
        return sorted(branches, key=lambda branch: self.policy.branch_value(branch, num_own_cells[branch], now))

    def evict(self, piece: Piece) -> None:
        """Drop one blob from RAM, once the disk has it, if it is to have it."""
        stored = piece.stored
        if self.archive and not stored.on_disk and self.policy.is_worth_writing(stored):
            blob = self.tier.get(stored.key)
            if blob is not None:
                self.archive.write_now(stored, blob)
        self._drop_from_ram(stored)
        self.num_evicted_blobs += 1

    def finish(self) -> None:
        """Let the disk take what it has in hand, before the process ends."""
        if self.archive:
            self.archive.close()

    # Checking

    def check(self) -> None:
        """Raise AssertionError where an invariant does not hold; for tests."""
        invariants.check(self.tree, self.tier, self.branches, is_writing=self.is_writing)

    # Inside

    def _move(self, branch: Branch, node: Node) -> None:
        """To a node above or below its own."""
        for step in node.path():
            if branch in step.branches:
                break
            step.branches.add(branch)
        for step in branch.node.path():
            if step.start < node.stop:
                break
            step.branches.discard(branch)
        branch.node = node

    def _make_room(self, newcomer: Stored) -> bool:
        """All or nothing: where too little would become free, nothing is evicted."""
        num_bytes, capacity_bytes = newcomer.num_bytes, self.tier.capacity_bytes
        missing_bytes = self.tier.used_bytes + num_bytes - capacity_bytes
        if missing_bytes <= 0:
            return True
        now = self._clock()
        if num_bytes > capacity_bytes or (now < self._refused[0] and num_bytes >= self._refused[1]):
            return False
        # A little more than needed: the search for victims reads the whole tree.
        wanted_bytes = max(missing_bytes, capacity_bytes // EVICTION_STEPS)
        victims = Appraisal(self.policy, self.tree.nodes(), now).victims("ram", wanted_bytes, newcomer)
        if total_bytes(victims) < missing_bytes:
            self._refused = (now + REFUSED_SECONDS, num_bytes)
            return False
        for piece in victims:
            self.evict(piece)
        return True

    def _put(self, stored: Stored, blob: Blob) -> None:
        self.tier.put(stored.key, blob)
        stored.in_ram = True
        if self.archive and not stored.on_disk:
            self.archive.add(stored)

    def _drop_from_ram(self, stored: Stored) -> None:
        if stored.in_ram:
            stored.in_ram = False
            self.tier.drop(stored.key)
        if not stored.on_disk:
            stored.detach()

    def _drop(self, stored: Stored) -> None:
        if self.archive:
            self.archive.drop(stored)
        self._drop_from_ram(stored)

    def _is_quarantined(self, node: Node) -> bool:
        return bool(self._quarantined) and any(step.id in self._quarantined for step in node.path())

    def _sound(self, match: Match) -> Match:
        """The match down to where something was quarantined."""
        for index, step in enumerate(match.path if self._quarantined else ()):
            if step.id in self._quarantined:
                return Match(match.path[:index], step.start)
        return match

    def _forget_bare_nodes(self) -> None:
        bare = sorted((node for node in self.tree.nodes() if node.is_bare), key=lambda node: node.last_used)
        for node in bare[: max(1, self._max_nodes // 10)]:
            self.forget_path(node)


def _num_ends_behind(match: Match) -> int:
    """Node ends from where the tokens leave the known path to the tip that was used last."""
    node = match.path[-1]
    count = int(match.length < node.stop)
    while (child := node.latest_child) is not None:
        node = child
        count += 1
    return count
