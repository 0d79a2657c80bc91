"""Prompts through a real engine and cache, each compared with a cold run (`kvstet.engine.replay`)."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.broken import Noisy, OffByOne

from kvstet.engine.exactness import NoiseFloor
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA, FakeModel
from kvstet.engine.model import Batch
from kvstet.engine.replay import RecordingModel, Replay, Replayed
from kvstet.errors import ContextOverflow
from kvstet.types import MemoryTraits, Tokens

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
NO_NOISE = NoiseFloor(0, 0, 0, 1)


def words(num_tokens: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(0, 64, num_tokens).astype(np.int32)


def replayed(model: FakeModel, floor: NoiseFloor = NO_NOISE) -> list[Replayed]:
    """A conversation that grows by messages of 50 tokens, with another one in between, and an edit at the end."""
    replay = Replay(model, floor, ram_bytes=1 << 20, num_tail=8)
    first, second = words(500), np.concatenate([words(100), words(300, 1)])
    cuts = tuple(range(50, 500, 50))
    prompts = [first[:stop] for stop in range(150, 500, 50)]
    prompts[3:3] = [second[:200], second[:300]]
    edited = np.concatenate([first[:200], words(100, 2)])
    return [replay.ask(prompt, tuple(cut for cut in cuts if cut < len(prompt))) for prompt in [*prompts, edited]]


@ALL_KINDS
def test_what_was_live_and_what_came_back_gives_a_cold_run(traits: MemoryTraits):
    model = FakeModel(traits)
    found = replayed(model)
    assert all(one.is_noise for one in found)
    for one in found:
        np.testing.assert_array_equal(one.warm, one.cold)
        assert 0 < len(one.warm) <= 8
    assert any(one.reuse.num_reused_tokens for one in found) and any(one.reuse.num_loaded_tokens for one in found)


@pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID], ids=lambda t: t.kind)
def test_wrong_state_is_outside_exactly_where_it_was_loaded(traits: MemoryTraits):
    found = replayed(OffByOne(traits))
    has_loaded = [one.reuse.num_loaded_tokens > 0 for one in found]
    # Branches that were loaded are forked later on, and are no better then.
    assert not any(one.is_noise for one, is_loaded in zip(found, has_loaded, strict=True) if is_loaded)
    assert found[0].is_noise and True in has_loaded


def test_noise_beyond_a_floor_that_was_measured_elsewhere_is_known_for_noise():
    assert all(one.is_noise for one in replayed(Noisy(ATTENTION)))


def test_a_prompt_that_does_not_fit_is_refused():
    replay = Replay(FakeModel(ATTENTION, max_length=100), NO_NOISE, ram_bytes=1 << 20, num_tail=8)
    with pytest.raises(ContextOverflow):
        replay.ask(words(101), ())
    assert replay.ask(words(90), ()).is_noise


def test_cells_that_hold_one_prompt_are_enough():
    replay = Replay(FakeModel(ATTENTION, num_cells=256), NO_NOISE, ram_bytes=1 << 20, num_tail=8)
    assert all(replay.ask(words(stop), ()).is_noise for stop in (200, 210, 220))


def test_recording_changes_no_row_that_was_asked_for():
    model = RecordingModel(FakeModel(ATTENTION), num_tail=3)
    tokens = words(10)
    model.record(10)
    outputs = np.zeros(10, np.bool_)
    outputs[[2, 9]] = True
    model.decode(Batch(tokens, np.zeros(10, np.int32), outputs))
    expected = [FakeModel(ATTENTION).expected_logits(tokens[:stop].tolist()) for stop in (3, 10)]
    np.testing.assert_array_equal([model.logits(0), model.logits(1)], expected)
    assert len(model.recorded()) == 3
