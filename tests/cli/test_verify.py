"""`kvstet verify`: the real command on real files, and that it can fail."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import import_module
from pathlib import Path

import gguf
import pytest
from tests.cli.harness import command
from tests.engine import broken
from tests.engine.broken import Indifferent, StrangeFork
from tests.toys import architecture, build, toy_entries, toy_path
from typer.testing import CliRunner

from kvstet.api.openai.requests import TemplateRequest
from kvstet.cli.main import app
from kvstet.cli.traces import Trace, TraceRequest
from kvstet.cli.verification import Doing, Job, Message, Verified, plan_name, verify
from kvstet.cli.verification import run as run_verification
from kvstet.cli.verify import work
from kvstet.config import ModelOptions
from kvstet.engine.fake import ATTENTION, FakeModel
from kvstet.engine.process import Loaded, Loader, load_llama
from kvstet.errors import EngineCrashed, InvalidRequest, ModelLoadError
from kvstet.types import Reuse

pytestmark = pytest.mark.timeout(300)

NO_TRACE = Trace((), ())
STRING = 8


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"COLUMNS": "120"} | environment
    return subprocess.run(
        command("verify", *arguments), capture_output=True, text=True, timeout=200, check=False, env=variables
    )


def job(load: Loader, path: Path = Path("a.gguf"), num_tokens: int = 256, trace: Trace = NO_TRACE) -> Job:
    return Job(load, ModelOptions(path, live_cells=1024, parallel=2, threads=1), num_tokens, trace)


def verified(model: FakeModel) -> Verified:
    def load(options: ModelOptions, on_progress: object) -> Loaded:
        return broken.loaded(model)

    return verify(job(load), lambda message: None)


def verdicts(verified: Verified) -> dict[str, str]:
    return {row.name: row.verdict for row in verified.rows}


def without_vocabulary(folder: Path, name: str) -> Path:
    """A toy that holds token ids only, as models of research often do."""
    entries = {key: entry for key, entry in toy_entries(name).items() if not key.startswith("tokenizer.")}
    entries["tokenizer.ggml.model"] = ([STRING], "no_vocab")
    path = folder / f"{name}.gguf"
    writer = gguf.GGUFWriter(path, architecture(name))
    build(name, writer, entries | {"tokenizer.ggml.tokens": toy_entries(name)["tokenizer.ggml.tokens"]})
    return path


def test_every_toy_passes(toy_name: str):
    found = verify(job(load_llama, toy_path(toy_name)), lambda message: None)
    assert found.is_exact
    chain = "not possible" if found.memory_kind in ("recurrent", "opaque") else None
    for row in found.rows:
        if row.name == "delta chain" and chain:
            assert row.verdict == chain
        else:
            assert row.verdict in ("identical", "within noise")
            assert row.comparison is not None and row.comparison.mean < found.wrong.mean / 1000


@pytest.mark.parametrize("name", ["llama-dense", "qwen35-dense", "gemma3-dense"])
def test_a_model_without_a_tokenizer_passes(name: str, tmp_path: Path):
    ended = run(str(without_vocabulary(tmp_path, name)))
    assert ended.returncode == 0, ended.stderr
    assert "delta chain" in ended.stdout and "Reused state gives a cold run's predictions" in ended.stdout


def test_a_trace_needs_a_tokenizer(tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    ended = run(str(without_vocabulary(tmp_path, "llama-dense")), "--trace", str(trace))
    assert ended.returncode == 1 and ended.stdout == ""
    assert "has no tokenizer" in ended.stderr


def test_the_table_is_there_for_people_and_for_programs():
    path = str(toy_path("gemma3-dense"))
    for_people, for_programs = run(path), run(path, "--json")
    assert (for_people.returncode, for_programs.returncode) == (0, 0)
    for name in ("noise floor", "state of other tokens", "prefix", "fork", "rollback", "reload", "delta chain"):
        assert name in for_people.stdout
    found = json.loads(for_programs.stdout)
    assert found["is_exact"] is True and found["memory_kind"] == "swa"
    assert [row["name"] for row in found["rows"]] == ["prefix", "fork", "rollback", "reload", "delta chain"]
    assert found["rows"][3]["comparison"]["num_positions"] == found["floor"]["num_positions"]
    assert 0 < found["floor"]["mean"] < 1e-4 < found["wrong"]["mean"]


# That it can fail


@pytest.mark.parametrize(
    ("load", "wrong"),
    [
        (broken.load_off_by_one, ["reload", "delta chain"]),
        (broken.load_stale, ["rollback", "reload", "delta chain"]),
    ],
)
def test_wrong_state_is_exit_status_1(load: Loader, wrong: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("kvstet.cli.verify"), "load_llama", load)
    ended = CliRunner().invoke(app, ["verify", "a.gguf", "--json"])
    assert ended.exit_code == 1
    found = json.loads(ended.stdout)
    assert found["is_exact"] is False
    assert [row["name"] for row in found["rows"] if row["verdict"] == "outside"] == wrong


def test_wrong_state_is_named_for_people(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(import_module("kvstet.cli.verify"), "load_llama", broken.load_off_by_one)
    ended = CliRunner().invoke(app, ["verify", "a.gguf"])
    assert ended.exit_code == 1
    assert "a [fake]" in ended.stdout and "outside" in ended.stdout
    assert "Reuse changes what this model predicts: reload, delta chain." in " ".join(ended.stdout.split())


@pytest.mark.parametrize("name", ["llama-dense", "deepseek2-moe", "gemma3-dense", "falcon-h1-dense"])
def test_spans_that_libllama_gets_back_spoilt_are_found(name: str):
    found = verdicts(verify(job(broken.load_spoilt_spans, toy_path(name)), lambda message: None))
    assert found["prefix"] == "identical"
    assert {found["reload"], found["delta chain"]} <= {"outside", "failed"}


@pytest.mark.parametrize("name", ["gemma3-dense", "mamba2-dense", "qwen3next-moe", "deepseek4-moe"])
def test_checkpoints_that_libllama_gets_back_spoilt_are_found(name: str):
    found = verdicts(verify(job(broken.load_spoilt_checkpoints, toy_path(name)), lambda message: None))
    assert found["prefix"] == "identical"
    assert {found["rollback"], found["reload"]} <= {"outside", "failed"}


def test_a_fork_that_is_wrong_is_found():
    assert verdicts(verified(StrangeFork(ATTENTION)))["fork"] == "outside"


def test_a_snapshot_that_is_refused_is_a_failure_and_the_other_kinds_are_still_tried():
    found = verified(broken.Refusing(ATTENTION))
    assert verdicts(found) == {
        "prefix": "identical",
        "fork": "identical",
        "rollback": "identical",
        "reload": "failed",
        "delta chain": "failed",
    }
    assert found.rows[3].note == "not mine" and not found.is_exact


def test_a_model_that_does_not_read_proves_nothing():
    found = verified(Indifferent(ATTENTION))
    assert set(verdicts(found).values()) == {"cannot tell"}
    assert not found.is_exact


def test_noise_is_no_failure():
    found = verify(job(broken.load_noisy), lambda message: None)
    assert found.is_exact and found.floor.mean > 1e-4


def test_an_abort_of_libllama_is_told_and_with_what_it_died():
    doings: list[Doing] = []
    with pytest.raises(EngineCrashed, match=r"libllama aborted while it tried reload \(SIGABRT\)"):
        work(run_verification, job(broken.load_aborting), Verified, doings.append)
    assert [doing.num_done for doing in doings] == list(range(len(doings)))


# Traces


def chats(*texts: str) -> Trace:
    """A conversation that grows by one message with each request."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]
    requests = [
        TraceRequest(f"turn {stop}", TemplateRequest(messages=messages[:stop])) for stop in range(1, len(texts) + 1, 2)
    ]
    return Trace(tuple(requests), (("a header", 1),))


@pytest.mark.parametrize("name", ["llama-dense", "qwen35-dense"])
def test_a_trace_is_replayed_and_grouped_by_what_the_plan_did(name: str, smollm2_path: Path):
    texts = [f"Message {number}: " + "the quick brown fox jumps over the lazy dog. " * 4 for number in range(13)]
    told: list[Message] = []
    path = toy_path(name, vocabulary=smollm2_path, context_length=1024)
    found = verify(job(load_llama, path, trace=chats(*texts)), told.append)
    assert found.is_exact and found.skipped == (("a header", 1),)
    assert {row.name for row in found.trace_rows} >= {"computed", "reused", "loaded"}
    assert sum(int(row.note.split()[0]) for row in found.trace_rows) == 7
    assert [message.what for message in told if isinstance(message, Doing)][-1] == "it replayed turn 13"
    steps = [message for message in told if isinstance(message, Doing)]
    assert steps[-1].num_done + 1 == steps[-1].num_steps


def test_wrong_state_in_a_replay_is_outside(smollm2_path: Path):
    texts = [f"Message {number}: " + "the quick brown fox jumps over the lazy dog. " * 4 for number in range(9)]
    path = toy_path("gemma3-dense", vocabulary=smollm2_path, context_length=1024)
    found = verify(job(broken.load_spoilt_checkpoints, path, trace=chats(*texts)), lambda message: None)
    assert not found.is_exact
    assert {row.name: row.verdict for row in found.trace_rows if row.verdict == "outside"}.keys() & {
        "loaded",
        "reused",
        "reused and loaded",
    }


def test_requests_that_do_not_fit_or_cannot_be_rendered_are_left_out(smollm2_path: Path):
    good, long = TemplateRequest(messages=[{"role": "user", "content": "Hi"}]), "word " * 3000
    requests = (
        TraceRequest("good", good),
        TraceRequest("long", TemplateRequest(messages=[{"role": "user", "content": long}])),
        TraceRequest("strange", TemplateRequest(messages=[{"role": "nobody"}])),
    )
    path = toy_path("llama-dense", vocabulary=smollm2_path, context_length=512)
    found = verify(job(load_llama, path, trace=Trace(requests, ())), lambda message: None)
    assert [row.note for row in found.trace_rows] == ["1 request"]
    reasons = dict(found.skipped)
    assert reasons.pop("longer than the context of 512 tokens") == 1
    assert list(reasons.values()) == [1]


@pytest.mark.parametrize(
    ("reused", "loaded", "name"),
    [(0, 0, "computed"), (5, 0, "reused"), (0, 5, "loaded"), (3, 4, "reused and loaded")],
)
def test_plans_are_named_by_where_tokens_came_from(reused: int, loaded: int, name: str):
    assert plan_name(Reuse(reused, loaded, 0, 1, 9)) == name


# Bad usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "model"),
        (["a.gguf", "--tokens", "3"], "--tokens"),
        (["a.gguf", "--trace", "nonesuch.jsonl"], "No such file"),
        (["a.gguf", "-ctk", "q3"], "--cache-type-k"),
        (["a.gguf", "b.gguf"], "b.gguf"),
        (["a.gguf", "--nonesuch"], "--nonesuch"),
    ],
    ids=" ".join,
)
def test_bad_usage_is_exit_status_2(arguments: list[str], words: str):
    ended = CliRunner().invoke(app, ["verify", *arguments], env={"COLUMNS": "160"})
    assert ended.exit_code == 2
    assert words in ended.stderr


def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path):
    path = tmp_path / "notes.gguf"
    path.write_text("Dear diary")
    ended = run(str(path))
    assert ended.returncode == 1 and ended.stdout == ""
    assert "is not a GGUF file" in ended.stderr and ended.stderr.count("\n") == 1


def test_errors_of_the_other_process_arrive():
    with pytest.raises(ModelLoadError, match="No such file"):
        work(run_verification, job(load_llama, Path("nonesuch.gguf")), Verified, lambda doing: None)


def test_a_context_of_a_few_tokens_is_refused():
    model = FakeModel(ATTENTION, max_length=8)
    with pytest.raises(InvalidRequest, match="context of 8 tokens"):
        verified(model)
