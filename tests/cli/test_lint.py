"""``kvstet lint``, on prompts and on recordings in every dialect."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from tests.edits.labels import TRACES
from typer.testing import CliRunner, Result

from kvstet.cli.lint import sent_requests
from kvstet.cli.main import app

PROMPT = "You are an agent.\nToday's date: 2026-11-22\nBe [bold]careful[/bold] with /home.\n"


def lint(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["lint", *map(str, arguments)])


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.md"
    path.write_text(PROMPT)
    return path


def test_a_prompt_that_will_vary_is_told_with_its_line(prompt: Path):
    found = lint(prompt)
    assert found.exit_code == 1
    assert "line 2" in found.output and "Today's date: 2026-11-22" in found.output and "Context.note" in found.output
    assert "careful" not in found.output, "no other line is quoted"
    assert "1 finding" in found.output


def test_a_constant_prompt_is_clean(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("You are an agent.\n")
    found = lint(path)
    assert (found.exit_code, found.output) == (0, "Nothing in it will vary.\n")
    assert json.loads(lint(path, "--json").output) == {"findings": [], "variations": []}


def test_findings_are_told_as_json(prompt: Path):
    found = lint(prompt, "--json")
    assert found.exit_code == 1
    ((finding,), variations) = json.loads(found.output).values()
    assert variations == []
    assert {key: finding[key] for key in ("kind", "line", "tool", "quote")} == {
        "kind": "date",
        "line": 2,
        "tool": None,
        "quote": "Today's date: 2026-11-22",
    }
    assert finding["advice"]


def test_markup_in_a_prompt_is_printed_as_it_is(tmp_path: Path):
    path = tmp_path / "prompt.txt"
    path.write_text("[bold]Today's date: 2026-11-22[/bold]")
    assert "[bold]Today's date: 2026-11-22[/bold]" in lint(path).output


@pytest.mark.parametrize(
    ("name", "expected"),
    [("continue", "calls 6-7"), ("claude", "billing header"), ("codex", "multi_agent_v1"), ("qwen", "git: (clean)")],
)
def test_recorded_sessions_are_linted_in_every_dialect(name: str, expected: str):
    found = lint(TRACES / f"{name}.jsonl.xz")
    assert found.exit_code == 1 and expected in found.output


@pytest.mark.parametrize(("name", "number"), [("claude-requests", 5), ("codex-requests", 26), ("claude", 23)])
def test_requests_are_found_in_every_form(name: str, number: int):
    assert len(list(sent_requests(lzma.decompress((TRACES / f"{name}.jsonl.xz").read_bytes())))) == number


def recording(path: Path, *bodies: Any) -> Path:
    path.write_text("\n".join(json.dumps(body) for body in bodies))
    return path


def test_a_recording_tells_what_varied_between_which_calls(tmp_path: Path):
    bodies = [
        {
            "messages": [
                {"role": "system", "content": f"You are an agent.\nMode: {mode}"},
                {"role": "user", "content": ""},
            ]
        }
        for mode in ("plan", "plan", "build")
    ]
    found = lint(recording(tmp_path / "a.jsonl", *bodies), "--json")
    assert found.exit_code == 1
    assert json.loads(found.output)["variations"] == [
        {
            "kind": "line changed",
            "calls": [2, 3],
            "line": 2,
            "tool": None,
            "before": "Mode: plan",
            "after": "Mode: build",
            "what": None,
        }
    ]
    assert lint(recording(tmp_path / "b.jsonl", *bodies[:2])).exit_code == 0


@pytest.mark.parametrize(
    ("body", "dialect"),
    [
        ({"input": "Hi", "instructions": PROMPT}, "responses"),
        ({"messages": [], "system": PROMPT}, "messages"),
        ({"body": {"messages": [{"role": "system", "content": PROMPT}]}}, "chat"),
        ({"path": "/v1/messages?beta=true", "body": {"messages": [], "system": PROMPT}}, "messages"),
    ],
)
def test_one_request_is_a_recording_too(tmp_path: Path, body: Any, dialect: str):
    path = tmp_path / "request.json"
    path.write_text(json.dumps(body, indent=2))
    assert [each.dialect for each in sent_requests(path.read_bytes())] == [dialect]
    assert "line 2" in lint(path).output


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path):
    from kvstet.errors import InvalidRequest

    assert isinstance(lint(tmp_path / "none").exception, InvalidRequest)
    (tmp_path / "image").write_bytes(b"\x89PNG\xff\xfe")
    assert isinstance(lint(tmp_path / "image").exception, InvalidRequest)
