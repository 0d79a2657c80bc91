"""Imported traces are traces like others: they are read back, and explained."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from tests.traces_import.real_sessions import CLAUDE, CODEX, KINDS_BY_FILE, bodies, imported
from typer.testing import CliRunner

from kvstet.cli.main import app
from kvstet.traces.format import Header
from kvstet.traces.reading import read_lines, read_trace


def as_trace(name: str, folder: Path) -> Path:
    _, lines = imported(name, folder)
    path = folder / "trace.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("name", KINDS_BY_FILE)
def test_an_imported_trace_is_read_as_it_was_written(name: str, tmp_path: Path):
    _, lines = imported(name, tmp_path)
    path = as_trace(name, tmp_path)
    assert list(read_lines(path)) == lines
    assert isinstance(lines[0], Header)
    recorded = list(read_trace(path))
    assert [exchange.body for exchange in recorded] == bodies(lines)
    for exchange in recorded:
        assert exchange.dialect is not None
        assert exchange.dialect.read_request(exchange.body).messages


@pytest.mark.parametrize("name", KINDS_BY_FILE)
def test_every_request_of_it_has_a_verdict(name: str, tmp_path: Path):
    path = as_trace(name, tmp_path)
    result = CliRunner().invoke(app, ["explain", "--all", "--trace", str(path)])
    assert result.exit_code == 0, result.output
    printed = result.output.splitlines()
    verdicts = [verdict for head, verdict in pairwise(printed) if re.fullmatch(r" +\d+ .*, \d+ messages", head)]
    assert len(verdicts) == len(bodies(read_lines(path)))
    assert verdicts[0].strip().startswith("New conversation: ")
    # Nothing was broken but where the client itself broke it.
    num_appended = sum("Appended: " in line for line in verdicts)
    assert num_appended >= len(verdicts) - 3


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (CODEX.format("compaction"), "The client compacted the conversation."),
        (CLAUDE.format("compaction"), "the client dropped"),
    ],
)
def test_a_compaction_is_seen(name: str, word: str, tmp_path: Path):
    result = CliRunner().invoke(app, ["explain", "--trace", str(as_trace(name, tmp_path))])
    assert word in result.output
