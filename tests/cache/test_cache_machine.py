"""The cache against a plain model of it: texts that are held, and blobs that are kept, in RAM and on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.cache.shelf import MODEL, NOW, QUICK, memory_folder, prefix, tokens

from kvstet.cache.archive import Archive
from kvstet.cache.cache import Cache
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.plan import Plan
from kvstet.cache.policy import Appraisal, Piece, Policy
from kvstet.cache.rates import TierName
from kvstet.cache.tier import BlobKind, RamTier
from kvstet.cache.tree import TOKEN, Branch, Node, Stored, Tree
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import Blob, MemoryTraits, SeqId

TOKEN_BYTES = 2
CHECKPOINT_BYTES = 10
RAM_BYTES = 48
NUM_SEQS = 5
letters = st.text("ab", min_size=1, max_size=6)
cuts = st.sets(st.integers(1, 14), max_size=4).map(tuple)
picks = st.integers(0, 1 << 16)

Request = tuple[int, int, str, tuple[int, ...], bool]
request = st.tuples(picks, picks, letters, cuts, st.booleans())
requests = st.lists(request, min_size=3, max_size=8)


def num_shared(*texts: str) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, (first, *others) in enumerate(zip(*texts, strict=False)) if {first} != {*others}),
        min(map(len, texts)),
    )


class Name(NamedTuple):
    """A blob, by what it is the state of."""

    kind: BlobKind
    start: int
    text: str
    """The whole prefix."""

    @property
    def covered(self) -> set[str]:
        """The prefixes that end within a span."""
        return {self.text[:stop] for stop in range(self.start + 1, len(self.text) + 1)}

    @property
    def content(self) -> bytes:
        """What nothing else is the state of."""
        if self.kind == "checkpoint":
            return digest("checkpoint", self.text, CHECKPOINT_BYTES)
        stops = range(self.start + 1, len(self.text) + 1)
        return b"".join(digest("token", self.text[:stop], TOKEN_BYTES) for stop in stops)

    @property
    def blob(self) -> Blob:
        return Blob(self.start, len(self.text), np.frombuffer(self.content, np.uint8))


def digest(what: str, text: str, num_bytes: int) -> bytes:
    return hashlib.blake2b(f"{what} {text}".encode(), digest_size=num_bytes).digest()


def name_of(stored: Stored) -> Name:
    return Name(stored.key.kind, stored.start, prefix(stored.nodes[-1]))


@dataclass
class Held:
    """What the model knows of a live sequence."""

    path: str
    """What it was opened for."""
    text: str
    """What it holds."""
    cells: list[int]
    is_running: bool = True

    @property
    def is_computing(self) -> bool:
        return self.is_running and len(self.text) < len(self.path)

    def shared_with(self, prompt: str) -> int:
        """Length of the common prefix with what others can find in the tree."""
        return num_shared(prompt, self.path, self.text)


@dataclass
class Books:
    """The plain model."""

    held: dict[SeqId, Held] = field(default_factory=dict)
    kept: set[Name] = field(default_factory=set)
    """Blobs that some tier has, as far as the cache can know."""
    damaged: set[Name] = field(default_factory=set)
    """Those whose file is not what was written, and those whose file is gone."""
    leases: list[str] = field(default_factory=list)
    quarantined: set[str] = field(default_factory=set)
    has_holes: bool = False
    """Something was lost, and not evicted."""

    @property
    def spans(self) -> set[str]:
        """Prefixes whose last token's additive state is saved."""
        return {text for name in self.kept if name.kind == "span" for text in name.covered}

    @property
    def checkpoints(self) -> set[str]:
        return {name.text for name in self.kept if name.kind == "checkpoint"}

    def covered(self, prompt: str) -> int:
        """How far additive state goes, from one live sequence and then from saved spans."""
        stop = max((held.shared_with(prompt) for held in self.held.values()), default=0)
        spans = self.spans
        while stop < len(prompt) and prompt[: stop + 1] in spans:
            stop += 1
        return stop

    def resume(self, prompt: str, traits: MemoryTraits) -> int:
        """The most tokens of a prompt that need not be computed."""
        asked = prompt[:-1]
        if not traits.has_checkpoints:
            return self.covered(asked)
        reach = self.covered(asked) if traits.has_spans else len(asked)
        tips = [len(h.text) for h in self.held.values() if asked.startswith(h.text) and len(h.text) <= len(h.path)]
        saved = [len(text) for text in self.checkpoints if asked.startswith(text) and len(text) <= reach]
        return max([0, *tips, *saved])

    def wait_stop(self, prompt: str, resume: int, ends: Iterable[int] | None) -> int | None:
        """How much a running sequence will bring, where that is more than can be resumed now; ``ends``: only there."""
        asked = prompt[:-1]
        stops: set[int] = set()
        for held in self.held.values():
            shared = num_shared(asked, held.path)
            if held.is_computing:
                stops |= {stop for stop in (ends if ends is not None else [shared]) if len(held.text) < stop <= shared}
        best = max(stops, default=0)
        return best if best > resume else None


class RecordingCache(Cache):
    """Tells the books what it evicts."""

    def __init__(self, traits: MemoryTraits, books: Books, disk: DiskTier | None, clock) -> None:
        super().__init__(
            traits,
            RamTier(RAM_BYTES),
            disk,
            fingerprint=MODEL,
            policy=Policy(traits, QUICK),
            clock=clock,
            unix_clock=lambda: NOW + clock(),
            max_nodes=40,
        )
        self.books = books
        self.evictions: list[Piece] = []
        self.evicted_from_disk: set[Stored] = set()
        if self.archive:
            self.evict_from_disk = self.archive.evict
            self.archive.evict = self.record_disk_eviction

    def evict(self, piece: Piece) -> None:
        self.check_eviction(piece)
        self.evictions.append(piece)
        name = name_of(piece.stored)
        super().evict(piece)
        self.note(piece.stored, name)

    def record_disk_eviction(self, piece: Piece) -> None:
        self.check_eviction(piece)
        name = name_of(piece.stored)
        self.books.damaged.discard(name)
        self.evicted_from_disk.add(piece.stored)
        self.evict_from_disk(piece)
        self.note(piece.stored, name)

    def check_eviction(self, piece: Piece) -> None:
        stored = piece.stored
        assert stored.in_ram if piece.tier == "ram" else stored.on_disk
        assert not stored.is_leased
        if stored.key.kind == "span":
            # A branch is evicted from its end.
            behind = [child.span for node in stored.nodes for child in node.children.values()]
            if not self.traits.has_spans:
                behind += [node.checkpoint for node in stored.nodes]
            for other in behind:
                assert other in (None, stored) or not (other.in_ram if piece.tier == "ram" else other.on_disk)

    def note(self, stored: Stored, name: Name) -> None:
        if not stored.nodes:
            self.books.kept.discard(name)
        else:
            assert stored.in_ram or stored.on_disk


class CacheMachine(RuleBasedStateMachine):
    traits: ClassVar[MemoryTraits]
    disk_capacities: ClassVar[list[int]] = []
    """Without any, there is no disk."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.books = Books()
        self.branches: dict[SeqId, Branch] = {}
        self.leased: list[Node] = []
        self.cell_numbers = count()
        self.prompts = ["a"]
        self.exits = ExitStack()

    @initialize(capacity=picks, requests=requests)
    def open(self, capacity: int, requests: list[Request]) -> None:
        if self.disk_capacities:
            self.folder = self.exits.enter_context(memory_folder())
            self.capacity = self.disk_capacities[capacity % len(self.disk_capacities)]
        self.start_process()
        # Something must be there before anything can happen to it.
        for request in requests:
            self.serve(*request)

    def start_process(self) -> None:
        disk = None
        if self.disk_capacities:
            self.store = DiskStore(self.folder, clock=lambda: NOW + self.now)
            self.on_disk_at_start = self.store.records(MODEL)
            disk = DiskTier(self.store, MODEL, capacity_bytes=self.capacity, write_bytes_per_hour=None)
        self.cache = RecordingCache(self.traits, self.books, disk, lambda: self.now)

    # Prompts: grown from earlier ones

    def prompt(self, pick: int, kept: int, more: str) -> str:
        """An earlier prompt, appended to or forked."""
        base = self.prompts[pick % len(self.prompts)]
        prompt = base[: kept % (len(base) + 1)] + more
        self.prompts = [*self.prompts[-11:], prompt]
        return prompt

    @rule(pick=picks, kept=picks, more=letters, cuts=cuts)
    def insert(self, pick: int, kept: int, more: str, cuts: tuple[int, ...]) -> None:
        prompt = self.prompt(pick, kept, more)
        match = self.cache.look_up(tokens(prompt))
        node = self.cache.insert(tokens(prompt), dict.fromkeys(cuts, "user"), match)
        assert prefix(node) == prompt

    @rule(pick=picks, kept=picks, more=letters)
    def plan(self, pick: int, kept: int, more: str) -> None:
        self.planned_and_fetched(self.prompt(pick, kept, more))

    # Branches: as the engine opens, moves and closes them

    @precondition(lambda self: len(self.branches) < NUM_SEQS)
    @rule(pick=picks, kept=picks, more=letters, cuts=cuts, take_over=st.booleans())
    def start(self, pick: int, kept: int, more: str, cuts: tuple[int, ...], take_over: bool) -> None:
        self.started(self.prompt(pick, kept, more), cuts, take_over)

    @rule(request=request)
    def serve_one_more(self, request: Request) -> None:
        self.serve(*request)

    def serve(self, pick: int, kept: int, more: str, cuts: tuple[int, ...], is_released: bool) -> None:
        """A whole request, as the engine would run it; saved at once, it may leave the cells."""
        if len(self.branches) == NUM_SEQS:
            self.close(self.branches[min(self.branches)])
        seq = self.started(self.prompt(pick, kept, more), cuts, take_over=True)
        branch, held = self.branches[seq], self.books.held[seq]
        for stop in (*sorted(node.stop for node in branch.node.path()), len(held.path) + pick % 4):
            if stop > len(held.text):
                self.grow(branch, held, stop - len(held.text))
                if self.traits.has_checkpoints and stop <= len(held.path):
                    self.save_tip(branch)
        self.parked(branch, held)
        if is_released:
            self.save_whole(branch)
            self.close(branch)

    def started(self, prompt: str, cuts: tuple[int, ...], take_over: bool) -> SeqId:
        node = self.cache.insert(tokens(prompt), cuts)
        with self.cache.lease(node):
            plan = self.planned_and_fetched(prompt)
            assert self.cache.plan_to(node).resume == plan.resume
        fork = plan.fork
        if take_over and fork and not fork.branch.is_running and fork.stop == fork.branch.length == plan.resume:
            self.cache.reopen(fork.branch, node)
            held = self.books.held[fork.branch.seq]
            held.path, held.is_running = prompt, True
            return fork.branch.seq
        seq = SeqId(next(seq for seq in range(NUM_SEQS) if SeqId(seq) not in self.branches))
        self.branches[seq] = self.cache.open(seq, node, plan.resume, fork)
        shared = self.books.held[fork.branch.seq].cells[: fork.stop] if fork else []
        own = [next(self.cell_numbers) for _ in range(plan.resume - len(shared))]
        self.books.held[seq] = Held(prompt, prompt[: plan.resume], shared + own)
        return seq

    @precondition(lambda self: self.running())
    @rule(pick=picks, num_tokens=st.integers(1, 12))
    def compute(self, pick: int, num_tokens: int) -> None:
        self.grow(*self.chosen(self.running(), pick), num_tokens)

    def grow(self, branch: Branch, held: Held, num_tokens: int) -> None:
        """Compute more of the prompt, or of the reply where it is there."""
        more = held.path[len(held.text) :][:num_tokens] or "b" * num_tokens
        branch.length += len(more)
        held.text += more
        held.cells += [next(self.cell_numbers) for _ in more]

    @precondition(lambda self: self.running())
    @rule(pick=picks)
    def park(self, pick: int) -> None:
        self.parked(*self.chosen(self.running(), pick))

    def parked(self, branch: Branch, held: Held) -> None:
        if not held.text:
            self.close(branch)
            return
        if len(held.text) > len(held.path):
            self.cache.extend(branch, tokens(held.text))
            self.prompts.append(held.text)
        self.cache.park(branch)
        held.path, held.is_running = held.text, False

    @precondition(lambda self: self.branches)
    @rule(pick=picks)
    def drop(self, pick: int) -> None:
        self.close(self.chosen([*self.branches], pick)[0])

    def close(self, branch: Branch) -> None:
        self.cache.close(branch)
        self.cache.forget_path(branch.node)
        del self.branches[branch.seq], self.books.held[branch.seq]

    # Saved state

    @precondition(lambda self: self.traits.has_spans and self.branches)
    @rule(pick=picks, which=picks)
    def save_span(self, pick: int, which: int) -> None:
        branch, _ = self.chosen([*self.branches], pick)
        if nodes := self.cache.unsaved(branch):
            node = nodes[which % len(nodes)]
            self.save(node, Name("span", node.start, prefix(node)))

    @precondition(lambda self: self.traits.has_checkpoints and self.branches)
    @rule(pick=picks)
    def save_checkpoint(self, pick: int) -> None:
        self.save_tip(self.chosen([*self.branches], pick)[0])

    @precondition(lambda self: self.branches)
    @rule(pick=picks)
    def save_all(self, pick: int) -> None:
        self.save_whole(self.chosen([*self.branches], pick)[0])

    def save_whole(self, branch: Branch) -> None:
        for node in self.cache.unsaved(branch):
            self.save(node, Name("span", node.start, prefix(node)))
        if self.cache.lacks_checkpoint(branch):
            self.save_tip(branch)

    def save_tip(self, branch: Branch) -> None:
        """The summary state where the branch stands, if a node ends there."""
        for node in branch.node.path():
            if node.stop == branch.length and node.checkpoint is None:
                self.save(node, Name("checkpoint", 0, prefix(node)))

    def save(self, node: Node, name: Name) -> None:
        room = RAM_BYTES - self.cache.tier.used_bytes
        self.cache.evictions.clear()
        is_quarantined = any(prefix(step) in self.books.quarantined for step in node.path())
        if self.cache.store(node, name.kind, name.blob):
            assert not is_quarantined
            self.books.kept.add(name)
        else:
            assert not self.cache.evictions
            assert is_quarantined or name.blob.num_bytes > room

    @rule(tier=st.sampled_from(["ram", "disk"]), num_bytes=st.integers(1, 400))
    def evict(self, tier: TierName, num_bytes: int) -> None:
        let_go = self.cache.evict
        if tier == "disk":
            if self.cache.archive is None:
                return
            let_go = self.cache.archive.evict
        for piece in Appraisal(self.cache.policy, self.cache.tree.nodes(), self.now).victims(tier, num_bytes):
            stored = piece.stored
            # Evicting one may have written, and so evicted, others.
            if stored.in_ram if tier == "ram" else stored.on_disk:
                let_go(piece)

    @precondition(lambda self: self.stored())
    @rule(pick=picks, is_noticed=st.booleans())
    def lose(self, pick: int, is_noticed: bool) -> None:
        """A blob turns out not to be loadable, or RAM has lost it."""
        stored = self.stored()[pick % len(self.stored())]
        if is_noticed:
            self.forget(stored)
        elif stored.in_ram:
            self.cache.tier.drop(stored.key)
            self.fetch(stored)

    @precondition(lambda self: not self.books.quarantined)
    @rule(pick=picks)
    def quarantine(self, pick: int) -> None:
        nodes = sorted(self.cache.tree.nodes(), key=prefix)
        # Not the root of nearly everything.
        deep = [node for node in nodes if node.start > 2]
        if not deep:
            return
        node = deep[pick % len(deep)]
        below = [other for other in nodes if prefix(other).startswith(prefix(node))]
        gone = {name_of(stored) for stored in self.stored() if not {*below}.isdisjoint(stored.nodes)}
        self.books.quarantined |= {prefix(other) for other in below}
        self.books.has_holes = True
        self.books.kept -= gone
        self.books.damaged -= gone
        branches = self.cache.quarantine(node, 1.0, 0.1)
        assert {branch.seq for branch in branches} == {
            seq for seq, held in self.books.held.items() if not held.is_running and held.path.startswith(prefix(node))
        }
        for branch in branches:
            self.close(branch)

    def forget(self, stored: Stored) -> None:
        name = name_of(stored)
        self.books.has_holes = True
        self.cache.forget(stored)
        self.books.kept.discard(name)
        self.books.damaged.discard(name)

    # Leases and time

    @rule(pick=picks, kept=picks, more=letters)
    def lease(self, pick: int, kept: int, more: str) -> None:
        if len(self.leased) > 1:
            node = self.leased.pop(pick % len(self.leased))
            self.books.leases.remove(prefix(node))
            self.cache.unpin(node)
            self.cache.forget_path(node)
            return
        prompt = self.prompt(pick, kept, more)
        node = self.cache.insert(tokens(prompt), ())
        self.cache.pin(node)
        self.leased.append(node)
        self.books.leases.append(prompt)

    @rule(seconds=st.sampled_from([1.0, 100.0, 5000.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    # What must hold

    @invariant()
    def the_cache_is_sound(self) -> None:
        self.cache.check()

    @invariant()
    def every_plan_is_the_best(self) -> None:
        for prompt in (*self.prompts[-4:], *(held.text + "ab" for held in self.books.held.values())):
            self.check_plan(prompt)

    @invariant()
    def saved_state_is_what_was_saved(self) -> None:
        assert {name_of(stored) for stored in self.stored()} == self.books.kept
        for stored in self.stored():
            blob = self.cache.tier.get(stored.key)
            assert stored.in_ram == (blob is not None)
            assert blob is None or blob.data.tobytes() == name_of(stored).content

    @invariant()
    def nodes_know_who_lives_on_them_and_leases_them(self) -> None:
        for node in self.cache.tree.nodes():
            text = prefix(node)
            assert node.num_leases == sum(leased.startswith(text) for leased in self.books.leases)
            seqs = {branch.seq for branch in node.branches}
            assert seqs == {seq for seq, held in self.books.held.items() if held.path.startswith(text)}

    @invariant()
    def cells_are_counted_once(self) -> None:
        held = self.books.held
        assert self.cache.num_live_cells == len({cell for h in held.values() for cell in h.cells})
        num_own_cells = self.cache.num_own_cells()
        for seq, branch in self.branches.items():
            others = {cell for other, h in held.items() if other != seq for cell in h.cells}
            assert num_own_cells[branch] == len({*held[seq].cells} - others)
            assert branch.length == len(held[seq].text) == len(held[seq].cells)

    def teardown(self) -> None:
        with self.exits:
            if not hasattr(self, "cache"):
                return
            for node in self.leased:
                self.cache.unpin(node)
            for branch in self.branches.values():
                self.cache.close(branch)
            self.cache.check()
            assert all(node.num_leases == 0 and not node.branches for node in self.cache.tree.nodes())
            for stored in self.stored():
                if stored.nodes:
                    self.fetch(stored)
            self.cache.check()
            self.end()

    def end(self) -> None:
        """Close what the last process had open."""

    # Inside

    def planned_and_fetched(self, prompt: str) -> Plan:
        """A plan whose every blob was brought back: what is lost is forgotten, and it is planned again."""
        for _ in range(100):
            plan = self.check_plan(prompt)
            with ExitStack() as stack:
                if plan.match.path:
                    stack.enter_context(self.cache.lease(plan.match.path[-1]))
                stored = [load.stored for load in plan.loads] + [plan.checkpoint] * (plan.checkpoint is not None)
                if all(self.fetch(part) for part in stored if part is not None):
                    return plan
        raise AssertionError("Lost blobs come back.")

    def fetch(self, stored: Stored) -> bool:
        """Bring back a blob, and look whether it is what it should be. False: it is lost, and forgotten."""
        name = name_of(stored)
        was_in_ram = self.cache.tier.get(stored.key) is not None
        was_on_disk = stored.on_disk
        blob = self.cache.fetch(stored)
        if blob is not None:
            assert was_in_ram or (was_on_disk and name not in self.books.damaged)
            assert (blob.start, blob.stop) == (name.start, len(name.text))
            assert blob.data.tobytes() == name.content
            return True
        assert not was_in_ram and (not was_on_disk or name in self.books.damaged)
        self.books.has_holes = True
        self.cache.forget(stored)
        self.books.kept.discard(name)
        self.books.damaged.discard(name)
        return False

    def check_plan(self, prompt: str) -> Plan:
        """The cache's plan, if it is as good as can be and can be carried out."""
        plan = self.cache.plan(tokens(prompt))
        prompt = self.sound(prompt)
        assert plan.resume == self.books.resume(prompt, self.traits)
        self.check_parts(prompt, plan)
        ends = {node.stop for node in plan.match.path} if self.traits.has_checkpoints else None
        stop = self.books.wait_stop(prompt, plan.resume, ends)
        assert (plan.wait and plan.wait.stop) == stop
        if plan.wait:
            held = self.books.held[plan.wait.branch.seq]
            assert held.is_computing and not plan.wait.is_over
            assert held.path.startswith(prompt[: plan.wait.stop]) and len(held.text) < plan.wait.stop
        return plan

    def sound(self, prompt: str) -> str:
        """The prompt down to where something is quarantined on its way, and a token more, which is computed."""
        for node in self.cache.tree.match(tokens(prompt)).path:
            if prefix(node) in self.books.quarantined:
                return prompt[: node.start + 1]
        return prompt

    def check_parts(self, prompt: str, plan: Plan) -> None:
        stop = 0
        if plan.fork:
            stop = plan.fork.stop
            assert 0 < stop <= self.books.held[plan.fork.branch.seq].shared_with(prompt)
        for load in plan.loads:
            assert load.start == stop < load.stop and load.stored.start <= load.start < load.stop <= load.stored.stop
            stop = load.stop
            name = name_of(load.stored)
            assert name in self.books.kept and num_shared(name.text, prompt) >= load.stop
        if plan.checkpoint:
            assert Name("checkpoint", 0, prompt[: plan.resume]) == name_of(plan.checkpoint)
            assert stop == (plan.resume if self.traits.has_spans else 0)
        else:
            assert stop == plan.resume
            if self.traits.has_checkpoints and plan.fork:
                assert plan.fork.stop == plan.fork.branch.length and not plan.loads
        assert len({id(load.stored) for load in plan.loads}) == len(plan.loads)

    def running(self) -> list[SeqId]:
        return [seq for seq, held in self.books.held.items() if held.is_running]

    def chosen(self, seqs: list[SeqId], pick: int) -> tuple[Branch, Held]:
        seq = sorted(seqs)[pick % len(seqs)]
        return self.branches[seq], self.books.held[seq]

    def everything(self) -> list[Stored]:
        """All blobs, and the records of paths."""
        every = {s.key: s for node in self.cache.tree.nodes() for s in (node.span, node.checkpoint) if s}
        return [every[key] for key in sorted(every)]

    def stored(self) -> list[Stored]:
        """All blobs; not the records of paths, which have no state."""
        return [stored for stored in self.everything() if self.traits.has_spans or stored.key.kind == "checkpoint"]


class DiskMachine(CacheMachine):
    """With a disk, whose files are lost and damaged, and a process that ends now and then."""

    disk_capacities: ClassVar[list[int]] = [600, 1500, 1 << 20]

    @property
    def archive(self) -> Archive:
        assert self.cache.archive is not None
        return self.cache.archive

    # What the engine does

    @rule(times=st.integers(1, 4))
    def write(self, times: int) -> None:
        """The last file is there, and nobody has noted it."""
        for _ in range(times):
            self.cache.write_step()
            self.archive.disk.wait()

    @rule()
    def write_all(self) -> None:
        # More than once, since some wait for others.
        for _ in range(3 * len(self.stored()) + 20):
            if not self.cache.write_step() and not self.cache.is_writing:
                break
            self.archive.disk.wait()
        else:
            raise AssertionError("Writing has no end.")
        if self.capacity > 1 << 16:
            self.check_all_is_written()

    @rule(times=st.integers(1, 4))
    def idle(self, times: int) -> None:
        for _ in range(times):
            self.cache.flush_step()
            self.warm()

    def warm(self) -> None:
        before = [(stored, name_of(stored)) for stored in self.stored()]
        num_evicted = self.cache.num_evicted_blobs
        self.cache.warm_step()
        assert self.cache.num_evicted_blobs == num_evicted
        for stored, name in before:
            if not stored.nodes:
                assert name in self.books.damaged
                self.books.kept.discard(name)
                self.books.damaged.discard(name)

    # What goes wrong

    @precondition(lambda self: self.files())
    @rule(pick=picks, where=st.one_of(st.none(), picks))
    def break_a_file(self, pick: int, where: int | None) -> None:
        """One byte is another one, or the file is gone (None)."""
        files = self.files()
        stored, path = files[pick % len(files)]
        self.books.damaged.add(name_of(stored))
        self.books.has_holes = True
        if where is None:
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[where % len(content)] ^= 1 + where % 255
            path.write_bytes(content)

    @rule(is_all_written=st.booleans(), is_killed=st.booleans(), is_index_lost=st.booleans())
    def restart(self, is_all_written: bool, is_killed: bool, is_index_lost: bool) -> None:
        if is_all_written:
            self.write_all()
        if is_killed:
            self.archive.disk.wait()
        else:
            self.cache.finish()
        self.store.close()
        if is_index_lost:
            for path in (self.folder / "v1").glob("index.sqlite3*"):
                path.unlink()
        self.branches, self.leased = {}, []
        damaged, has_holes = self.books.damaged, self.books.has_holes
        # It is noted in the index only.
        quarantined = set[str]() if is_index_lost else self.books.quarantined
        self.books = Books(has_holes=has_holes, quarantined=quarantined)
        self.start_process()
        # What was there before the cache looked.
        self.books.kept, lost = found(self.on_disk_at_start, self.traits)
        self.books.damaged = damaged & self.books.kept
        assert not any(self.store.path(MODEL, record.key).exists() for record in lost)
        assert not any(stored.in_ram for stored in self.stored())

    # What must hold

    @invariant()
    def the_disk_keeps_to_its_size(self) -> None:
        assert sum(path.stat().st_size for path in self.folder.glob("v1/*/*/*")) <= self.capacity

    @invariant()
    def what_is_on_disk_is_there_and_nothing_else(self) -> None:
        known = {self.store.path(MODEL, stored.key): stored for stored in self.everything() if stored.on_disk}
        files = {path for path in self.folder.glob("v1/*/*/*") if path.is_file()}
        assert files <= known.keys() or self.archive.is_busy
        for path in known.keys() - files:
            assert name_of(known[path]) in self.books.damaged

    @invariant()
    def what_is_on_disk_hangs_together(self) -> None:
        if self.books.has_holes:
            return
        for stored in self.everything():
            if stored.on_disk and (stored.key.kind == "span" or not self.traits.has_spans):
                assert all(node.span and node.span.on_disk for node in stored.nodes[-1].path())

    def end(self) -> None:
        self.cache.finish()
        self.store.close()

    # Inside

    def check_all_is_written(self) -> None:
        """Where the disk has room, all is there whose path is there; what had to leave it comes again with RAM's."""
        for stored in self.stored():
            path = [*stored.nodes[-1].path()][len(stored.nodes) * (stored.key.kind == "span") :]
            can_be = not self.traits.has_spans or all(node.span and node.span.on_disk for node in path)
            assert stored.on_disk or not can_be or stored in self.cache.evicted_from_disk

    def files(self) -> list[tuple[Stored, Path]]:
        """Sound files of blobs that the cache knows to be on disk."""
        pairs = [(stored, self.store.path(MODEL, stored.key)) for stored in self.stored() if stored.on_disk]
        return [(stored, path) for stored, path in pairs if name_of(stored) not in self.books.damaged]


def found(records: list[Record], traits: MemoryTraits) -> tuple[set[Name], list[Record]]:
    """The blobs that hang together from the root, and the records that do not."""
    texts = {identity(""): ""}
    names: set[Name] = set()
    lost: list[Record] = []
    for record in sorted(records, key=lambda record: record.origin):
        above = texts.get(record.parent)
        if above is None:
            lost.append(record)
            continue
        text = above + bytes(np.frombuffer(record.tokens, TOKEN).astype(np.uint8)).decode()
        assert identity(text) == record.key.prefix
        texts |= {identity(text[:stop]): text[:stop] for stop in range(len(above), len(text) + 1)}
        if traits.has_spans or record.key.kind == "checkpoint":
            names.add(Name(record.key.kind, record.key.start, text))
    return names, lost


def identity(text: str) -> bytes:
    return Tree(MODEL).insert(tokens(text), (), 0.0).id


ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


def run_machine(machine: type[CacheMachine], traits: MemoryTraits, num_examples: int, num_steps: int) -> None:
    run_state_machine_as_test(
        type("Machine", (machine,), {"traits": traits}),
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@ALL_KINDS
def test_the_cache_does_what_a_plain_model_of_it_does(traits: MemoryTraits):
    run_machine(CacheMachine, traits, num_examples=20, num_steps=30)


@ALL_KINDS
def test_with_a_disk_too_it_does_what_a_plain_model_of_it_does(traits: MemoryTraits):
    run_machine(DiskMachine, traits, num_examples=25, num_steps=40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@ALL_KINDS
def test_the_cache_does_what_a_plain_model_of_it_does_for_long(traits: MemoryTraits):
    run_machine(CacheMachine, traits, num_examples=400, num_steps=80)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@ALL_KINDS
def test_with_a_disk_too_it_does_what_a_plain_model_of_it_does_for_long(traits: MemoryTraits):
    run_machine(DiskMachine, traits, num_examples=400, num_steps=80)
