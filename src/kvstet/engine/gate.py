"""What a model has proven of moved state: fidelity `approximate` does only what has passed, and all else exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from kvstet.engine.drift import EDIT_KINDS, Control, Drift, EditDrift, EditKind, Measured
from kvstet.engine.exactness import NoiseFloor, allowed
from kvstet.engine.graft import SEAM_TOKENS

MIN_AGREEMENT = 0.96
"""Share of positions at which the likeliest token must be a cold run's."""

MAX_SHARE_OF_EDIT = 0.5
"""Part of what ignoring the edit would cost in divergence beyond noise, that drift beyond noise may cost."""

MIN_EDITS = 3
"""Fewer of a kind prove nothing."""


@dataclass(frozen=True, slots=True)
class KindVerdict:
    """Whether edits of one kind may be approximated."""

    is_open: bool
    reason: str
    num_edits: int
    max_computed_tokens: int
    """Computed for one of the edits before the first token of its answer."""
    drift: Drift | None
    """Of all the edits with the seam repaired; None: there were none."""
    nothing: Drift | None
    """Of the same, had the edit been ignored."""


@dataclass(frozen=True, slots=True)
class DriftGate:
    """What `kvstet verify --fidelity approximate` found out about a model."""

    seam: int
    """Tokens that were repaired before the first token; with fewer, nothing is proven."""
    kinds: dict[EditKind, KindVerdict]

    def is_open(self, kind: EditKind) -> bool:
        return kind in self.kinds and self.kinds[kind].is_open

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self | None:
        """None: another version wrote it, which proves nothing to this one."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.ValidationError, msgspec.DecodeError):
            return None


def judge(
    drifts: Sequence[EditDrift],
    controls: Sequence[Control],
    failed_probes: Sequence[str],
    seam: int = SEAM_TOKENS,
) -> DriftGate:
    """The gate of all that was measured; what fails in the controls or probes keeps it shut for every kind."""
    floor = NoiseFloor.of(Measured.joined([one.noise for one in controls]).divergences)
    general = list(_general_objections(controls, floor, failed_probes))
    kinds: dict[EditKind, KindVerdict] = {}
    for kind in EDIT_KINDS:
        kinds[kind] = _verdict([one for one in drifts if one.edit.kind == kind], floor, general, seam)
    return DriftGate(seam, kinds)


def shut(reason: str) -> DriftGate:
    """For a model that cannot move state at all."""
    verdict = KindVerdict(False, reason, 0, 0, None, None)
    return DriftGate(SEAM_TOKENS, dict.fromkeys(EDIT_KINDS, verdict))


def _verdict(drifts: list[EditDrift], floor: NoiseFloor, general: list[str], seam: int) -> KindVerdict:
    if not drifts:
        return KindVerdict(False, "no such edit was measured", 0, 0, None, None)
    grafted = [one.at(seam) for one in drifts]
    drift = Drift.of(Measured.joined([one.measured for one in grafted]))
    nothing = Drift.of(Measured.joined([one.nothing for one in drifts]))
    objections = [*_objections(len(drifts), drift, nothing, floor), *general]
    num_computed = max(one.graft.num_computed_tokens for one in grafted)
    return KindVerdict(not objections, "; ".join(objections) or "passed", len(drifts), num_computed, drift, nothing)


def _objections(num_edits: int, drift: Drift, nothing: Drift, floor: NoiseFloor) -> Iterator[str]:
    """Why the gate stays shut for one kind."""
    if num_edits < MIN_EDITS:
        yield f"fewer than {MIN_EDITS} edits"
    if drift.agreement < MIN_AGREEMENT:
        yield f"same top token at {drift.agreement:.1%}, not {MIN_AGREEMENT:.0%}"
    noise = allowed(floor, drift.num_positions)
    if nothing.mean <= noise:
        # Then state that is wrong would pass as well.
        yield "too little to tell by: even ignoring these edits lies within the noise"
    elif not drift.mean <= max(noise, floor.mean + MAX_SHARE_OF_EDIT * (nothing.mean - floor.mean)):
        yield f"drift is beyond noise, and more than {MAX_SHARE_OF_EDIT:.0%} of what ignoring the edit costs"


def _general_objections(controls: Sequence[Control], floor: NoiseFloor, failed_probes: Sequence[str]) -> Iterator[str]:
    """Why it stays shut for all."""
    repaired = Drift.of(Measured.joined([one.repaired for one in controls]))
    if not repaired.mean <= allowed(floor, repaired.num_positions):
        yield "the whole repair does not lead back to a cold run"
    if failed_probes:
        yield f"probes failed: {', '.join(failed_probes)}"
