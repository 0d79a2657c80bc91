"""Each kind of reuse, on models that do it right and on models that do not (`kvstet.engine.reuse`)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.broken import Leaking, OffByOne, Refusing, Stale, StrangeFork

from kvstet.engine.exactness import Comparison, NoiseFloor
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA, FakeModel
from kvstet.engine.reuse import KINDS, Kind, Passage, behind_strangers, cold
from kvstet.errors import SnapshotMismatch
from kvstet.types import MemoryTraits, SeqId

ALL_TRAITS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
ALL_KINDS = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
BY_NAME = {kind.name: kind for kind in KINDS}
NO_NOISE = NoiseFloor(0, 0, 0, 1)


def passage(num_tokens: int = 120, num_tail: int = 16) -> Passage:
    tokens = np.random.default_rng(3).integers(0, 64, num_tokens).astype(np.int32)
    return Passage.of(tokens, num_tail)


def is_right(kind: Kind, model: FakeModel) -> bool:
    """Whether the reuse gives what a sound model computes."""
    expected = cold(FakeModel(model.traits), passage())
    return Comparison.of(expected, kind.run(model, passage())).is_noise(NO_NOISE)


def test_a_passage_ends_with_its_tail():
    one = passage(120, 16)
    assert one.stops == (34, 78, 104, 120)
    assert (one.stem, one.num_tail, len(one.edited)) == (104, 16, 120)
    assert (one.edited[:104] == one.tokens[:104]).all() and (one.edited[104:] != one.tokens[104:]).any()


@ALL_TRAITS
@ALL_KINDS
@pytest.mark.parametrize("num_tokens", [16, 120, 700])
def test_a_model_that_does_it_right_gives_a_cold_run(traits: MemoryTraits, kind: Kind, num_tokens: int):
    if not kind.is_possible(traits):
        assert kind.name == "delta chain" and traits.kind in ("recurrent", "opaque")
        return
    model = FakeModel(traits)
    one = passage(num_tokens, num_tokens // 3)
    np.testing.assert_array_equal(kind.run(model, one), cold(model, one))
    assert [model.length(SeqId(seq)) for seq in range(8)] == [0] * 8


@ALL_TRAITS
def test_state_of_other_tokens_is_far_from_a_cold_run(traits: MemoryTraits):
    model, one = FakeModel(traits), passage()
    assert Comparison.of(cold(model, one), behind_strangers(model, one)).mean > 0.1


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (OffByOne(ATTENTION), {"reload", "delta chain"}),
        (OffByOne(HYBRID), {"reload", "delta chain"}),
        (Stale(SWA), {"rollback", "reload", "delta chain"}),
        (Stale(HYBRID), {"rollback", "reload", "delta chain"}),
        (Stale(RECURRENT), {"rollback", "reload"}),
        (Stale(OPAQUE), {"rollback", "reload"}),
        (Leaking(ATTENTION), {"prefix"}),
        (Leaking(RECURRENT), {"prefix"}),
        (StrangeFork(ATTENTION), {"fork", "rollback"}),
        (StrangeFork(RECURRENT), {"fork"}),
    ],
    ids=lambda value: f"{type(value).__name__} {value.traits.kind}" if isinstance(value, FakeModel) else "",
)
def test_each_fault_shows_where_it_does_harm_and_nowhere_else(model: FakeModel, wrong: set[str]):
    possible = [kind for kind in KINDS if kind.is_possible(model.traits)]
    assert {kind.name for kind in possible if not is_right(kind, model)} == wrong


def test_sequences_are_emptied_where_a_snapshot_is_refused():
    model = Refusing(ATTENTION)
    with pytest.raises(SnapshotMismatch):
        BY_NAME["reload"].run(model, passage())
    assert model.num_used_cells == 0
