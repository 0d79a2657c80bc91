"""``kvstet usage`` on a real account."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest
from tests.money.ledgers import NOON, entry
from typer.testing import CliRunner, Result

from kvstet.cli.main import app
from kvstet.money.entry import LedgerEntry
from kvstet.money.ledger import Ledger
from kvstet.types import Usage


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def write(path: Path, *entries: LedgerEntry) -> None:
    with Ledger(path) as ledger:
        for each in entries:
            ledger.note(each)


def run(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["usage", *arguments], env={"KVSTET_LEDGER": str(path)})


def row(text: str, name: str) -> str:
    """The cells of the line that begins like this."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return " ".join(line.removeprefix(name).split())


def test_today_sessions_and_days_are_shown(path: Path) -> None:
    now = time.time()
    write(path, entry(time=now - 40 * 86400), entry(time=now), entry(time=now, session="other", cost=None, saved=None))
    text = run(path).output
    assert [title for title in ("Today", "By session", "By day") if title in text] == ["Today", "By session", "By day"]
    assert row(text, "today") == "2 2,000 1,600 300 100 40 80.0% $0.250 +1? $2.000 $0.500 +1?"
    assert row(text, "a session") == "2 2,000 1,600 300 100 40 80.0% $0.500 $2.000 $1.000"
    assert row(text, "other") == "1 1,000 800 150 50 20 80.0% ? $1.000 ?"


def test_what_is_not_known_is_a_question_mark(path: Path) -> None:
    write(path, entry(session="dark", usage=Usage(num_input_tokens=10), cost=None, cost_without_cache=None, saved=None))
    assert row(run(path).output, "dark") == "1 10 ? ? ? ? ? ? ? ?"


def test_a_day_without_requests_has_no_table_of_today(path: Path) -> None:
    write(path, entry(time=NOON - 86400 * 400))
    assert "Today" not in run(path).output


def test_one_session_is_shown_by_request_with_its_verdicts(path: Path) -> None:
    write(path, entry(0), entry(1, verdict="The clock in the system prompt moved."), entry(2, session="other"))
    text = run(path, "--session", "a s").output
    assert "Session a session" in text
    assert row(text, "all") == "2,000 1,600 300 100 40 80.0% $0.500 $2.000 $1.000"
    assert "The clock in the system prompt moved." in text
    assert "other" not in text


@pytest.mark.parametrize(("since", "is_shown"), [("2026-11-01", True), ("2099-01-01", False), ("1m", False)])
def test_what_came_before_is_left_out(path: Path, since: str, is_shown: bool) -> None:
    write(path, entry())
    result = run(path, "--since", since)
    assert ("a session" in result.output) is is_shown
    assert ("No request fits" in result.output) is not is_shown


def test_a_time_that_is_none_is_refused(path: Path) -> None:
    result = run(path, "--since", "yesterday")
    assert result.exit_code == 2
    assert "neither an age like 12h or 7d nor a date" in " ".join(result.output.replace("│", " ").split())


def test_nothing_at_all_is_said_so_and_makes_no_file(path: Path) -> None:
    result = run(path)
    assert result.exit_code == 0
    assert "No request is in the account yet" in result.output
    assert str(path) in result.output
    assert not path.exists()


def test_requests_are_exported_as_csv_with_unknowns_empty(path: Path, tmp_path: Path) -> None:
    write(path, entry(verdict='He said "no",\nand so on.'), entry(1, cost=None))
    run(path, "--csv", str(tmp_path / "out.csv"))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text("utf-8"))))
    assert [each["cost"] for each in rows] == ["0.25", ""]
    assert rows[0]["verdict"] == 'He said "no",\nand so on.'
    assert rows[0]["time"] == "2026-11-01T12:00:00.000+00:00"
    assert (rows[0]["num_input_tokens"], rows[0]["num_fresh_tokens"]) == ("1000", "50")


def test_requests_are_exported_as_json_and_nothing_else_is_printed(path: Path) -> None:
    write(path, entry(), entry(1, cost=None))
    told = json.loads(run(path, "--json", "-").output)
    assert [each["cost"] for each in told] == [0.25, None]
    assert told[0]["model"] == "claude-opus-5"


def test_an_empty_account_is_exported_as_such(path: Path) -> None:
    assert json.loads(run(path, "--json", "-").output) == []
    assert run(path, "--csv", "-").output.startswith("time,session,provider,model,source,cost,")


def test_a_file_that_cannot_be_written_is_said(path: Path, tmp_path: Path) -> None:
    write(path, entry())
    result = run(path, "--csv", str(tmp_path / "nowhere" / "out.csv"))
    assert "out.csv cannot be written: No such file or directory." in str(result.exception)


def test_names_from_outside_cannot_play_tricks_on_the_terminal(path: Path) -> None:
    write(path, entry(session="\x1b[31mred[bold]", model="m\x07"))
    text = run(path).output
    assert "\ufffd[31mred[bold]" in text
    assert "\x1b[31mred" not in text


def test_of_many_sessions_the_latest_are_shown(path: Path) -> None:
    write(path, *(entry(number, session=f"session {number:02}") for number in range(40)))
    text = run(path).output
    assert "session 39" in text
    assert "session 09" not in text
    assert "and 10 sessions before" in text


def test_a_narrow_terminal_loses_no_digit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, entry(session="a rather long name of a session", cost=12345.678))
    monkeypatch.setenv("FORCE_COLOR", "1")
    result = CliRunner().invoke(app, ["usage"], env={"KVSTET_LEDGER": str(path), "COLUMNS": "60"})
    assert "$12,345.678" in result.output
    assert "\u2026" not in result.output
