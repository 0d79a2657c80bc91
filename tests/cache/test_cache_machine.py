"""The cache against a plain model of it: texts that are held, and sets of prefixes whose state is saved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from tests.cache.shelf import FLAT, prefix, tokens

from kvstet.cache.cache import Cache
from kvstet.cache.plan import Plan
from kvstet.cache.policy import Piece, Policy
from kvstet.cache.tier import BlobKind, RamTier
from kvstet.cache.tree import Branch, Node, Stored
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import Blob, MemoryTraits, SeqId

RAM_BYTES = 24
CHECKPOINT_BYTES = 5
NUM_SEQS = 5

letters = st.text("ab", min_size=1, max_size=6)
cuts = st.sets(st.integers(1, 14), max_size=4).map(tuple)
picks = st.integers(0, 1 << 16)


def num_shared(*texts: str) -> int:
    """Length of the common prefix."""
    return next(
        (i for i, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1), min(map(len, texts))
    )


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
    spans: set[str] = field(default_factory=set)
    """Prefixes whose last token's additive state is saved."""
    checkpoints: set[str] = field(default_factory=set)
    leases: list[str] = field(default_factory=list)

    def covered(self, prompt: str) -> int:
        """How far additive state goes, from one live sequence and then from saved spans."""
        stop = max((held.shared_with(prompt) for held in self.held.values()), default=0)
        while stop < len(prompt) and prompt[: stop + 1] in self.spans:
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
    """Tells the machine what it evicts."""

    def __init__(self, traits: MemoryTraits, clock, books: Books) -> None:
        super().__init__(traits, RamTier(RAM_BYTES), policy=Policy(traits, FLAT), clock=clock, max_nodes=40)
        self.books = books
        self.evictions: list[Piece] = []

    def evict(self, piece: Piece) -> None:
        node = piece.node
        assert node.num_leases == 0
        if piece.kind == "span":
            # A branch is evicted from its end.
            assert not any(child.span for child in node.children.values())
        self.evictions.append(piece)
        super().evict(piece)
        if piece.kind == "span":
            self.books.spans -= texts_of(node)
        else:
            self.books.checkpoints.discard(prefix(node))


def texts_of(node: Node) -> set[str]:
    """The prefixes that end within a node."""
    text = prefix(node)
    return {text[:stop] for stop in range(node.start + 1, node.stop + 1)}


class CacheMachine(RuleBasedStateMachine):
    traits: ClassVar[MemoryTraits]

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.books = Books()
        self.cache = RecordingCache(self.traits, lambda: self.now, self.books)
        self.branches: dict[SeqId, Branch] = {}
        self.leased: list[Node] = []
        self.cell_numbers = count()
        self.prompts = ["a"]

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
        node = self.cache.insert(tokens(prompt), cuts)
        assert prefix(node) == prompt

    @rule(pick=picks, kept=picks, more=letters)
    def plan(self, pick: int, kept: int, more: str) -> None:
        self.check_plan(self.prompt(pick, kept, more))

    # Branches: as the engine opens, moves and closes them

    @precondition(lambda self: len(self.branches) < NUM_SEQS)
    @rule(pick=picks, kept=picks, more=letters, cuts=cuts, take_over=st.booleans())
    def start(self, pick: int, kept: int, more: str, cuts: tuple[int, ...], take_over: bool) -> None:
        prompt = self.prompt(pick, kept, more)
        node = self.cache.insert(tokens(prompt), cuts)
        plan = self.check_plan(prompt)
        assert self.cache.plan_to(node) == plan
        fork = plan.fork
        if take_over and fork and not fork.branch.is_running and fork.stop == fork.branch.length == plan.resume:
            self.cache.reopen(fork.branch, node)
            held = self.books.held[fork.branch.seq]
            held.path, held.is_running = prompt, True
            return
        seq = SeqId(next(seq for seq in range(NUM_SEQS) if SeqId(seq) not in self.branches))
        self.branches[seq] = self.cache.open(seq, node, plan.resume, fork)
        shared = self.books.held[fork.branch.seq].cells[: fork.stop] if fork else []
        own = [next(self.cell_numbers) for _ in range(plan.resume - len(shared))]
        self.books.held[seq] = Held(prompt, prompt[: plan.resume], shared + own)

    @precondition(lambda self: self.running())
    @rule(pick=picks, num_tokens=st.integers(1, 5))
    def compute(self, pick: int, num_tokens: int) -> None:
        branch, held = self.chosen(self.running(), pick)
        more = held.path[len(held.text) :][:num_tokens] or "a"
        branch.length += len(more)
        held.text += more
        held.cells += [next(self.cell_numbers) for _ in more]

    @precondition(lambda self: self.running())
    @rule(pick=picks)
    def park(self, pick: int) -> None:
        branch, held = self.chosen(self.running(), pick)
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
        nodes = self.cache.unsaved(branch)
        if nodes:
            node = nodes[which % len(nodes)]
            if self.store(node, "span", Blob(node.start, node.stop, np.zeros(len(node.tokens), np.uint8))):
                self.books.spans |= texts_of(node)

    @precondition(lambda self: self.traits.has_checkpoints and self.branches)
    @rule(pick=picks)
    def save_checkpoint(self, pick: int) -> None:
        branch, held = self.chosen([*self.branches], pick)
        for node in branch.node.path():
            if node.stop == branch.length and node.checkpoint is None:
                if self.store(node, "checkpoint", Blob(0, node.stop, np.zeros(CHECKPOINT_BYTES, np.uint8))):
                    self.books.checkpoints.add(held.text)
                return

    def store(self, node: Node, kind: BlobKind, blob: Blob) -> bool:
        room = RAM_BYTES - self.cache.tier.used_bytes
        self.cache.evictions.clear()
        was_kept = self.cache.store(node, kind, blob)
        if not was_kept:
            assert not self.cache.evictions
        assert was_kept or blob.num_bytes > room
        return was_kept

    @rule()
    def evict(self) -> None:
        for piece in [*self.cache.policy.victims(self.cache.tree.nodes(), 1, self.now, float("inf"))]:
            self.cache.evict(piece)

    @precondition(lambda self: self.stored())
    @rule(pick=picks)
    def lose(self, pick: int) -> None:
        """The tier lost a blob."""
        stored = self.stored()[pick % len(self.stored())]
        for node in self.cache.tree.nodes():
            if node.span is stored:
                self.books.spans -= texts_of(node)
            if node.checkpoint is stored:
                self.books.checkpoints.discard(prefix(node))
        self.cache.tier.drop(stored.key)
        self.cache.forget(stored)

    # Leases and time

    @rule(pick=picks, kept=picks, more=letters)
    def lease(self, pick: int, kept: int, more: str) -> None:
        prompt = self.prompt(pick, kept, more)
        node = self.cache.insert(tokens(prompt), ())
        self.cache.pin(node)
        self.leased.append(node)
        self.books.leases.append(prompt)

    @precondition(lambda self: self.leased)
    @rule(pick=picks)
    def unlease(self, pick: int) -> None:
        node = self.leased.pop(pick % len(self.leased))
        self.books.leases.remove(prefix(node))
        self.cache.unpin(node)
        self.cache.forget_path(node)

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
        nodes = [*self.cache.tree.nodes()]
        assert {text for node in nodes if node.span for text in texts_of(node)} == self.books.spans
        assert {prefix(node) for node in nodes if node.checkpoint} == self.books.checkpoints

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
        for seq, branch in self.branches.items():
            others = {cell for other, h in held.items() if other != seq for cell in h.cells}
            assert self.cache.num_own_cells()[branch] == len({*held[seq].cells} - others)
            assert branch.length == len(held[seq].text) == len(held[seq].cells)

    def teardown(self) -> None:
        for node in self.leased:
            self.cache.unpin(node)
        for branch in self.branches.values():
            self.cache.close(branch)
        self.cache.check()
        assert all(node.num_leases == 0 and not node.branches for node in self.cache.tree.nodes())

    # Inside

    def check_plan(self, prompt: str) -> Plan:
        """The cache's plan, if it is as good as can be and can be carried out."""
        plan = self.cache.plan(tokens(prompt))
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

    def check_parts(self, prompt: str, plan: Plan) -> None:
        stop = 0
        if plan.fork:
            stop = plan.fork.stop
            assert 0 < stop <= self.books.held[plan.fork.branch.seq].shared_with(prompt)
        for load in plan.loads:
            assert load.start == stop < load.stop and load.stored.start <= load.start < load.stop <= load.stored.stop
            stop = load.stop
            assert {prompt[:n] for n in range(load.start + 1, load.stop + 1)} <= self.books.spans
            assert self.cache.fetch(load.stored) is not None
        if plan.checkpoint:
            assert prompt[: plan.resume] in self.books.checkpoints and plan.checkpoint.stop == plan.resume
            assert self.cache.fetch(plan.checkpoint) is not None
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

    def stored(self) -> list[Stored]:
        every = {s.key: s for node in self.cache.tree.nodes() for s in (node.span, node.checkpoint) if s}
        return [every[key] for key in sorted(every)]


ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


def run_machine(traits: MemoryTraits, num_examples: int, num_steps: int) -> None:
    machine = type("Machine", (CacheMachine,), {"traits": traits})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@ALL_KINDS
def test_the_cache_does_what_a_plain_model_of_it_does(traits: MemoryTraits):
    run_machine(traits, num_examples=15, num_steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@ALL_KINDS
def test_the_cache_does_what_a_plain_model_of_it_does_for_long(traits: MemoryTraits):
    run_machine(traits, num_examples=400, num_steps=80)
