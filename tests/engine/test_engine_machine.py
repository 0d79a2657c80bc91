"""The whole engine under random sessions, for every kind of memory, with little room for anything."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from tests.cache.shelf import memory_folder
from tests.engine.harness import Harness, words

from kvstet.cache.plan import Plan
from kvstet.cache.tree import Branch, Node
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.job import Job
from kvstet.engine.messages import Failed, Finished, Progress, Started, Token
from kvstet.engine.model import Batch
from kvstet.errors import QueueFull
from kvstet.types import MemoryTraits, RequestId

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
WITH_CHECKPOINTS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
VOCABULARY = 64
END = 7
MAX_STEPS = 5_000


@dataclass(frozen=True)
class Conversation:
    """Tokens, and where its messages end."""

    tokens: tuple[int, ...]
    cuts: tuple[int, ...] = ()

    def upto(self, stop: int) -> Conversation:
        return Conversation(self.tokens[:stop], tuple(cut for cut in self.cuts if cut <= stop))

    def add(self, tokens: list[int]) -> Conversation:
        return Conversation((*self.tokens, *tokens), (*self.cuts, len(self.tokens) + len(tokens)))


class CheckedEngine(Harness):
    """Checks every batch and every admission from outside, by what the model holds."""

    def __init__(self, traits: MemoryTraits, **options) -> None:
        self.conversations: dict[str, Conversation] = {}
        self.may_fail: dict[str, bool] = {}
        self._numbers = count()
        super().__init__(traits, **options)

    def start_process(self) -> None:
        super().start_process()
        self.engine.live.take = self._checked_take(self.engine)
        self.engine.admission.plan = self._checked_plan(self.engine)
        self._is_cold = False
        self.model.decode = self._checked_decode(self.engine)

    def restart(self, *, is_killed: bool = False) -> None:
        """Clients keep what was said; nobody is told how the requests in flight ended."""
        for name in self.prompts:
            self.conversations[name] = self.replied(name)
        self.prompts, self.events, self.may_fail = {}, {}, {}
        super().restart(is_killed=is_killed)

    def ask_for(
        self, conversation: Conversation, *, new: int, deadline: float | None = None, cache_prompt: bool = True
    ) -> None:
        name = f"r{next(self._numbers)}"
        self.conversations[name] = conversation
        num_tokens = len(conversation.tokens) + new
        self.may_fail[name] = num_tokens > min(self.model.num_cells, self.model.max_length) or deadline is not None
        self.submit(
            name,
            [*conversation.tokens],
            cuts=conversation.cuts,
            new=new,
            deadline_seconds=deadline,
            cache_prompt=cache_prompt,
        )

    def lives(self) -> list[str]:
        """Requests that have not ended, as far as events tell."""
        return [name for name in self.prompts if not self.ending(name)]

    def ending(self, name: str) -> Finished | Failed | None:
        events = self.events.get(name, [])
        return events[-1] if events and isinstance(events[-1], Finished | Failed) else None

    def replied(self, name: str) -> Conversation:
        """The conversation with what has come of its reply."""
        reply = self.reply(name) if name in self.events else []
        return self.conversations[name].add(reply) if reply else self.conversations[name]

    def files(self) -> list[Path]:
        """All blobs on disk."""
        folder = self.options.cache_folder
        return sorted(path for path in folder.glob("v1/*/*/*") if path.is_file()) if folder else []

    def check(self) -> None:
        self.cache.check()
        assert sum(path.stat().st_size for path in self.files()) <= self.options.cache_disk_bytes
        assert self.model.num_used_cells == self.cache.num_live_cells
        assert {b.seq: b.length for b in self.cache.branches if b.length} == {
            seq: self.model.length(seq) for seq in range(self.model.num_sequences) if self.model.length(seq)
        }
        for branch in self.cache.branches:
            path = path_tokens(branch.node)[: branch.length]
            assert self.model.tokens(branch.seq)[: len(path)] == path

    def check_events(self, name: str) -> None:
        """Started once, then tokens, then one ending; what is said of the prompt adds up."""
        events = self.events[name]
        kinds = [type(event) for event in events if not isinstance(event, Progress)]
        ending = self.ending(name)
        assert ending and sum(isinstance(event, Finished | Failed) for event in events) == 1
        num_replied = len(self.reply(name))
        assert kinds in ([type(ending)], [Started, *[Token] * num_replied, type(ending)])
        if Started in kinds:
            reuse = self.reuse(name)
            assert reuse.num_prompt_tokens == len(self.prompts[name])
            assert reuse.num_computed_tokens > 0 and reuse.num_cached_tokens <= reuse.num_known_tokens
        if isinstance(ending, Finished):
            assert ending.num_new_tokens == num_replied
        else:
            assert self.may_fail[name] or isinstance(ending.error, QueueFull), ending

    def _checked_take(self, engine: Engine):
        take = engine.live.take

        def checked(plan: Plan, node: Node) -> Branch:
            prompt = path_tokens(node)
            assert self._is_cold or plan.resume >= self._num_live(prompt)
            branch = take(plan, node)
            assert self.model.tokens(branch.seq) == prompt[: plan.resume]
            assert branch.is_running and branch.node is node
            return branch

        return checked

    def _checked_plan(self, engine: Engine):
        plan = engine.admission.plan

        def checked(job: Job, node: Node) -> Plan:
            self._is_cold = not job.request.cache_prompt
            made = plan(job, node)
            assert not self._is_cold or (made.resume, made.wait) == (0, None)
            return made

        return checked

    def _num_live(self, prompt: list[int]) -> int:
        """How much of a prompt can be had from what the model holds."""
        most = 0
        for branch in self.cache.branches:
            held = self.model.tokens(branch.seq)[: branch.node.stop]
            pairs = zip(held, prompt[:-1], strict=False)
            shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(held), len(prompt) - 1))
            if not self.model.traits.has_checkpoints or shared == branch.length:
                most = max(most, shared)
        return most

    def _checked_decode(self, engine: Engine):
        decode = self.model.decode

        def checked(batch: Batch) -> None:
            assert 0 < len(batch.tokens) <= self.model.max_batch
            groups = batch.seqs[np.flatnonzero(np.diff(batch.seqs, prepend=-1))]
            assert len(set(groups.tolist())) == len(groups)
            counts = np.unique_counts(batch.seqs)
            # A prompt may have one token left, and only replies and last prompt tokens give output.
            num_prompt_tokens = sum(number for number in counts.counts.tolist() if number > 1)
            assert num_prompt_tokens <= self.options.prefill_chunk or self.engine.is_idle
            generating = {branch.seq for branch in self.cache.branches if branch.is_running} - {
                branch.seq for branch in self.cache.branches if branch.is_computing_prompt
            }
            assert generating <= set(groups.tolist())
            decode(batch)

        return checked


def path_tokens(node: Node) -> list[int]:
    return [token for step in reversed([*node.path()]) for token in step.tokens.tolist()]


rooms = st.fixed_dictionaries(
    {
        "num_cells": st.sampled_from([60, 150, 400]),
        "ram_bytes": st.sampled_from([0, 150, 600, 1 << 20]),
        "parallel": st.integers(1, 4),
        "num_sequences": st.integers(1, 6),
        "prefill_chunk": st.sampled_from([5, 20, 64]),
        "max_batch": st.sampled_from([3, 16, 64]),
        "queue_size": st.sampled_from([2, 8]),
        "anticipate_share": st.sampled_from([0.0, 10.0]),
    }
)
disks = st.fixed_dictionaries(
    {
        "disk_bytes": st.sampled_from([800, 4000, 1 << 20]),
        "audit_share": st.sampled_from([0.0, 1.0]),
    }
)
picks = st.integers(0, 1 << 16)
sizes = st.integers(1, 45)
replies = st.integers(0, 25)


class EngineMachine(RuleBasedStateMachine):
    traits: ClassVar[MemoryTraits]

    def __init__(self) -> None:
        super().__init__()
        self.exits = ExitStack()

    @initialize(room=rooms)
    def start(self, room: dict[str, int]) -> None:
        self.open(room)

    def open(self, room: dict[str, int], **disk) -> None:
        self.seed = 0
        self.h = CheckedEngine(
            self.traits, max_length=room["num_cells"], vocab_size=VOCABULARY, end_token=END, **room, **disk
        )

    # What clients do

    @rule(size=sizes, new=replies)
    def ask_something_else(self, size: int, new: int) -> None:
        self.h.ask_for(Conversation(()).add(self.words(size)), new=new)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, size=sizes, new=replies)
    def append(self, pick: int, size: int, new: int) -> None:
        self.h.ask_for(self.talk(pick).add(self.words(size)), new=new)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, new=replies, cache_prompt=st.booleans())
    def repeat(self, pick: int, new: int, cache_prompt: bool) -> None:
        name = self.picked([*self.h.conversations], pick)
        self.h.ask_for(self.h.conversations[name], new=new, cache_prompt=cache_prompt)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, where=picks, new=replies)
    def rewind(self, pick: int, where: int, new: int) -> None:
        talk = self.talk(pick)
        self.h.ask_for(talk.upto(1 + where % len(talk.tokens)), new=new)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, where=picks, size=sizes, new=replies)
    def fork_at_a_message_end(self, pick: int, where: int, size: int, new: int) -> None:
        talk = self.talk(pick)
        ends = (0, *talk.cuts)
        self.h.ask_for(talk.upto(ends[where % len(ends)]).add(self.words(size)), new=new)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, where=picks, new=replies)
    def edit_one_word(self, pick: int, where: int, new: int) -> None:
        talk = self.talk(pick)
        tokens = [*talk.tokens]
        tokens[where % len(tokens)] ^= 1
        self.h.ask_for(Conversation(tuple(tokens), talk.cuts), new=new)

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, size=sizes, times=st.integers(2, 4), new=replies)
    def ask_the_same_at_once(self, pick: int, size: int, times: int, new: int) -> None:
        talk = self.talk(pick).add(self.words(size))
        for i in range(times):
            self.h.ask_for(talk.add([i]), new=new)

    @rule(size=sizes, seconds=st.sampled_from([0.01, 0.1]))
    def ask_in_a_hurry(self, size: int, seconds: float) -> None:
        self.h.ask_for(Conversation(()).add(self.words(size)), new=20, deadline=seconds)

    @precondition(lambda self: self.h.lives())
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        self.h.engine.cancel(RequestId(self.picked(self.h.lives(), pick)))

    @precondition(lambda self: self.h.conversations)
    @rule(pick=picks, where=picks, size=sizes)
    def expect_something(self, pick: int, where: int, size: int) -> None:
        """Right or wrong: what comes of it is up to the other rules."""
        talk = self.talk(pick)
        guess = talk.upto(1 + where % len(talk.tokens)).add(self.words(size))
        self.h.anticipate([*guess.tokens], cuts=guess.cuts)

    @precondition(lambda self: self.h.conversations and self.h.engine.is_idle)
    @rule(pick=picks, size=sizes)
    def ask_only_what_it_would_cost(self, pick: int, size: int) -> None:
        talk = self.talk(pick).add(self.words(size))
        if len(talk.tokens) <= self.h.model.max_length:
            self.h.appraise([*talk.tokens])

    # What the machine does

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.h.step()

    @rule()
    def finish_all(self) -> None:
        self.run_to_the_end()

    @rule(times=st.integers(1, 6))
    def idle(self, times: int) -> None:
        for _ in range(times):
            self.idle_step()

    def idle_step(self) -> None:
        if self.h.engine.is_idle:
            self.h.engine.idle_step()
        self.h.wait_for_disk()

    @precondition(lambda self: self.h.tier.keys)
    @rule(pick=picks, is_torn=st.booleans())
    def damage_a_blob(self, pick: int, is_torn: bool) -> None:
        key = self.picked(self.h.tier.keys, pick)
        (self.h.tier.tear if is_torn else self.h.tier.lose)(key)

    @rule(seconds=st.sampled_from([0.05, 1000.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.h.now += seconds

    # What must hold

    @invariant()
    def books_and_model_agree(self) -> None:
        self.h.check()

    def teardown(self) -> None:
        with self.exits:
            if hasattr(self, "h"):
                self.end()

    def end(self) -> None:
        self.run_to_the_end()
        self.h.idle()
        self.h.check()
        cache, model = self.h.cache, self.h.model
        assert all(node.num_leases == 0 for node in cache.tree.nodes())
        assert not any(branch.is_running for branch in cache.branches)
        assert self.h.engine.live.num_parked == len(cache.branches)
        assert len(self.h.engine.live._free) + len(cache.branches) == model.num_sequences
        for name in self.h.prompts:
            self.h.check_events(name)
        self.check_work()
        self.h.end_process()

    def check_work(self) -> None:
        """Nothing is decoded that was not said to be."""
        h = self.h
        if h.options.audit_share:
            return
        reuses = [event.reuse for events in h.events.values() for event in events if isinstance(event, Started)]
        num_replied = sum(len(h.reply(name)) for name in h.prompts)
        stats = h.engine.stats()
        num_decoded = h.model.num_decoded_tokens - stats.num_predicted_tokens
        assert stats.num_computed_tokens + stats.num_generated_tokens >= num_decoded
        assert stats.num_generated_tokens >= num_replied
        if stats.num_preemptions == 0:
            assert num_decoded <= sum(reuse.num_computed_tokens for reuse in reuses) + num_replied

    # Inside

    def run_to_the_end(self) -> None:
        for _ in range(MAX_STEPS):
            if self.h.engine.is_idle:
                break
            self.h.step()
        assert self.h.engine.is_idle
        assert not self.h.lives()
        for name in self.h.prompts:
            self.h.check_reply(name)

    def words(self, size: int) -> list[int]:
        self.seed += 1
        return words(size, self.seed)

    def talk(self, pick: int) -> Conversation:
        return self.h.replied(self.picked([*self.h.conversations], pick))

    @staticmethod
    def picked(names: list, pick: int):
        return names[pick % len(names)]


class DiskMachine(EngineMachine):
    """With a disk, whose files are lost and damaged, a process that ends now and then, and audits."""

    @initialize(room=rooms, disk=disks)
    def start(self, room: dict[str, int], disk: dict[str, float]) -> None:
        self.folder = self.exits.enter_context(memory_folder())
        self.open(room, folder=self.folder, **disk)

    def idle_step(self) -> None:
        # Audits have the model to themselves.
        if self.h.engine.is_idle:
            super().idle_step()
            self.h.engine.auditor.give_way()

    @rule()
    def idle_for_long(self) -> None:
        self.run_to_the_end()
        self.h.idle()
        self.h.engine.auditor.give_way()

    @precondition(lambda self: self.h.files())
    @rule(pick=picks)
    def lose_a_file(self, pick: int) -> None:
        self.picked(self.h.files(), pick).unlink()

    @precondition(lambda self: self.h.files())
    @rule(pick=picks, where=picks)
    def damage_a_file(self, pick: int, where: int) -> None:
        path = self.picked(self.h.files(), pick)
        if content := bytearray(path.read_bytes()):
            content[where % len(content)] ^= 1 + where % 255
            path.write_bytes(content)

    @precondition(lambda self: self.h.files())
    @rule(pick=picks, where=picks)
    def cut_off_a_file(self, pick: int, where: int) -> None:
        path = self.picked(self.h.files(), pick)
        content = path.read_bytes()
        path.write_bytes(content[: where % (len(content) or 1)])

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        for name in self.h.prompts:
            self.h.check_reply(name)
        self.h.restart(is_killed=is_killed)

    @rule()
    def lose_the_index(self) -> None:
        for path in (self.folder / "v1").glob("index.sqlite3*"):
            path.unlink()

    def end(self) -> None:
        super().end()
        assert self.h.engine.auditor.num_failures == 0


def run(machine: type[EngineMachine], traits: MemoryTraits, num_examples: int, num_steps: int) -> None:
    run_machine(
        type("Machine", (machine,), {"traits": traits}),
        settings=settings(
            max_examples=num_examples,
            stateful_step_count=num_steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@ALL_KINDS
def test_random_sessions_are_answered_as_cold_runs_are(traits: MemoryTraits):
    run(EngineMachine, traits, num_examples=40, num_steps=25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@ALL_KINDS
def test_random_sessions_are_answered_as_cold_runs_are_for_long(traits: MemoryTraits):
    run(EngineMachine, traits, num_examples=500, num_steps=50)


@ALL_KINDS
def test_with_a_disk_too_random_sessions_are_answered_as_cold_runs_are(traits: MemoryTraits):
    run(DiskMachine, traits, num_examples=30, num_steps=25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@ALL_KINDS
def test_with_a_disk_too_random_sessions_are_answered_as_cold_runs_are_for_long(traits: MemoryTraits):
    run(DiskMachine, traits, num_examples=500, num_steps=50)


# Sessions that were found to go wrong


@ALL_KINDS
def test_nobody_waits_for_a_request_that_was_cancelled_before_its_first_token(traits: MemoryTraits):
    h = Harness(traits)
    h.submit("busy", words(300, 1))
    h.submit("never begun", words(300, 2))
    h.submit("waits", words(310, 2))
    h.step()
    h.engine.cancel(RequestId("never begun"))
    h.run()
    assert len(h.reply("waits")) == 4


@WITH_CHECKPOINTS
def test_a_running_prompt_keeps_the_cells_that_it_was_admitted_for(traits: MemoryTraits):
    # The second request used to be set back and admitted again for ever, in cells that the first one needed.
    h = Harness(traits, num_cells=920, max_length=920)
    h.submit("long", words(900, 1), cuts=tuple(range(60, 900, 60)))
    h.submit("short", words(30, 2), new=100)
    h.run()
    assert len(h.reply("long")) == 4 and len(h.reply("short")) == 100


def test_a_request_that_must_wait_for_room_does_not_cost_others_their_live_state():
    h = Harness(num_cells=600, max_length=600, ram_bytes=0)
    session = h.ask("session", words(150, 1))
    h.submit("running", words(100, 2), new=100)
    h.step()
    # Not even with the session's cells is there room for this one beside the running request.
    h.submit("big", words(560, 3))
    h.step()
    assert h.engine.live.num_parked == 1
    h.engine.cancel(RequestId("big"))
    h.ask("session again", session + words(10, 4))
    assert h.reuse("session again").num_reused_tokens == len(session) - 1


@pytest.mark.parametrize("is_torn", [False, True])
@ALL_KINDS
def test_damaged_state_is_computed_again(traits: MemoryTraits, is_torn: bool):
    h = Harness(traits, num_cells=400, max_length=400)
    first = h.ask("a", words(200), cuts=(50, 100))
    h.idle()
    h.ask("other", words(350, 9))
    assert h.tier.keys
    for key in h.tier.keys:
        (h.tier.tear if is_torn else h.tier.lose)(key)
    h.ask("b", first + words(10, 1))
    assert h.reuse("b").num_computed_tokens == len(first) + 10
    assert h.reuse("b").num_known_tokens == len(first) - 1
    h.idle()
    h.ask("c", first + words(10, 1))
    assert h.reuse("c").num_computed_tokens == 1


def test_one_lost_blob_costs_only_what_is_behind_it():
    h = Harness(num_cells=400, max_length=400)
    first = h.ask("a", words(200), cuts=(50, 100))
    h.idle()
    h.ask("other", words(350, 9))
    spans = {node.stop: node.span for node in h.cache.tree.nodes() if node.span and node.stop <= 200}
    span = spans[100]
    assert span
    h.tier.lose(span.key)
    h.ask("b", first + words(10, 1))
    assert h.reuse("b").num_loaded_tokens == 50


def test_room_is_made_by_others_than_the_branch_that_is_forked():
    h = Harness(num_cells=500, max_length=500)
    first = h.ask("saved, so the first to go", words(150, 1))
    h.idle()
    h.ask("not saved yet", words(150, 2))
    h.ask("big", first + words(200, 3))
    assert h.reuse("big").num_reused_tokens == len(first) - 1


@ALL_KINDS
def test_the_oldest_request_goes_on_when_the_cells_run_out(traits: MemoryTraits):
    h = Harness(traits, num_cells=500, max_length=500)
    for name, seed in (("older", 1), ("younger", 2)):
        h.submit(name, words(200, seed), new=150)
    while "older" not in h.events or not isinstance(h.last("older"), Finished):
        h.step()
    assert not isinstance(h.last("younger"), Finished)
    assert h.engine.stats().num_preemptions > 0
    h.run()
    assert len(h.reply("younger")) == 150
