"""Drift is measured: on a model on which it is known, and on one that computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.contexts import opened
from tests.engine.harness import words
from tests.llama.test_shift import forgetful
from tests.toys import gain, toy_path

from kvstet.config import ModelOptions
from kvstet.engine.drift import BEFORE, GRAFTED, STEM, Bench, Control, Drift, Edit, EditDrift, Measured
from kvstet.engine.fake import FakeModel
from kvstet.engine.gate import DriftGate, judge, shut
from kvstet.engine.probes import CHOICE, Probe, Scores, answer, ask
from kvstet.llama.context import Context
from kvstet.types import Tokens

HEAD, GONE, TAIL, END = words(150, 1), words(70, 2), words(220, 3), words(32, 4)
REPAIRS = (0, 64, 128, 512)


def tokens_of(*pieces: list[int]) -> Tokens:
    return np.array([token for piece in pieces for token in piece], np.int32)


def an_edit(**changes: object) -> Edit:
    edit = Edit("remove", "a removal", tokens_of(HEAD, GONE, TAIL), tokens_of(HEAD, TAIL, GONE[:5]), tokens_of(END))
    return replace(edit, **changes)


OPTIONS = ModelOptions(
    Path(),
    ctx_size=1024,
    live_cells=2560,
    parallel=2,
    cache_type_k="f32",
    cache_type_v="f32",
    flash_attn="off",
    threads=1,
)


@pytest.fixture
def toy() -> Iterator[Context]:
    with opened(toy_path("llama-dense", strength=gain), OPTIONS) as context:
        yield context


@pytest.fixture
def forgetful_toy() -> Iterator[Context]:
    """Its state does not depend on what stands before: moving it changes nothing."""
    with opened(toy_path("llama-dense", strength=forgetful), OPTIONS) as context:
        yield context


def test_drift_falls_with_repair_and_is_less_than_the_edit(toy: Context):
    measured = Bench(toy).measure(an_edit(), REPAIRS)
    drifts = [Drift.of(one.measured) for one in measured.grafts]
    assert [one.num_repaired_tokens for one in measured.grafts] == list(REPAIRS)
    assert [one.graft.num_computed_tokens for one in measured.grafts] == [5, 69, 133, 225]
    assert drifts[-1].mean < 1e-6 < drifts[2].mean < drifts[0].mean < Drift.of(measured.nothing).mean
    assert drifts[-1].agreement == 1.0
    assert abs(drifts[-1].nll_change) < 1e-3


def test_state_that_depends_on_nothing_before_it_does_not_drift(forgetful_toy: Context):
    measured = Bench(forgetful_toy).measure(an_edit(), REPAIRS)
    assert max(Drift.of(one.measured).max for one in measured.grafts) < 1e-6 < Drift.of(measured.nothing).mean


def test_a_whole_repair_is_a_cold_run_but_for_noise(toy: Context):
    control = Bench(toy).control(an_edit())
    assert Drift.of(control.repaired).max < 1e-6
    assert Drift.of(control.noise).max < 1e-6


def test_the_bench_is_the_same_for_edits_in_any_order(toy: Context):
    edits = [
        an_edit(),
        an_edit(before=tokens_of(HEAD, TAIL), after=tokens_of(HEAD, GONE, TAIL)),
        an_edit(before=tokens_of(GONE, TAIL), after=tokens_of(TAIL)),
    ]
    bench = Bench(toy)
    first = [bench.measure(edit, (0,)) for edit in edits]
    again = [bench.measure(edit, (0,)) for edit in reversed(edits)][::-1]
    for one, other in zip(first, again, strict=True):
        assert np.allclose(one.grafts[0].measured.divergences, other.grafts[0].measured.divergences, atol=1e-5)
        assert np.allclose(one.nothing.divergences, other.nothing.divergences, atol=1e-5)
    bench.close()
    assert [toy.length(seq) for seq in (BEFORE, STEM, GRAFTED)] == [0, 0, 0]


def test_the_surprise_is_that_of_the_token_that_follows():
    cold = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], np.float32))
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.25, 0.25, 0.5]], np.float32))
    measured = Measured.of(cold, other, np.array([0, 2], np.int32))
    assert np.allclose(measured.surprises, [np.log(2), -np.log(2)])
    assert measured.agreements.tolist() == [False, False]
    assert np.allclose(measured.divergences, [np.log(2) / 4, np.log(2) / 4])


# The gate


def measured_of(mean: float, agreement: float) -> Measured:
    agreements = np.arange(100) < round(100 * agreement)
    return Measured(np.full(100, mean), agreements, np.zeros(100))


def drifts_of(kind: str, mean: float, agreement: float, *, nothing: float = 0.1, num: int = 3) -> list[EditDrift]:
    edit = an_edit(kind=kind)
    measured = measured_of(mean, agreement)
    model = FakeModel(num_cells=8192)
    grafts = Bench(model).measure(edit, (0, 256)).grafts
    return [EditDrift(edit, measured_of(nothing, 0.9), tuple(replace(one, measured=measured) for one in grafts))] * num


SOUND = Control(measured_of(0.001, 1.0), measured_of(0.001, 1.0))


def test_the_gate_opens_for_the_kinds_that_have_passed():
    drifts = [*drifts_of("remove", 0.01, 0.98), *drifts_of("insert", 0.01, 0.9), *drifts_of("prune", 0.06, 0.98)]
    gate = judge(drifts, [SOUND], [])
    assert [kind for kind in gate.kinds if gate.is_open(kind)] == ["remove"]
    assert gate.kinds["insert"].reason == "same top token at 90.0%, not 96%"
    assert "50% of what ignoring the edit costs" in gate.kinds["prune"].reason
    assert gate.kinds["replace"].reason == "no such edit was measured"
    assert DriftGate.from_json(gate.to_json()) == gate


def test_edits_that_change_nothing_beyond_noise_prove_nothing():
    quiet = judge(drifts_of("remove", 0.0012, 0.99, nothing=0.0013), [SOUND], [])
    assert "even ignoring these edits lies within the noise" in quiet.kinds["remove"].reason
    assert not quiet.is_open("remove")


def test_drift_is_held_against_what_the_edit_costs_beyond_noise():
    assert judge(drifts_of("remove", 0.0039, 0.99, nothing=0.005), [SOUND], []).is_open("remove")  # within the noise
    assert judge(drifts_of("remove", 0.05, 0.99, nothing=0.1), [SOUND], []).is_open("remove")
    assert not judge(drifts_of("remove", 0.02, 0.99, nothing=0.03), [SOUND], []).is_open("remove")


def test_few_edits_prove_nothing():
    assert judge(drifts_of("remove", 0.01, 1.0, num=2), [SOUND], []).kinds["remove"].reason == "fewer than 3 edits"


def test_what_fails_in_general_shuts_every_kind():
    drifts = drifts_of("remove", 0.01, 1.0)
    astray = Control(measured_of(0.001, 1.0), measured_of(0.01, 1.0))
    assert "does not lead back" in judge(drifts, [astray], []).kinds["remove"].reason
    assert judge(drifts, [SOUND], ["kept (a code)"]).kinds["remove"].reason == "probes failed: kept (a code)"


def test_a_drift_that_is_no_number_shuts_the_gate():
    assert not judge(drifts_of("remove", float("inf"), 1.0), [SOUND], []).is_open("remove")


def test_a_gate_of_another_version_is_none():
    assert DriftGate.from_json("{}") is None
    assert DriftGate.from_json("no json") is None
    assert not any(shut("it cannot").is_open(kind) for kind in ("prune", "insert"))


# Probes


@pytest.mark.parametrize(
    ("kind", "cold", "before", "grafted", "expected"),
    [
        ("deleted", -1.0, 2.0, -0.9, "passed"),
        ("deleted", -1.0, 2.0, 0.1, "failed"),  # it is the likeliest still
        ("deleted", -4.0, 2.0, -0.5, "failed"),  # more than half of what it knew
        ("deleted", -1.0, -0.5, -1.0, "cannot tell"),
        ("kept", 1.0, 1.0, 0.5, "passed"),
        ("kept", 1.0, 1.0, -0.5, "failed"),
        ("kept", -1.0, 1.0, -0.5, "cannot tell"),
        ("next call", 0.2, 0.0, 0.1, "passed"),
        ("next call", 0.2, 0.0, -0.1, "failed"),
    ],
)
def test_answers_are_read_from_margins(kind: str, cold: float, before: float, grafted: float, expected: str):
    scores = Scores(*((-5.0 + margin, -5.0, -7.0) for margin in (cold, before, grafted)))
    assert answer(kind, scores, 0) == expected


def test_a_probe_asks_all_three(toy: Context):
    edit = an_edit(continuation=tokens_of(END[:6]))
    candidates = tokens_of(END[6:9]), tokens_of(END[9:12])
    bench = Bench(toy)
    probed = ask(toy, bench, Probe("kept", edit, candidates, 0), seam=32)
    assert probed.scores.cold != probed.scores.grafted != probed.scores.before
    assert all(score < 0 for score in probed.scores.cold)
    whole = ask(toy, bench, Probe("kept", edit, candidates, 0), seam=10_000)
    assert np.allclose(whole.scores.cold, whole.scores.grafted, atol=1e-4)
    assert np.allclose(whole.scores.cold, probed.scores.cold, atol=1e-4)
    bench.close()
    assert toy.length(CHOICE) == 0
