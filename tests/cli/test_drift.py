"""`kvstet verify --fidelity approximate`: what it measures on, what it finds, and what it leaves for the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.engine import broken
from tests.toys import toy_path
from typer.testing import CliRunner

from kvstet.cache.disk.store import DiskStore
from kvstet.cache.fingerprint import model_fingerprint
from kvstet.cli import trace_edits
from kvstet.cli.drift_report import drift_json, plot, show_drift
from kvstet.cli.drift_verification import DriftJob, DriftVerified, prepare, verify_drift
from kvstet.cli.main import app
from kvstet.cli.trace_edits import MIN_TAIL_TOKENS
from kvstet.cli.traces import Trace, read_trace
from kvstet.cli.verify import DEMO_SESSION
from kvstet.config import ModelOptions
from kvstet.engine.drift import EDIT_KINDS
from kvstet.engine.fake import ATTENTION, SWA, FakeModel
from kvstet.engine.gate import DriftGate
from kvstet.engine.process import Loaded
from kvstet.errors import InvalidRequest
from kvstet.types import Blob, MemoryTraits, SeqId

VOCABULARY = 49152
NUM_COMPARED = 16
"""Instead of 128: a fake's predictions are as telling at each."""


@pytest.fixture(scope="module", autouse=True)
def few_positions() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_edits, "CONTINUATION_TOKENS", NUM_COMPARED)
        yield


class Forgetful(FakeModel):
    """Its state does not depend on what stands before, so that moving it changes nothing."""

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        super().load_shifted(seq, blob, start, stop)
        self._exact_lengths.clear()


def fake(kind: type[FakeModel], traits: MemoryTraits = ATTENTION) -> FakeModel:
    return kind(traits, num_cells=1 << 15, max_length=8192, vocab_size=VOCABULARY)


def job(path: Path, model: FakeModel, folder: Path | None = None, num_edits: int = 12) -> DriftJob:
    def load(options: ModelOptions, on_progress: object) -> Loaded:
        return broken.loaded(model)

    return DriftJob(load, ModelOptions(path), num_edits, read_trace(DEMO_SESSION), folder)


@pytest.fixture(scope="module")
def passed(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> DriftVerified:
    folder = tmp_path_factory.mktemp("cache")
    return verify_drift(job(smollm2_path, fake(Forgetful), folder), lambda message: None)


def test_edits_of_all_kinds_are_made_of_a_recorded_session(smollm2_path: Path):
    material = prepare(job(smollm2_path, fake(FakeModel), num_edits=16))
    edits = [edited.edit for edited in material.edits]
    assert [edit.kind for edit in edits[:8]] == [*EDIT_KINDS, *EDIT_KINDS]
    assert len({edit.label for edit in edits}) == len(edits) == 16
    for edit in edits:
        assert edit.num_tail_tokens >= MIN_TAIL_TOKENS
        assert len(edit.continuation) == NUM_COMPARED
        assert not np.array_equal(edit.before, edit.after)
        match edit.kind:
            case "prune" | "remove":
                assert len(edit.after) < len(edit.before)
            case "insert":
                assert len(edit.after) > len(edit.before)
    assert {probe.kind for probe in material.probes} == {"deleted", "kept", "next call"}
    for probe in material.probes:
        assert len({tuple(candidate.tolist()) for candidate in probe.candidates}) == len(probe.candidates) > 1


def test_a_model_that_does_not_drift_passes_and_the_server_is_told(passed: DriftVerified, smollm2_path: Path):
    assert passed.has_passed
    assert {kind: verdict.num_edits for kind, verdict in passed.gate.kinds.items()} == dict.fromkeys(EDIT_KINDS, 3)
    assert passed.curve[0].drift.max == 0 < passed.nothing.mean
    assert passed.kept_in is not None
    with closing(DiskStore(Path(passed.kept_in))) as store:
        kept = store.drift_gate(model_fingerprint(smollm2_path, (), store))
        assert kept is not None
        assert DriftGate.from_json(kept) == passed.gate
        store.purge(None)
        assert store.drift_gate(model_fingerprint(smollm2_path, (), store)) is None


def test_a_model_that_drifts_stays_shut(smollm2_path: Path):
    found = verify_drift(job(smollm2_path, fake(FakeModel), num_edits=4), lambda message: None)
    assert not found.has_passed
    assert found.kept_in is None
    assert found.repaired is not None and found.repaired.max == 0
    assert all("same top token at 0.0%, not 96%" in verdict.reason for verdict in found.gate.kinds.values())


def test_memory_that_cannot_be_moved_is_said_at_once(smollm2_path: Path, tmp_path: Path):
    found = verify_drift(job(smollm2_path, fake(FakeModel, SWA), tmp_path), lambda message: None)
    assert found.refusal == "its memory is swa"
    assert not found.has_passed
    with closing(DiskStore(tmp_path)) as store:
        kept = store.drift_gate(model_fingerprint(smollm2_path, (), store))
        assert kept is not None and "its memory is swa" in kept


def test_what_is_too_short_to_be_edited_is_refused(smollm2_path: Path):
    short = replace(job(smollm2_path, fake(FakeModel)), model=ModelOptions(smollm2_path, ctx_size=400))
    with pytest.raises(InvalidRequest, match=r"long enough .* longer than the context of 400 tokens"):
        prepare(short)
    with pytest.raises(InvalidRequest, match="long enough"):
        prepare(replace(short, trace=Trace((), ())))


def test_the_table_says_what_may_be_done(passed: DriftVerified):
    text = StringIO()
    show_drift(Console(file=text, width=200), passed)
    lines = text.getvalue().splitlines()
    assert [line.split()[0] for line in lines if line.rstrip().endswith("passed")] == list(EDIT_KINDS)
    assert lines[-1] == "Fidelity approximate may be used for every kind of edit."
    assert any(line.startswith("facts deleted are gone: ") for line in lines)


def test_programs_get_json(passed: DriftVerified):
    data = json.loads(json.dumps(drift_json(passed)))
    assert data["has_passed"] is True
    assert data["gate"]["kinds"]["prune"]["is_open"] is True
    assert [point["num_repaired_tokens"] for point in data["curve"]] == [0, 64, 128, 256, 512]


def test_a_picture_is_drawn(passed: DriftVerified, tmp_path: Path):
    pytest.importorskip("matplotlib")
    plot(passed, tmp_path / "drift.svg")
    plot(passed, tmp_path / "drift.png")
    assert b"<svg" in (tmp_path / "drift.svg").read_bytes()
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    for name in ("drift.nonesuch", "nonesuch/drift.svg"):
        with pytest.raises(InvalidRequest, match="cannot be written"):
            plot(passed, tmp_path / name)


def test_the_command_refuses_a_window_and_says_what_would_help(smollm2_path: Path, tmp_path: Path):
    path = toy_path("gemma3-dense", vocabulary=smollm2_path, context_length=4096)
    arguments = ["verify", str(path), "--fidelity", "approximate", "--cache-dir", str(tmp_path), "-t", "1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "cannot be moved: what lies behind its sliding window is not kept (--swa-full keeps it)" in result.output
