"""Behind a small edit, state is kept under moved positions, and repaired while nobody asks."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.harness import Harness, words

from kvstet.engine import approximation, detour
from kvstet.engine.approximation import MAX_STRAYS
from kvstet.engine.detour import MAX_EDITS, MIN_GAIN_TOKENS
from kvstet.engine.drift import EDIT_KINDS
from kvstet.engine.fake import HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.gate import DriftGate, KindVerdict
from kvstet.engine.messages import Started
from kvstet.types import MemoryTraits, RequestId

SEAM = 64
APPROXIMATE = "approximate"
OTHER_KINDS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)

HEAD, GONE, TAIL, NEW = words(300, 1), words(200, 2), words(2000, 3), words(30, 4)
BEFORE = HEAD + GONE + TAIL
AFTER = HEAD + TAIL + NEW


def gate(*kinds: str) -> DriftGate:
    return DriftGate(SEAM, {kind: KindVerdict(kind in kinds, "measured", 20, 300, None, None) for kind in EDIT_KINDS})


class ApproximateHarness(Harness):
    """What is answered approximately differs from a cold run, and is not compared with one."""

    def __init__(self, *kinds: str, **options) -> None:
        options = {"num_cells": 1 << 14, "max_length": 1 << 13, "ram_bytes": 1 << 24, **options}
        super().__init__(gate=gate(*(kinds or EDIT_KINDS)), **options)

    def ask_roughly(self, name: str, tokens: list[int], **more) -> list[int]:
        self.submit(name, tokens, fidelity=APPROXIMATE, **more)
        expected = self.prompts.pop(name)
        self.run()
        assert self.engine.is_idle
        assert expected.tolist() == tokens
        return tokens + self.reply(name)

    def started(self, name: str) -> Started:
        return next(event for event in self.events[name] if isinstance(event, Started))

    def is_exact(self, name: str, tokens: list[int]) -> bool:
        """Whether the reply is a cold run's."""
        said = list(tokens)
        for token in self.reply(name):
            if token != int(self.model.expected_logits(said).argmax()):
                return False
            said.append(token)
        return True

    def num_decoded_for(self, name: str, tokens: list[int], **more) -> int:
        before = self.model.num_decoded_tokens
        self.ask_roughly(name, tokens, new=1, **more)
        return self.model.num_decoded_tokens - before


def test_the_tail_behind_an_edit_is_moved():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    assert h.num_decoded_for("b", AFTER) <= SEAM + len(NEW) + 16
    reuse = h.reuse("b")
    assert reuse.num_reused_tokens == len(HEAD)
    assert reuse.num_shifted_tokens >= len(TAIL) - SEAM - 16
    assert reuse.num_prompt_tokens == len(AFTER)
    assert not h.is_exact("b", AFTER)


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("remove", HEAD + TAIL + NEW),
        ("insert", HEAD + GONE[:100] + NEW + GONE[100:] + TAIL),
        ("prune", HEAD + words(12, 9) + TAIL + NEW),
        ("replace", HEAD + words(150, 9) + TAIL + NEW),
    ],
)
def test_only_edits_that_have_passed_are_approximated(kind: str, after: list[int]):
    for kinds, is_moved in (((kind,), True), (tuple(set(EDIT_KINDS) - {kind}), False)):
        h = ApproximateHarness(*kinds)
        h.ask("a", BEFORE)
        h.ask_roughly("b", after)
        assert bool(h.reuse("b").num_shifted_tokens) == is_moved
        assert h.is_exact("b", after) == (not is_moved)
        expected = None if is_moved else f"{kind} edits have not passed `kvstet verify --fidelity approximate`"
        assert h.started("b").exact_because == expected


def test_nobody_gets_it_who_has_not_asked_for_it():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    h.ask("b", AFTER)
    assert h.reuse("b").num_shifted_tokens == 0


def test_without_a_measurement_everything_is_exact():
    h = ApproximateHarness()
    h.gate = None
    h.start_process()
    h.ask("a", BEFORE)
    h.ask_roughly("b", AFTER)
    assert h.is_exact("b", AFTER)
    assert h.started("b").exact_because == "`kvstet verify --fidelity approximate` has not been run for this model"


@OTHER_KINDS
def test_other_memories_refuse_with_the_reason(traits: MemoryTraits):
    h = ApproximateHarness(traits=traits)
    h.ask("a", BEFORE, cuts=(300, 500))
    h.ask_roughly("b", AFTER, cuts=(300,))
    assert h.is_exact("b", AFTER)
    assert h.started("b").exact_because == h.model.shift_refusal


def test_what_spares_little_is_exact_and_nothing_is_said_of_it():
    h = ApproximateHarness()
    h.ask("a", HEAD + GONE + TAIL[: MIN_GAIN_TOKENS - 60])
    after = HEAD + TAIL[: MIN_GAIN_TOKENS - 60] + NEW
    h.ask_roughly("b", after)
    assert h.is_exact("b", after)
    assert h.started("b").exact_because is None


def test_nothing_approximate_enters_the_tree():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    # Someone else who asks for the very same gets it exactly.
    h.ask("c", AFTER)
    assert h.reuse("c").num_shifted_tokens == 0
    assert h.reuse("c").num_cached_tokens <= len(HEAD) + SEAM + 16
    h.ask("d", grown + words(5, 7))


def test_the_conversation_goes_on_from_the_stray():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    then = grown + words(20, 8)
    assert h.num_decoded_for("c", then) <= 22
    reuse = h.reuse("c")
    assert reuse.num_computed_tokens <= 22
    assert reuse.num_shifted_tokens > len(TAIL) - SEAM
    assert reuse.num_prompt_tokens == len(then)


def test_two_can_go_on_from_one_stray():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    for number in range(2):
        assert h.num_decoded_for(f"c{number}", grown[:-1] + words(20, 20 + number)) <= 24


def test_while_nobody_asks_it_is_repaired():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    assert len(h.engine.approximator.strays) == 1
    h.idle()
    assert h.engine.anticipator.num_repaired_tokens > len(TAIL) - SEAM - 16
    assert h.engine.approximator.strays == []
    then = grown + words(20, 8)
    h.ask_roughly("c", then)
    assert h.reuse("c").num_shifted_tokens == 0
    assert h.reuse("c").num_computed_tokens <= 22
    assert h.is_exact("c", then)


def test_a_repair_that_was_interrupted_goes_on():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    while h.engine.anticipator.num_repaired_tokens < 512:
        h.engine.idle_step()
        h.cache.check()
    grown = h.ask_roughly("c", grown + words(20, 8))
    assert h.reuse("c").num_shifted_tokens > 0
    h.idle()
    assert h.engine.approximator.strays == []
    h.ask("d", grown + words(5, 9))
    assert h.reuse("d").num_computed_tokens <= 8


def test_several_edits_at_once_are_moved_piece_by_piece():
    parts = [words(600, 30 + number) for number in range(4)]
    h = ApproximateHarness()
    gap = words(100, 50)
    h.ask("a", HEAD + [token for part in parts for token in [*gap, *part]])
    after = HEAD + [token for part in parts for token in [*words(10, 60), *part]] + NEW
    num_decoded = h.num_decoded_for("b", after)
    assert num_decoded <= SEAM + len(NEW) + 4 * 10 + 64
    assert h.reuse("b").num_computed_tokens == num_decoded


def test_too_many_edits_at_once_are_computed():
    parts = [words(300, 30 + number) for number in range(MAX_EDITS + 1)]
    h = ApproximateHarness()
    gap = words(100, 50)
    h.ask("a", HEAD + [token for part in parts for token in [*gap, *part]])
    after = HEAD + [token for part in parts for token in [*words(10, 60), *part]] + NEW
    h.ask_roughly("b", after)
    assert h.is_exact("b", after)
    assert "edits at once" in (h.started("b").exact_because or "")


def test_saved_state_is_moved_too():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    for branch in h.engine.live.parked:
        h.engine.live.release(branch)
    assert h.num_decoded_for("b", AFTER) <= SEAM + len(NEW) + 16
    assert h.reuse("b").num_loaded_tokens == len(HEAD)


def test_strays_make_room_for_requests():
    h = ApproximateHarness(num_cells=5200, max_length=5200)
    h.ask("a", BEFORE)
    grown = h.ask_roughly("b", AFTER)
    assert len(h.engine.approximator.strays) == 1
    h.ask("c", words(2500, 70))
    assert h.engine.approximator.strays == []
    # What is lost is computed.
    h.ask_roughly("d", grown + words(5, 9))
    assert h.reuse("d").num_prompt_tokens == len(grown) + 5


def test_only_so_many_strays_are_kept():
    h = ApproximateHarness(num_cells=1 << 15)
    h.ask("a", BEFORE)
    for number in range(MAX_STRAYS + 2):
        h.ask_roughly(f"b{number}", HEAD + words(12, 100 + number) + TAIL + NEW)
    assert len(h.engine.approximator.strays) <= MAX_STRAYS


def test_a_cancelled_request_leaves_everything_in_order():
    h = ApproximateHarness(prefill_chunk=16)
    h.ask("a", BEFORE)
    for num_steps in range(1, 9):
        name = f"b{num_steps}"
        h.submit(name, HEAD + words(12, num_steps) + TAIL + NEW, fidelity=APPROXIMATE)
        h.prompts.pop(name)
        for _ in range(num_steps):
            h.step()
        h.engine.cancel(name)
        h.step()
    h.idle()
    h.ask("c", AFTER)


def test_the_appraisal_tells_it_before():
    h = ApproximateHarness()
    h.ask("a", BEFORE)
    exact, rough = h.appraise(AFTER), h.appraise(AFTER, fidelity=APPROXIMATE)
    assert exact.reuse.num_shifted_tokens == 0
    assert rough.compute_seconds < exact.compute_seconds
    grown = h.ask_roughly("b", AFTER)
    assert rough.reuse == h.reuse("b")
    then = grown + words(5, 9)
    rough = h.appraise(then, fidelity=APPROXIMATE)
    h.ask_roughly("c", then)
    assert rough.reuse == h.reuse("c")


@pytest.mark.parametrize("seed", range(8))
def test_random_sessions_keep_their_books_and_exact_requests_are_exact(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Edits, side requests, cancellations, pauses and too little room, in any order."""
    monkeypatch.setattr(detour, "MIN_GAIN_TOKENS", 64)
    monkeypatch.setattr(approximation, "MIN_GAIN_TOKENS", 64)
    random = np.random.default_rng(seed)
    h = ApproximateHarness(
        num_cells=int(random.choice([1500, 2600, 8000])),
        max_length=1500,
        ram_bytes=int(random.choice([0, 4000, 1 << 24])),
        parallel=3,
        num_sequences=4,
        prefill_chunk=64,
    )
    talk = words(600, seed)
    num_shifted = 0
    for number in range(40):
        edit, name = int(random.integers(4)), f"{number}"
        at, size = int(random.integers(50, 300)), int(random.integers(1, 60))
        if edit == 0:
            talk = talk[:at] + talk[at + size :]
        elif edit == 1:
            talk = talk[:at] + words(size, 1000 + number) + talk[at:]
        elif edit == 2:
            talk = talk[:at] + words(size, 2000 + number) + talk[at + size + 5 :]
        talk = (talk + words(int(random.integers(1, 40)), 3000 + number))[:900]
        is_rough = bool(random.random() < 0.7)
        h.submit(name, talk, new=int(random.integers(1, 6)), **({"fidelity": APPROXIMATE} if is_rough else {}))
        if is_rough:
            h.prompts.pop(name)
        if random.random() < 0.3:
            h.submit(f"side {number}", words(50, 4000 + number))
        for _ in range(int(random.integers(0, 30))):
            h.step()
        if random.random() < 0.15:
            h.engine.cancel(RequestId(name))
            h.step()
        if random.random() < 0.6:
            h.run()
        if random.random() < 0.3 and h.engine.is_idle:
            for _ in range(int(random.integers(1, 12))):
                h.engine.idle_step()
                h.cache.check()
                assert h.model.num_used_cells == h.cache.num_live_cells
    h.run()
    num_shifted = h.engine.stats().num_shifted_tokens
    assert num_shifted > 0
    h.idle()
    assert h.engine.approximator.strays == []
    assert h.model.num_used_cells == h.cache.num_live_cells
