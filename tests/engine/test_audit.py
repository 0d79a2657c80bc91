"""Reused state is computed again while idle, and what is wrong is never used again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.engine.harness import Harness, words

from kvstet.cache.tier import BlobKey
from kvstet.cache.tree import Node
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import Blob, MemoryTraits

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
WITH_SPANS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID], ids=lambda t: t.kind)


class AuditedHarness(Harness):
    """Audits every token that is reused; collects what the operator is told."""

    def __init__(self, traits: MemoryTraits, *, share: float = 10.0, **options: Any) -> None:
        super().__init__(traits, audit_share=share, **options)
        self.told: list[str] = []
        self.engine.auditor._on_bad = self.told.append

    def idle(self) -> None:
        while self.engine.idle_step() is not None:
            self.cache.check()

    def run_unchecked(self) -> None:
        """Run where a reply may be wrong."""
        while not self.engine.is_idle:
            self.step()

    def release_all(self) -> None:
        for branch in self.engine.live.parked:
            self.engine.live.release(branch)

    def poison(self, choose: Callable[[Node], bool]) -> None:
        """Replace saved state by that of other tokens, as a bug would; every checksum still fits."""
        for node in self.cache.tree.nodes():
            stored = node.span
            if stored is not None and choose(node):
                blob = self.tier.get(stored.key)
                assert blob is not None
                wrong = (blob.data.view(np.int32) ^ 1).view(np.uint8)
                self.tier.put(BlobKey(*stored.key), Blob(blob.start, blob.stop, wrong))


@ALL_KINDS
def test_right_state_passes(traits: MemoryTraits):
    h = AuditedHarness(traits)
    first = h.ask("a", words(100), cuts=(40, 80))
    h.release_all()
    h.ask("b", first + words(30, 1), cuts=(40, 80, 100))
    h.ask("c", first + words(20, 2), cuts=(40, 80, 100))
    h.idle()
    auditor = h.engine.auditor
    assert auditor.num_audits >= 2 and auditor.num_failures == 0 and h.told == []
    assert h.cache.num_quarantined_nodes == 0


@WITH_SPANS
def test_wrong_state_is_found_and_never_used_again(traits: MemoryTraits):
    h = AuditedHarness(traits)
    first = h.ask("a", words(100), cuts=(40, 80))
    h.release_all()
    h.poison(lambda node: node.stop == 80)
    h.submit("b", first + words(30, 1), cuts=(40, 80, 100))
    h.run_unchecked()
    assert h.engine.auditor.num_failures == 0
    h.idle()
    assert h.engine.auditor.num_failures == 1 and len(h.told) == 1
    # What is in front of it stays, and all behind it is gone: live, saved, and for good.
    assert "state of 80 tokens" in h.told[0]
    del h.prompts["b"]
    h.ask("c", first + words(30, 1), cuts=(40, 80, 100))
    assert 0 < h.reuse("c").num_cached_tokens <= 40
    h.idle()
    h.release_all()
    h.ask("d", first + words(30, 1), cuts=(40, 80, 100))
    assert h.reuse("d").num_cached_tokens <= 40


def test_a_request_ends_an_audit_and_finds_everything_as_it_was():
    h = AuditedHarness(ATTENTION)
    first = h.ask("a", words(900))
    h.ask("b", first + words(30, 1))
    while h.engine.live.idle_step():
        continue
    num_cells = h.model.num_used_cells
    for _ in range(3):
        assert h.engine.idle_step() == 0.0
    assert h.model.num_used_cells > num_cells
    h.submit("c", first + words(10, 2))
    assert h.model.num_used_cells == num_cells
    h.run()


def test_audits_wait_until_nobody_has_asked_for_a_while():
    h = AuditedHarness(ATTENTION, audit_delay_seconds=2.0)

    def pauses() -> list[float | None]:
        """Of idle steps, until the engine wants to be left alone for a time."""
        found = [h.engine.idle_step()]
        while found[-1] == 0.0:
            found.append(h.engine.idle_step())
        return found

    first = h.ask("a", words(100))
    assert pauses()[-1] is None, "nothing was reused"
    h.ask("b", first + words(30, 1))
    assert pauses()[-1] == pytest.approx(2.0, abs=0.1)
    h.now += 1.5
    assert pauses() == [pytest.approx(0.5, abs=0.1)]
    h.ask("c", first + words(20, 2))
    num_decoded = h.model.num_decoded_tokens
    h.now += 1.0
    assert pauses()[-1] == pytest.approx(2.0, abs=0.1), "since the last request was over"
    assert h.model.num_decoded_tokens == num_decoded
    h.now += 2.0
    assert pauses()[-1] is None
    assert h.engine.auditor.num_audits > 0


def test_audits_cost_no_more_than_their_share():
    h = AuditedHarness(ATTENTION, share=0.1)
    prompt = words(400)
    for i in range(20):
        h.ask(f"{i}", prompt + words(5, i))
    num_decoded = h.model.num_decoded_tokens
    h.idle()
    num_reused = sum(h.reuse(f"{i}").num_cached_tokens for i in range(20))
    assert h.engine.auditor.num_audits > 0
    # The noise floor is measured once, beside the audits themselves.
    assert h.model.num_decoded_tokens - num_decoded <= 0.1 * num_reused + 2 * 768 + 32


def test_an_audit_lets_go_of_nothing_that_is_not_saved():
    h = AuditedHarness(ATTENTION, num_cells=420, max_length=420, ram_bytes=0)
    first = h.ask("a", words(300))
    h.ask("b", first + words(20, 1))
    h.idle()
    assert h.engine.auditor.num_audits == 0


def test_a_share_of_nothing_audits_nothing():
    h = AuditedHarness(ATTENTION, share=0.0)
    first = h.ask("a", words(100))
    h.ask("b", first)
    num_decoded = h.model.num_decoded_tokens
    h.idle()
    assert h.model.num_decoded_tokens == num_decoded
