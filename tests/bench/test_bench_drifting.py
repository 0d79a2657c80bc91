"""The drift of moved state, as a command tells it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import psutil
import pytest

from kvstet.bench.benchmark import FULL, QUICK
from kvstet.bench.drifting import drift_told_by, verification
from kvstet.bench.results import DriftPoint
from kvstet.cli.bench import amount_of
from kvstet.cli.drift_report import drift_json
from kvstet.cli.drift_verification import CurvePoint, DriftVerified
from kvstet.engine.drift import Drift
from kvstet.engine.gate import shut
from kvstet.errors import ServerGone


def drift(mean: float) -> Drift:
    return Drift(mean, 2 * mean, 3 * mean, 0.97, 0.01, 128)


def told(verified: DriftVerified) -> list[str]:
    """A command that tells what `kvstet verify --json` would."""
    return [sys.executable, "-c", f"print({json.dumps(drift_json(verified))!r})"]


async def test_every_kind_of_edit_has_its_points():
    curves = {"prune": (CurvePoint(0, 1, 1, drift(0.5)), CurvePoint(64, 1, 1, drift(0.25)))}
    verified = DriftVerified("m", "d", "attention", shut("few"), noise=drift(0.125), curves=curves)
    found = await drift_told_by(told(verified))
    assert found.points == [
        DriftPoint(edit="prune", num_repaired_tokens=0, mean_divergence=0.5),
        DriftPoint(edit="prune", num_repaired_tokens=64, mean_divergence=0.25),
    ]
    assert found.noise_divergence == 0.125 and found.refusal is None


async def test_a_model_that_cannot_move_state_has_none_and_says_why():
    found = await drift_told_by(told(DriftVerified("m", "d", "recurrent", shut("no"), "it has recurrent layers")))
    assert found.points == [] and found.refusal == "it has recurrent layers"


@pytest.mark.parametrize("code", ["pass", "print('[]')", "raise SystemExit(1)"])
async def test_a_command_that_tells_nothing_is_told(code: str):
    with pytest.raises(ServerGone):
        await drift_told_by([sys.executable, "-c", code])


async def test_nothing_of_it_lives_on_when_the_bench_is_ended(tmp_path: Path):
    mark = tmp_path / "pid"
    code = f"import os, time, pathlib; pathlib.Path({str(mark)!r}).write_text(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(drift_told_by([sys.executable, "-c", code]))
    while not (mark.exists() and mark.read_text()):
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int(mark.read_text())
    for _ in range(500):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the command lives on")


def test_it_is_measured_in_full_and_where_nothing_else_was_asked_for():
    assert amount_of(FULL, None).num_drift_edits == 4
    assert amount_of(FULL, 9).effort.num_pairs == 9
    assert not amount_of(QUICK, None).num_drift_edits
    assert not amount_of(FULL, None, ["prune"]).num_drift_edits
    assert "--cache-dir" in verification(Path("m.gguf"), 4, Path("/nowhere"))
