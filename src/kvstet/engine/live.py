"""The live sequences of a model: brings planned prefixes to life, saves them, and lets them go."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from kvstet.cache.cache import Cache
from kvstet.cache.plan import Load, Plan
from kvstet.cache.tree import Branch, Node
from kvstet.engine.model import Model
from kvstet.errors import KvstetError, OutOfCells, OutOfMemory, SnapshotMismatch
from kvstet.types import SeqId

PARK_TOKENS = 256
"""Tokens that others decode beside a saved, parked branch before it leaves the live cells.

Each of them pays for the parked cells, loading them again is paid once: after about this many both have cost the
same, so waiting that long costs at most twice the best choice (the ski-rental rule).
"""


COMPLAIN_TOKENS = 100_000
"""Work after which it is said again that memory is short."""

log = logging.getLogger(__name__)


class LostBlob(KvstetError):
    """A planned blob is gone from its tier; the cache has forgotten it, so the next plan does without."""


class LiveSet:
    """Owns the model's sequences. The cache decides what they mean; this moves the state."""

    def __init__(self, model: Model, cache: Cache) -> None:
        self._model = model
        self._cache = cache
        self._free = [SeqId(seq) for seq in reversed(range(model.num_sequences))]
        self._work_when_parked: dict[Branch, int] = {}
        self._strays: list[Branch] = []
        """Parked sequences that the tree does not know, the oldest first; nothing of them can be saved."""
        self._unsavable: set[Branch] = set()
        """There was no room for their state; tried again when something else has come."""
        self._complained = 0
        self.num_work_tokens = 0
        """Tokens decoded so far, by anyone; advanced by the engine."""

    @property
    def num_parked(self) -> int:
        return len(self._work_when_parked)

    @property
    def parked(self) -> list[Branch]:
        """Branches that do not run, the least valuable first."""
        return self._cache.by_value(self._work_when_parked)

    def num_free_cells(self) -> int:
        """Live cells that hold nothing."""
        return self._model.num_cells - self._cache.num_live_cells

    # Bringing to life

    def take(self, plan: Plan, node: Node) -> Branch:
        """A running branch that holds the first ``plan.resume`` tokens of the path to ``node``.

        A parked branch that ends where the plan forks is taken over, any other stays as it is. LostBlob: plan again.
        OutOfCells, OutOfMemory: nothing was changed.
        """
        fork = plan.fork
        if fork and not fork.branch.is_running and fork.stop == fork.branch.length == plan.resume:
            return self._take_over(fork.branch, node)
        self._unsavable.clear()
        seq = self._free_sequence(keep=fork.branch if fork else None)
        self._fill(seq, plan)
        return self._cache.open(seq, node, plan.resume, fork)

    def _fill(self, seq: SeqId, plan: Plan) -> None:
        """Bring a plan's state to an empty sequence; where that fails, the sequence is free again."""
        try:
            if plan.fork:
                self._model.fork(plan.fork.branch.seq, seq, plan.fork.stop)
            self._load(seq, plan)
        except BaseException:
            self.give_back(seq)
            raise

    def _take_over(self, branch: Branch, node: Node) -> Branch:
        if self._cache.lacks_checkpoint(branch):
            # The branch moves on, and others may want to resume where it stood.
            self._save_checkpoint(branch, branch.node)
        self._unpark(branch)
        self._cache.reopen(branch, node)
        return branch

    def _load(self, seq: SeqId, plan: Plan) -> None:
        """Bring back what was saved. A blob that is lost or torn is forgotten: LostBlob."""
        for stored, start, stop in (*plan.loads, *_last_load(plan)):
            tier = "ram" if stored.in_ram else "disk"
            begun = time.perf_counter()
            try:
                blob = self._cache.fetch(stored)
                if blob is None:
                    raise SnapshotMismatch("No tier has it any more.")
                if stored.key.kind == "span":
                    self._model.load_span(seq, blob, start, stop)
                else:
                    self._model.load_checkpoint(seq, blob)
            except SnapshotMismatch as error:
                self._cache.forget(stored)
                raise LostBlob(f"A saved state could not be loaded: {error}") from error
            self._cache.policy.rates.observe_load(blob.num_bytes, tier, time.perf_counter() - begun)

    # Straying

    def stray(self, source: Branch, stop: int) -> Branch:
        """A running sequence that shares the first tokens of another one, and will hold what the tree must not know.

        OutOfCells: nothing was changed.
        """
        seq = self._free_sequence(keep=source)
        self._model.fork(source.seq, seq, stop)
        return self._cache.stray(seq, source, stop)

    def take_back(self, stray: Branch) -> Branch:
        """A parked stray runs again."""
        self._strays.remove(stray)
        stray.is_running = True
        return stray

    def is_parked_stray(self, branch: Branch) -> bool:
        """False: it runs, or was let go."""
        return branch in self._strays

    # Lending

    def make_room_to_borrow(self, num_tokens: int, *, keep: Branch | None = None) -> bool:
        """Whether a sequence and the cells for so many tokens can be had, letting go of nothing that is not saved."""
        saved = [branch for branch in self.parked if self._is_saved(branch) and branch is not keep]
        others = self._cache.live - set(saved)
        if not (self._free or saved) or self._model.num_cells - self._cache.num_cells(others) < num_tokens:
            return False
        for branch in saved:
            if self._free and self.num_free_cells() >= num_tokens:
                break
            self.release(branch)
        return True

    def borrow(self, plan: Plan | None) -> SeqId:
        """A sequence that holds what the plan brings (None: nothing), unknown to the cache's books.

        OutOfCells, LostBlob: nothing was changed. It must be given back before any request is admitted.
        """
        if not self._free:
            raise OutOfCells("All sequences are in use.")
        seq = self._free.pop()
        if plan is not None:
            self._fill(seq, plan)
        return seq

    def give_back(self, seq: SeqId) -> None:
        """Free a borrowed sequence."""
        self._model.remove(seq)
        self._free.append(seq)

    # Saving

    def reach(self, branch: Branch, end: Node) -> None:
        """A branch has come further on the path to ``end``: keep its summary state where a node ends."""
        if self._cache.traits.has_checkpoints:
            node = next((node for node in end.path() if node.stop <= branch.length), None)
            if node is not None and node.stop == branch.length and node.checkpoint is None:
                self._save_checkpoint(branch, node)

    def park(self, branch: Branch) -> None:
        """The branch stops running; it stays live for whoever continues it."""
        if branch in self._cache.astray:
            branch.is_running = False
            self._strays.append(branch)
        elif branch.length > 0:
            self._cache.park(branch)
            self._work_when_parked[branch] = self.num_work_tokens
        else:
            self._close(branch)
            self._cache.forget_path(branch.node)

    def save_step(self, branch: Branch) -> bool:
        """Save one piece of what only this branch holds. False: nothing is left to save, or it is not worth it."""
        return next(self._saves(branch), False)

    def idle_step(self) -> bool:
        """One small piece of work for idle time: save a parked branch. False: there is none."""
        return any(self.save_step(branch) for branch in self._work_when_parked)

    # Letting go

    def retire_step(self) -> None:
        """While others run, move long parked branches out of their way, a small piece at a time."""
        for branch, parked_at in self._work_when_parked.items():
            if self.num_work_tokens - parked_at < PARK_TOKENS or branch in self._unsavable:
                continue
            if not self.save_step(branch) and branch not in self._unsavable:
                self.release(branch)
            return

    def let_go(self) -> bool:
        """Free the cells of whatever is parked and worth least. False: nothing is."""
        branch = next(iter(self._strays or self.parked), None)
        if branch is not None:
            self.release(branch)
        return branch is not None

    def release(self, branch: Branch) -> None:
        """Save what can be saved of a parked branch, and free its cells."""
        if branch in self._strays:
            self.drop(branch)
            return
        for was_kept in self._saves(branch):
            if not was_kept:
                break
        self._unpark(branch)
        self._close(branch)

    def drop(self, branch: Branch) -> None:
        """Free a branch's cells and save nothing of it."""
        if branch in self._strays:
            self._strays.remove(branch)
            self._close(branch)
        elif branch in self._work_when_parked:
            self._unpark(branch)
            self._close(branch)
            self._cache.forget_path(branch.node)

    def make_room(self, num_cells: int, *, keep: Branch | None = None) -> bool:
        """Release parked branches, the least valuable first, until that many cells are free.

        False: not all of them together would do, and none is released.
        """
        if self.num_free_cells() >= num_cells:
            return True
        released = {*self._work_when_parked, *self._strays} - {keep}
        if self._model.num_cells - self._cache.num_cells(self._cache.live - released) < num_cells:
            return False
        for branch in (*self._strays, *self.parked):
            if self.num_free_cells() >= num_cells:
                break
            if branch is not keep:
                self.release(branch)
        return True

    # Inside

    def _saves(self, branch: Branch) -> Iterator[bool]:
        """Save what only this branch holds, piece by piece, and tell of each whether it was kept."""
        if branch in self._unsavable:
            return
        # Spans first: without them, neither this checkpoint nor those before it bring anything back.
        for node in self._cache.unsaved(branch):
            yield self._kept(branch, self._save_span(branch, node))
        if self._cache.lacks_checkpoint(branch):
            yield self._kept(branch, self._save_checkpoint(branch, branch.node))

    def _save_span(self, branch: Branch, node: Node) -> bool:
        try:
            return self._cache.store(node, "span", self._model.save_span(branch.seq, node.start, node.stop))
        except OutOfMemory as error:
            return self._note(error)

    def _save_checkpoint(self, branch: Branch, node: Node) -> bool:
        try:
            return self._cache.store(node, "checkpoint", self._model.save_checkpoint(branch.seq))
        except OutOfMemory as error:
            return self._note(error)

    def _note(self, error: OutOfMemory) -> bool:
        """Say it once in a while; what was not saved is computed again, should it be asked for."""
        if self.num_work_tokens >= self._complained + COMPLAIN_TOKENS or not self._complained:
            log.warning("State is not kept: %s", error)
            self._complained = max(1, self.num_work_tokens)
        return False

    def _kept(self, branch: Branch, was_kept: bool) -> bool:
        if not was_kept:
            self._unsavable.add(branch)
        return was_kept

    def _is_saved(self, branch: Branch) -> bool:
        return not self._cache.lacks_checkpoint(branch) and not self._cache.unsaved(branch)

    def _free_sequence(self, keep: Branch | None) -> SeqId:
        if not self._free:
            victim = next((branch for branch in (*self._strays, *self.parked) if branch is not keep), None)
            if victim is None:
                raise OutOfCells("All sequences are in use.")
            self.release(victim)
        return self._free.pop()

    def _unpark(self, branch: Branch) -> None:
        del self._work_when_parked[branch]
        self._unsavable.discard(branch)

    def _close(self, branch: Branch) -> None:
        self._cache.close(branch)
        self._model.remove(branch.seq)
        self._free.append(branch.seq)


def _last_load(plan: Plan) -> tuple[Load, ...]:
    """The checkpoint: it goes on top of the spans."""
    return (Load(plan.checkpoint, 0, plan.resume),) if plan.checkpoint else ()
