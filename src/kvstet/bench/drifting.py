"""How far moved state drifts from exact state on this model, as ``kvstet verify --fidelity approximate`` finds it."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvstet.bench.results import DriftPoint
from kvstet.errors import ServerGone


@dataclass(frozen=True, slots=True)
class Drifted:
    """What was found; no points where this model's state cannot be moved."""

    points: list[DriftPoint]
    noise_divergence: float | None
    refusal: str | None = None


class _Drift(msgspec.Struct):
    mean: float


class _CurvePoint(msgspec.Struct):
    num_repaired_tokens: int
    drift: _Drift


class _Verified(msgspec.Struct):
    """Of what the command tells, this."""

    curves: dict[str, list[_CurvePoint]]
    noise: _Drift | None = None
    refusal: str | None = None


def verification(model: Path, num_edits: int, folder: Path) -> list[str]:
    """The command. What it finds is not kept for servers: it is done with few edits."""
    kvstet = [sys.executable, "-m", "kvstet", "verify", str(model), "--fidelity", "approximate", "--json"]
    return [*kvstet, "--edits", str(num_edits), "--cache-dir", str(folder)]


async def drift_told_by(command: Sequence[str]) -> Drifted:
    """Run it to its end, or until this is cancelled. ServerGone: it does not tell."""
    leash = [sys.executable, "-m", "kvstet.bench.leash", *command]
    process = await asyncio.create_subprocess_exec(
        *leash, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        told = await process.stdout.read()
    finally:
        # Lets go of the leash, and with it of the command.
        process.stdin.close()
        await process.wait()
    try:
        return _drifted(msgspec.json.decode(told, type=_Verified))
    except msgspec.MsgspecError as error:
        raise ServerGone("kvstet verify does not tell how far moved state drifts.") from error


def _drifted(verified: _Verified) -> Drifted:
    points = [
        DriftPoint(edit=edit, num_repaired_tokens=point.num_repaired_tokens, mean_divergence=point.drift.mean)
        for edit, curve in verified.curves.items()
        for point in curve
    ]
    return Drifted(points, verified.noise and verified.noise.mean, verified.refusal)
