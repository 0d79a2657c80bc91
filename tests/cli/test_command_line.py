"""What a user mistypes: told in one sentence or by the usage text, with no traceback, and before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from tests.cli.harness import command
from tests.toys import toy_entries, write_vocabulary
from typer.exceptions import TyperException

from kvstet.cli.main import app, main


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "160"} | environment
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def broken_model(kind: str, folder: Path, smollm2_path: Path) -> Path:
    path = folder / f"{kind}.gguf"
    match kind:
        case "truncated":
            with smollm2_path.open("rb") as file:
                path.write_bytes(file.read(8_000_000))
        case "unknown architecture":
            write_vocabulary(path, toy_entries("llama-dense"), architecture="nonesuch")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "No such file"),
        ("truncated", "corrupted or incomplete"),
        ("unknown architecture", "unknown model architecture: 'nonesuch'"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_one_sentence(kind: str, words: str, tmp_path: Path, smollm2_path: Path):
    path = broken_model(kind, tmp_path, smollm2_path)
    ended = run("serve", str(path), "--port", "0")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("kvstet: ")
    assert path.name in ended.stderr
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_while_the_command_is_imported_ends_it_quietly(tmp_path: Path):
    """A module that gets the signal while it is imported stands in for one that is imported just then."""
    lines = ("import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(20)")
    (tmp_path / "typer.py").write_text("\n".join(lines))
    ended = run("serve", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_ctrl_c_is_as_ever_once_the_command_was_imported():
    code = "import signal, kvstet.cli; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout == "True\n"


def test_a_wrong_value_ends_with_the_usage():
    ended = run("serve", "--port", "99999")
    assert ended.returncode == 2
    assert "kvstet serve [OPTIONS] [model]" in ended.stderr
    assert "--port" in ended.stderr
    assert "65535" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "-1"],
        ["--port", "http"],
        ["--max-body", "0"],
        ["--cache-ram", "-1"],
        ["--parallel", "0"],
        ["--queue", "0"],
        ["--prefill-chunk", "0"],
        ["--deadline", "0"],
        ["--deadline", "nan"],
        ["--watchdog", "-1"],
        ["--watchdog", "nan"],
        ["--ctx-size", "-1"],
        ["--live-cells", "0"],
        ["--batch-size", "0"],
        ["--ubatch-size", "0"],
        ["--threads", "0"],
        ["--threads-batch", "-4"],
        ["--n-gpu-layers", "-2"],
        ["--flash-attn", "maybe"],
        ["--cache-type-k", "q3"],
        ["--rope-scaling", "circular"],
        ["--nonesuch"],
        ["one.gguf", "two.gguf"],
    ],
    ids=" ".join,
)
def test_a_value_out_of_range_is_refused(arguments: list[str]):
    serve = typer.main.get_command(app).commands["serve"]
    with pytest.raises(TyperException):
        serve.make_context("serve", arguments)


@pytest.mark.parametrize("name", ["[bold]", "[/bold]", "a[1].gguf"])
def test_brackets_in_a_file_name_are_only_brackets(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    def fail() -> None:
        raise FileNotFoundError(2, f"no such file: {name}")

    monkeypatch.setattr(import_module("kvstet.cli.main"), "app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"kvstet: no such file: {name}\n"
