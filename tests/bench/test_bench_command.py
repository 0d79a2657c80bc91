"""``kvstet bench``, as it is typed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
import pytest
from rich.console import Console
from tests.bench.bench_fakes import FakeServer, serving
from tests.cli.harness import command, ended, eventually

from kvstet.bench.benchmark import FULL, QUICK
from kvstet.bench.results import Machine, Model, Results, Scenario, Server
from kvstet.bench.suite import SUITE
from kvstet.bench.table import pairs, show
from kvstet.cli.bench import amount_of
from kvstet.replay.results import Asked, Run


def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    return ended(capsys, monkeypatch, "bench", *arguments)


def test_the_scenarios_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    status, text = bench(capsys, monkeypatch, "--list")
    assert status == 0
    assert all(scenario.name in text for scenario in SUITE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "no scenario 'nothing'"),
        (["missing.gguf"], "no model file missing.gguf"),
        (["--peer", "http://127.0.0.1:9", "--only", "append"], "answers at http://127.0.0.1:9"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    status, text = bench(capsys, monkeypatch, *arguments)
    assert status == 1 and said in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


def test_pairs_are_what_is_asked_for_and_else_five_or_one():
    assert (FULL.effort.num_pairs, QUICK.effort.num_pairs) == (5, 1)
    assert amount_of(QUICK, 3).effort.num_pairs == 3 and amount_of(FULL, None) == FULL


def results(folder: Path) -> Results:
    return msgspec.json.decode((folder / "kvstet-bench.json").read_bytes(), type=Results)


def left_over(folder: Path) -> list[int]:
    """Processes of a bench that ran in a folder, or that it has started."""
    return [
        process.pid
        for process in psutil.process_iter(["cwd", "environ"])
        if process.info["cwd"] == str(folder) or (process.info["environ"] or {}).get("KVSTET_BENCH_TEST") == str(folder)
    ]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("bench", *arguments),
        cwd=folder,
        env=os.environ | {"KVSTET_BENCH_TEST": str(folder), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_bench_with_a_server_of_others_on_the_real_model(tmp_path: Path):
    other = FakeServer("other")
    with serving(other), start(tmp_path, "--quick", "--only", "append,restart", "--peer", other.url) as process:
        text, _ = process.communicate(timeout=250)
    assert process.returncode == 0, text
    found = results(tmp_path)
    assert [server.name for server in found.servers] == ["kvstet", other.url]
    assert (found.is_quick, found.model.context_length, found.model.architecture) == (True, 8192, "llama")
    runs = {(scenario.name, run.server): run for scenario in found.scenarios for run in scenario.runs}
    for name in ("append", "restart"):
        ours = runs[name, "kvstet"]
        assert ours.failure is None
        assert (ours.num_bound_tokens or 0) > 100
        assert ours.num_computed_tokens == pytest.approx(ours.num_bound_tokens, abs=16)
    assert "cannot be killed from here" in (runs["restart", other.url].failure or "")
    assert "restart" in text and (tmp_path / "kvstet-bench.html").stat().st_size > 1000
    assert eventually(lambda: not left_over(tmp_path), 20)


def test_ctrl_c_writes_what_there_is_and_leaves_no_process(tmp_path: Path):
    with start(tmp_path, "--only", "append", "--peer", "none", "--pairs", "50") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("2/50") for line in lines)
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()
        assert process.wait(60) == 130, text
    (scenario,) = results(tmp_path).scenarios
    assert scenario.runs[0].failure is None and len(scenario.runs) < 50
    assert "Interrupted" in text and "Traceback" not in text
    assert eventually(lambda: not left_over(tmp_path), 20)


def test_nothing_is_left_of_a_bench_that_was_killed(tmp_path: Path):
    with start(tmp_path, "--only", "append", "--peer", "none", "--pairs", "50") as process:
        assert process.stdout is not None
        assert any(line.startswith("1/50") for line in iter(process.stdout.readline, ""))
        process.kill()
    assert eventually(lambda: not left_over(tmp_path), 20)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs the extra bench")
def test_llama_cpps_own_server_tells_what_it_computed_of_the_same_prompts(tmp_path: Path):
    with start(tmp_path, "--quick", "--only", "append,clock") as process:
        text, _ = process.communicate(timeout=250)
    assert process.returncode == 0, text
    for scenario in results(tmp_path).scenarios:
        runs = {run.server: run for run in scenario.runs}
        ours, theirs = runs["kvstet"], runs["llama.cpp"]
        assert (ours.failure, theirs.failure) == (None, None)
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens
        assert (ours.num_computed_tokens or 0) <= (ours.num_bound_tokens or 0) + 16
        assert (theirs.num_computed_tokens or 0) >= (theirs.num_bound_tokens or 0) - 16
    assert eventually(lambda: not left_over(tmp_path), 20)


@pytest.mark.slow
@pytest.mark.timeout(480)
@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="needs the extra bench")
def test_the_quick_bench_ends_within_six_minutes_and_leaves_no_process(tmp_path: Path):
    begun = time.monotonic()
    with start(tmp_path, "--quick") as process:
        text, _ = process.communicate(timeout=420)
    assert time.monotonic() - begun < 360, text
    assert process.returncode == 0, text
    found = results(tmp_path)
    assert [server.name for server in found.servers] == ["kvstet", "llama.cpp"]
    assert not [run.failure for scenario in found.scenarios for run in scenario.runs if run.failure]
    assert len(found.scenarios) == len(SUITE)
    assert eventually(lambda: not left_over(tmp_path), 20)


def a_run(server: str, repetition: int, computed: int | None, seconds: float, failure: str | None = None) -> Run:
    asked = Asked(label="x", num_computed_tokens=computed, num_bound_tokens=90, first_token_seconds=seconds)
    return Run(server=server, repetition=repetition, asked=[asked], failure=failure)


def made_up(*runs: Run) -> Results:
    servers = [Server(name=name, version="1", command=name) for name in ("kvstet", "peer")]
    scenario = Scenario(name="prune", title="t", about="a", kind="session", runs=list(runs))
    machine = Machine(processor="p", num_cores=2, ram_bytes=1, system="s", python="3")
    return Results(
        began_wall=0.0,
        seconds=1.0,
        command="kvstet bench",
        seed=0,
        is_quick=True,
        machine=machine,
        model=Model(name="m", size_bytes=1, context_length=8192),
        servers=servers,
        scenarios=[scenario],
    )


def table_of(results: Results) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        show(console, results)
    return captured.get()


def test_the_table_has_medians_and_the_ratios_range_by_pair():
    runs: list[Any] = []
    for repetition, (mine, theirs) in enumerate([(1.0, 2.0), (2.0, 6.0), (4.0, 5.0)]):
        runs += [a_run("kvstet", repetition, 100, mine), a_run("peer", repetition, 300, theirs)]
    text = table_of(made_up(*runs))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("prune")]
    assert row == ["prune", "90", "100", "300", "2.00", "5.00", "2.00", "(1.25", "to", "3.00)"]
    assert median([2.0, 3.0, 1.25]) == 2.0


def test_runs_that_failed_are_in_no_median_and_told():
    found = made_up(a_run("kvstet", 0, 100, 1.0), a_run("peer", 0, 300, 9.0, failure="It fell."))
    both = pairs(found.scenarios[0], "kvstet", "peer", lambda run: run.num_computed_tokens)
    assert (both.mine, both.theirs, both.ratio) == ((100,), (), "-")
    assert "prune, peer, repetition 1: It fell." in table_of(found)


def test_what_a_peer_does_not_tell_leaves_a_gap():
    text = table_of(made_up(a_run("kvstet", 0, 100, 1.0), a_run("peer", 0, None, 2.0)))
    (row,) = [line.split() for line in text.splitlines() if line.startswith("prune")]
    assert row == ["prune", "90", "100", "-", "1.00", "2.00", "2.00"]
