"""The work of `kvstet verify --fidelity approximate`, in a process of its own as `kvstet.cli.verification` is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path

from kvstet.cache.disk.store import DiskStore
from kvstet.cache.fingerprint import model_fingerprint
from kvstet.cli.stack import load_text
from kvstet.cli.trace_edits import EditedPrompt, edits_of, recorded_of
from kvstet.cli.trace_probes import call_probes, fact_probes
from kvstet.cli.traces import Trace
from kvstet.cli.verification import Doing, Message, send_result
from kvstet.config import ModelOptions
from kvstet.engine.drift import REPAIRS, Bench, Control, Drift, EditDrift, EditKind, Measured
from kvstet.engine.gate import DriftGate, judge, shut
from kvstet.engine.graft import SEAM_TOKENS
from kvstet.engine.probes import Probe, Probed, ask
from kvstet.engine.process import Loaded, Loader, Loading
from kvstet.errors import DiskUnavailable, InvalidRequest

NUM_CONTROLS = 4
"""Edits whose prompts are computed cold twice, for the noise floor, and repaired whole."""

TAIL_LIMITS = (1024, 4096)
"""Tails are told apart by their length: up to these, and beyond."""


@dataclass(frozen=True, slots=True)
class DriftJob:
    """What to measure. ``load`` is a module's function, since it travels by name."""

    load: Loader
    model: ModelOptions
    num_edits: int
    trace: Trace
    cache_folder: Path | None
    """Where the gate is kept; None: nowhere."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """All edits of one kind (or of all kinds), with so many tokens of the tail repaired."""

    num_repaired_tokens: int
    num_edits: int
    num_moved_edits: int
    """Of them, those whose tail is longer: the others are repaired whole."""
    drift: Drift


@dataclass(frozen=True, slots=True)
class Group:
    """Edits that have something in common, with the seam repaired."""

    name: str
    num_edits: int
    max_computed_tokens: int
    drift: Drift
    nothing: Drift


@dataclass(frozen=True, slots=True)
class MeasuredEdit:
    """One edit, with the seam repaired."""

    label: str
    kind: EditKind
    num_prompt_tokens: int
    num_tail_tokens: int
    num_computed_tokens: int
    drift: Drift
    nothing: Drift


@dataclass(frozen=True, slots=True)
class DriftVerified:
    """All that was found out."""

    model: str
    description: str
    memory_kind: str
    gate: DriftGate
    refusal: str | None = None
    """Why the model cannot move state at all; nothing was measured then."""
    noise: Drift | None = None
    """Between cold runs."""
    repaired: Drift | None = None
    """On the same prompts, after the whole repair."""
    nothing: Drift | None = None
    curve: tuple[CurvePoint, ...] = ()
    curves: dict[EditKind, tuple[CurvePoint, ...]] = field(default_factory=dict[EditKind, tuple[CurvePoint, ...]])
    by_tail: tuple[Group, ...] = ()
    edits: tuple[MeasuredEdit, ...] = ()
    probes: tuple[Probed, ...] = ()
    skipped: tuple[tuple[str, int], ...] = ()
    kept_in: str | None = None
    """The cache folder that the gate was written to."""

    @property
    def has_passed(self) -> bool:
        """Whether the gate is open for every kind of edit."""
        return all(verdict.is_open for verdict in self.gate.kinds.values())


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What is measured on."""

    edits: Sequence[EditedPrompt]
    probes: Sequence[Probe]
    skipped: Counter[str]

    @property
    def num_tokens(self) -> int:
        """Of the longest prompt."""
        return max(one.num_tokens for one in self.edits)


def run_drift(job: DriftJob, connection: Connection) -> None:
    """The process's main function; sends `Message`s, and at last DriftVerified or Broken."""
    send_result(lambda: verify_drift(job, connection.send), connection)


def verify_drift(job: DriftJob, tell: Callable[[Message], None]) -> DriftVerified:
    """Load, and measure everything. Raises the KvstetError that is in the way of it."""
    material = prepare(job)
    # Of the prompt before the edit, the exact one after it, the moved one, and what is just being moved.
    model = replace(job.model, live_cells=4 * material.num_tokens, ctx_size=job.model.ctx_size or None)
    loaded = job.load(model, lambda fraction: tell(Loading(fraction)))
    try:
        verified = DriftVerification(loaded, material, tell).run()
        return keep(verified, job, loaded)
    finally:
        loaded.model.close()


def prepare(job: DriftJob) -> Material:
    """The edits and probes of the trace. InvalidRequest: it has none."""
    vocabulary, renderer = load_text(job.model.path, None)
    with vocabulary:
        from kvstet.llama.parameters import max_length

        context_length = max_length(vocabulary, job.model)
        recorded, skipped = recorded_of(job.trace, renderer, context_length)
        edits = edits_of(recorded, renderer, job.num_edits, context_length)
        if not edits:
            reasons = "".join(f"; {count} left out: {reason}" for reason, count in skipped.items())
            raise InvalidRequest(f"No recorded conversation is long enough to be edited in its middle{reasons}.")
        facts = list(fact_probes(recorded[0].prompt.tokens, vocabulary.vocab))
    return Material(edits, [*facts, *call_probes(edits)], skipped)


class DriftVerification:
    """The measurement of one model, one edit after the other."""

    def __init__(self, loaded: Loaded, material: Material, tell: Callable[[Message], None]) -> None:
        self._model = loaded.model
        self._info = loaded.info
        self._material = material
        self._tell = tell
        self._bench = Bench(loaded.model)
        self._num_done = 0
        self._num_steps = len(material.edits) + min(NUM_CONTROLS, len(material.edits)) + len(material.probes)

    def run(self) -> DriftVerified:
        """Raises OutOfCells where the prompts do not fit after all."""
        if self._model.shift_refusal is not None:
            return self._refused(self._model.shift_refusal)
        drifts, controls = self._measure()
        probes = [self._ask(probe) for probe in self._material.probes]
        failed = [f"{probe.kind} ({probe.label})" for probe in probes if probe.answer == "failed"]
        return DriftVerified(
            model=self._info.name,
            description=self._info.description,
            memory_kind=self._info.memory_kind,
            gate=judge(drifts, controls, failed),
            noise=Drift.of(Measured.joined([one.noise for one in controls])),
            repaired=Drift.of(Measured.joined([one.repaired for one in controls])),
            nothing=Drift.of(Measured.joined([one.nothing for one in drifts])),
            curve=curve_of(drifts),
            curves={kind: curve_of(group) for kind, group in by_kind(drifts).items()},
            by_tail=tuple(by_tail(drifts)),
            edits=tuple(map(edit_row, drifts)),
            probes=tuple(probes),
            skipped=tuple(self._material.skipped.items()),
        )

    def _measure(self) -> tuple[list[EditDrift], list[Control]]:
        drifts: list[EditDrift] = []
        controls: list[Control] = []
        # In the order of their prompts: what two have in common is computed once.
        edits = sorted((one.edit for one in self._material.edits), key=lambda edit: edit.before.tolist())
        spread = {round(index * len(edits) / NUM_CONTROLS) for index in range(NUM_CONTROLS)}
        for number, edit in enumerate(edits):
            with self._step(f"it measured {edit.label}"):
                drifts.append(self._bench.measure(edit))
            if number in spread:
                with self._step(f"it repaired {edit.label}"):
                    controls.append(self._bench.control(edit))
        return drifts, controls

    def _ask(self, probe: Probe) -> Probed:
        with self._step(f"it was asked what it knows ({probe.kind})"):
            return ask(self._model, self._bench, probe)

    def _refused(self, reason: str) -> DriftVerified:
        info = self._info
        return DriftVerified(info.name, info.description, info.memory_kind, shut(reason), reason)

    @contextmanager
    def _step(self, what: str) -> Generator[None]:
        self._tell(Doing(what, self._num_done, self._num_steps))
        yield
        self._num_done += 1


def keep(verified: DriftVerified, job: DriftJob, loaded: Loaded) -> DriftVerified:
    """Write the gate to where the server of this model finds it. DiskUnavailable: it cannot be written."""
    if job.cache_folder is None:
        return verified
    with closing(DiskStore(job.cache_folder)) as store:
        try:
            adapters = [lora.path for lora in job.model.lora]
            fingerprint = model_fingerprint(job.model.path, loaded.identity, store, adapters)
        except OSError as error:
            raise DiskUnavailable(f"Cannot read the model file: {error}") from error
        store.set_drift_gate(fingerprint, verified.gate.to_json().decode())
    return replace(verified, kept_in=str(job.cache_folder))


def curve_of(drifts: Sequence[EditDrift]) -> tuple[CurvePoint, ...]:
    """The drift of all of them together, by repaired tokens."""
    points: list[CurvePoint] = []
    for repair in REPAIRS:
        grafted = [one.at(repair) for one in drifts]
        num_moved = sum(bool(one.graft.moves) for one in grafted)
        drift = Drift.of(Measured.joined([one.measured for one in grafted]))
        points.append(CurvePoint(repair, len(drifts), num_moved, drift))
    return tuple(points)


def by_kind(drifts: Sequence[EditDrift]) -> dict[EditKind, list[EditDrift]]:
    groups: dict[EditKind, list[EditDrift]] = {}
    for one in drifts:
        groups.setdefault(one.edit.kind, []).append(one)
    return groups


def by_tail(drifts: Sequence[EditDrift]) -> Generator[Group]:
    """The shortest tails first."""
    low = 0
    for limit in (*TAIL_LIMITS, None):
        group = [one for one in drifts if low <= one.edit.num_tail_tokens and _is_below(one, limit)]
        name = f"tails from {low:,} tokens" if limit is None else f"tails up to {limit:,} tokens"
        if group:
            yield group_of(name, group)
        low = limit or low


def _is_below(one: EditDrift, limit: int | None) -> bool:
    return limit is None or one.edit.num_tail_tokens < limit


def group_of(name: str, drifts: Sequence[EditDrift]) -> Group:
    """At least one edit."""
    grafted = [one.at(SEAM_TOKENS) for one in drifts]
    return Group(
        name,
        len(drifts),
        max(one.graft.num_computed_tokens for one in grafted),
        Drift.of(Measured.joined([one.measured for one in grafted])),
        Drift.of(Measured.joined([one.nothing for one in drifts])),
    )


def edit_row(one: EditDrift) -> MeasuredEdit:
    grafted = one.at(SEAM_TOKENS)
    return MeasuredEdit(
        one.edit.label,
        one.edit.kind,
        len(one.edit.after),
        one.edit.num_tail_tokens,
        grafted.graft.num_computed_tokens,
        Drift.of(grafted.measured),
        Drift.of(one.nothing),
    )
