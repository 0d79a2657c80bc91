"""Divergences, cold runs in steps, the noise floor, and what counts as noise (`kvstet.engine.exactness`)."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from tests.engine.broken import Noisy

from kvstet.engine.exactness import (
    Comparison,
    NoiseFloor,
    Rows,
    TailRun,
    agreement,
    allowed,
    divergence,
    noise_floor,
    run_beside_another,
    run_cold,
    run_in_small_steps,
)
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA, FakeModel
from kvstet.errors import MemoryMisuse, OutOfCells
from kvstet.types import MemoryTraits, SeqId, Tokens

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
FLOOR = NoiseFloor(mean=1e-3, p99=1e-2, max=3e-2, num_positions=128)


def words(num_tokens: int, seed: int = 0) -> Tokens:
    return np.random.default_rng(seed).integers(0, 64, num_tokens).astype(np.int32)


def rows(*values: list[float]) -> np.ndarray:
    return np.array(values, np.float32)


def comparison(mean: float, num_positions: int) -> Comparison:
    return Comparison(mean, mean, mean, num_positions, agreement=1.0)


def test_the_divergence_is_the_sum_it_is_defined_as():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = float((p * np.log(p / q)).sum())
    found = divergence(np.log(p)[None].astype(np.float32) + 3, np.log(q)[None].astype(np.float32) - 5)
    assert found.dtype == np.float64 and found.shape == (1,)
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_logits_that_differ_by_a_constant_say_the_same():
    logits = np.random.default_rng(1).standard_normal((5, 1000)).astype(np.float32) * 10
    assert divergence(logits, logits).max() == 0
    assert divergence(logits, logits + np.float32(4)).min() >= 0 and divergence(logits, logits + 4).max() < 1e-11


def test_large_logits_do_not_overflow():
    assert divergence(rows([3e38, 0]), rows([3e38, 1])).tolist() == [0]
    assert divergence(rows([1e4, 0]), rows([0, 1e4]))[0] == pytest.approx(1e4)


@pytest.mark.parametrize("broken", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]], ids=str)
def test_a_row_that_is_no_distribution_is_infinitely_far(broken: list[float]):
    assert divergence(rows(broken), rows([0, 0])).tolist() == [np.inf]
    assert divergence(rows([0, 0]), rows(broken)).tolist() == [np.inf]
    assert not Comparison.of(rows(broken), rows(broken)).is_noise(FLOOR)


def test_tokens_that_are_ruled_out_count_where_the_other_allows_them():
    ruled_out = rows([0, -np.inf])
    assert divergence(ruled_out, ruled_out).tolist() == [0]
    assert divergence(ruled_out, rows([0, 0]))[0] == pytest.approx(np.log(2))
    assert divergence(rows([0, 0]), ruled_out).tolist() == [np.inf]


def test_agreement_is_of_the_likeliest_token():
    assert agreement(rows([1, 2], [2, 1]), rows([1, 5], [1, 2])).tolist() == [True, False]


@ALL_KINDS
@pytest.mark.parametrize("steps", [[512], [1], [7, 1, 30], [32]], ids=str)
def test_a_run_in_any_steps_gives_the_last_rows(traits: MemoryTraits, steps: list[int]):
    model, tokens = FakeModel(traits), words(100)
    run = TailRun(model, SeqId(3), tokens, 20)
    num_steps = 0
    while run.step(steps[num_steps % len(steps)]):
        num_steps += 1
        assert run.num_left == 100 - model.length(SeqId(3))
    expected = [model.expected_logits(tokens[:stop].tolist()) for stop in range(81, 101)]
    assert run.rows.dtype == np.float32
    np.testing.assert_array_equal(run.rows, expected)
    assert not run.step(10) and model.num_decoded_tokens == 100


def test_a_run_goes_on_from_what_the_sequence_holds_and_between_others():
    model, tokens = FakeModel(ATTENTION), words(50)
    begun = TailRun(model, SeqId(0), tokens[:30], 0)
    while begun.step(8):
        TailRun(model, SeqId(1), words(2 + model.length(SeqId(1)), 9), 1).finish(8)
    warm = TailRun(model, SeqId(0), tokens, 20)
    assert warm.num_left == 20
    np.testing.assert_array_equal(warm.finish(6), run_cold(FakeModel(ATTENTION), tokens, 20))


def test_a_step_is_no_larger_than_the_model_takes():
    model = FakeModel(ATTENTION, max_batch=16)
    assert TailRun(model, SeqId(0), words(40), 1).step(1000)
    assert model.length(SeqId(0)) == 16


def test_positions_that_the_sequence_holds_already_cannot_be_compared():
    model, tokens = FakeModel(ATTENTION), words(40)
    run = TailRun(model, SeqId(0), tokens, 1)
    run.step(30)
    with pytest.raises(MemoryMisuse):
        TailRun(model, SeqId(0), tokens, 11)


def test_a_run_waits_where_the_cells_are_full():
    model, tokens = FakeModel(ATTENTION, num_cells=40), words(30)
    other = TailRun(model, SeqId(1), words(30, 1), 1)
    other.finish(30)
    run = TailRun(model, SeqId(0), tokens, 5)
    run.step(10)
    with pytest.raises(OutOfCells):
        run.step(10)
    model.remove(SeqId(1))
    np.testing.assert_array_equal(run.finish(10), run_cold(FakeModel(ATTENTION), tokens, 5))


@ALL_KINDS
def test_a_model_without_noise_has_no_floor(traits: MemoryTraits):
    model = FakeModel(traits)
    floor = noise_floor(model, [words(50), words(300, 1)], 20)
    assert floor == NoiseFloor(0, 0, 0, 40)
    assert [model.length(SeqId(seq)) for seq in range(8)] == [0] * 8


def test_noise_of_batches_is_in_the_floor():
    floor = noise_floor(Noisy(HYBRID), [words(200)], 64)
    assert 1e-4 < floor.mean < floor.p99 <= floor.max < 1e-1
    assert floor.num_positions == 64


@pytest.mark.parametrize("run", [run_in_small_steps, run_beside_another])
def test_each_of_the_other_runs_is_in_other_batches_and_reads_the_same(run: Callable[..., Rows]):
    tokens = words(200)
    np.testing.assert_array_equal(run(FakeModel(SWA), tokens, 64), run_cold(FakeModel(SWA), tokens, 64))
    assert divergence(run_cold(Noisy(SWA), tokens, 64), run(Noisy(SWA), tokens, 64)).min() > 1e-4


def test_a_floor_survives_json():
    text = json.dumps(FLOOR.to_json())
    assert NoiseFloor.from_json(json.loads(text)) == FLOOR
    with pytest.raises(msgspec.ValidationError):
        NoiseFloor.from_json({"mean": 1})
    with pytest.raises(msgspec.ValidationError):
        NoiseFloor.from_json([])


def test_a_few_times_the_floor_is_noise_and_much_more_is_not():
    assert comparison(3e-3, 64).is_noise(FLOOR)
    assert not comparison(1e-2, 64).is_noise(FLOOR)


def test_one_outlier_is_noise_among_many_positions_and_few():
    for num_positions in (1, 8, 64):
        mean = FLOOR.mean + FLOOR.max / num_positions
        assert comparison(mean, num_positions).is_noise(FLOOR)
    assert allowed(FLOOR, 64) < allowed(FLOOR, 8) < allowed(FLOOR, 1)


def test_what_no_one_could_notice_is_noise_on_a_model_that_has_none():
    floor = NoiseFloor(0, 0, 0, 100)
    assert comparison(1e-10, 16).is_noise(floor)
    assert not comparison(1e-8, 16).is_noise(floor)


def test_a_divergence_or_a_floor_that_is_no_number_proves_nothing():
    assert not comparison(float("inf"), 16).is_noise(FLOOR)
    assert not comparison(float("nan"), 16).is_noise(FLOOR)
    assert not comparison(0, 16).is_noise(NoiseFloor(float("nan"), 0, 0, 1))
