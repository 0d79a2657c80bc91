"""What goes to a file or a pipe instead of a terminal is not broken into lines of 80 columns."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from rich.logging import RichHandler

from kvstet.api.ports import ModelStatus
from kvstet.cli.console import log_handler, stderr_console
from kvstet.cli.startup import show_startup
from kvstet.cli.watch import WatchedEngine
from kvstet.config import ModelOptions, ServedOptions
from kvstet.engine.fake_client import TINY_MODEL, ScriptedEngine

WORDS = " ".join(f"word{number}" for number in range(100))


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")


def test_a_long_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]):
    logger = logging.Logger("test")
    logger.addHandler(log_handler(stderr_console()))
    logger.error("%s.", WORDS)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith(f"] ERROR    {WORDS}.")


def test_a_requests_line_and_the_start_up_text_stay_whole(capsys: pytest.CaptureFixture[str]):
    console = stderr_console()
    WatchedEngine(ScriptedEngine(), console)._say("1234", WORDS)
    loaded = ServedOptions(ModelOptions(Path("tiny.gguf"))), ModelStatus(("tiny",), TINY_MODEL, None)
    other = ServedOptions(ModelOptions(Path("other.gguf"))), ModelStatus(("other",), None, None)
    show_startup(console, "http://127.0.0.1:8080", [loaded, other])
    said, *lines = capsys.readouterr().err.splitlines()
    assert said.endswith(f" 1234 {WORDS}")
    assert len(lines) >= 5
    assert not any(line.startswith(" ") for line in lines)
    assert lines[-1].rstrip().endswith("other (other.gguf), loaded when it is asked for")
    assert max(map(len, lines)) < 300


def test_a_terminal_keeps_its_width(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    console = stderr_console()
    assert console.width == 40
    assert isinstance(log_handler(console), RichHandler)
