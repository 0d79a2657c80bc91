"""The account of usage: private, shared by processes, and never in a request's way."""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.money.ledgers import NOON, entry

from kvstet.errors import LedgerUnavailable
from kvstet.money import ledger as module
from kvstet.money.bill import Total
from kvstet.money.entry import LedgerEntry, by_day, by_session
from kvstet.money.ledger import Ledger, default_path
from kvstet.types import Usage

UNKNOWN = entry(
    1, usage=Usage(), cost=None, cost_without_cache=None, saved=None, seconds=None, first_token_seconds=None
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvstet" / "usage" / "ledger.sqlite"


def write(path: Path, *entries: LedgerEntry) -> None:
    with Ledger(path) as ledger:
        for each in entries:
            ledger.note(each)


def test_what_is_noted_is_read_as_it_was_and_unknown_is_not_zero(path: Path) -> None:
    write(path, entry(), UNKNOWN)
    assert Ledger(path).entries() == [entry(), UNKNOWN]


def test_an_account_that_was_never_written_is_empty_and_makes_no_file(path: Path) -> None:
    with Ledger(path) as ledger:
        assert ledger.entries() == []
    assert not path.exists()


def test_entries_of_a_time_and_a_session_are_found(path: Path) -> None:
    write(path, entry(0), entry(1, session="a%"), entry(2, session="a_b"), entry(3))
    ledger = Ledger(path)
    assert [each.session for each in ledger.entries(since=NOON + 60)] == ["a%", "a_b", "a session"]
    assert [each.session for each in ledger.entries(session="a%")] == ["a%"]
    assert [each.session for each in ledger.entries(session="a s")] == ["a session"] * 2


def test_what_is_noted_by_this_process_is_there_at_once(path: Path) -> None:
    with Ledger(path) as ledger:
        for number in range(100):
            ledger.note(entry(number))
            assert len(ledger.entries()) == number + 1


def test_sums_by_session_and_by_day_tell_how_much_is_not_known(path: Path) -> None:
    day = 86_400 / 60
    write(path, entry(0), dataclasses.replace(UNKNOWN, session="a session"), entry(day, session="another"))
    one, other = by_session(Ledger(path).entries())
    assert (one.name, one.num_requests, other.name, other.num_requests) == ("a session", 2, "another", 1)
    assert (one.cost, one.num_input_tokens) == (Total(0.25, 1), Total(1000, 1))
    assert (one.num_fresh_tokens, one.saved, one.seconds) == (Total(50, 1), Total(0.5, 1), Total(3.0, 1))
    assert (one.read_share, one.first_time, one.last_time) == (0.8, NOON, NOON + 60)
    days = by_day(Ledger(path).entries())
    assert [each.num_requests for each in days] == [2, 1]
    assert days[0].name < days[1].name


def test_nobody_else_can_read_it(path: Path) -> None:
    write(path, entry())
    with Ledger(path) as ledger:
        ledger.note(entry())
        ledger.flush()
        assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_there_is_no_column_for_what_was_said_or_for_keys(path: Path) -> None:
    write(path, entry())
    with closing(sqlite3.connect(path)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(requests)")]
    assert set(columns) == {
        *("id", "time", "session", "provider", "model", "source", "cost", "cost_without_cache", "saved", "seconds"),
        *("first_token_seconds", "verdict"),
        *(field.name for field in dataclasses.fields(Usage)),
    }


def test_several_processes_write_at_once(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.money.ledgers import entry; from kvstet.money.ledger import Ledger\n"
        "with Ledger(Path(sys.argv[1])) as ledger:\n"
        "    for number in range(200):\n"
        "        ledger.note(entry(number))\n"
        "        if number % 20 == 0: ledger.flush()\n"
    )
    root = Path(__file__).parents[2]
    started = [subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root) for _ in range(3)]
    assert [each.wait(60) for each in started] == [0, 0, 0]
    assert len(Ledger(path).entries()) == 600


def test_a_request_does_not_wait_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    insert = Ledger._write
    monkeypatch.setattr(Ledger, "_write", lambda self, batch: goes_on.wait(30) and insert(self, batch))
    with Ledger(path) as ledger:
        started = time.perf_counter()
        for number in range(1000):
            ledger.note(entry(number))
        assert time.perf_counter() - started < 1
        goes_on.set()
    assert len(Ledger(path).entries()) == 1000


def test_what_does_not_fit_into_memory_is_lost_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on = threading.Event()
    insert = Ledger._write
    monkeypatch.setattr(Ledger, "_write", lambda self, batch: goes_on.wait(30) and insert(self, batch))
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    with caplog.at_level(logging.WARNING), Ledger(path) as ledger:
        for number in range(100):
            ledger.note(entry(number))
        goes_on.set()
    assert "cannot be written as fast as requests come" in caplog.text
    assert 10 <= len(Ledger(path).entries()) <= 100


@pytest.mark.parametrize("damage", ["no database", "cut off", "torn", "empty"])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(
    path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, *(entry(number, verdict="x" * 500) for number in range(200)))
    data = path.read_bytes()
    match damage:
        case "no database":
            path.write_bytes(b"this is no database" * 1000)
        case "cut off":
            path.write_bytes(data[: len(data) // 2 + 100])
        case "torn":
            # All but the first page, which says what there is.
            path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
        case _:
            path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        write(path, entry(7))
        assert Ledger(path).entries() == [entry(7)]
    aside = [each for each in path.parent.iterdir() if ".damaged-" in each.name]
    assert len(aside) == (damage != "empty")
    assert ("is set aside as" in caplog.text) == (damage != "empty")


def test_the_database_of_another_program_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.sqlite"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(LedgerUnavailable, match="another program has made it"):
        Ledger(path).entries()
    with caplog.at_level(logging.WARNING):
        write(path, entry())
    assert "1 requests are not in the account of usage" in caplog.text
    assert [each.name for each in tmp_path.iterdir() if "damaged" in each.name] == []


def test_who_only_reads_moves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Not an account.\n" * 100)
    with pytest.raises(LedgerUnavailable, match="not a database"):
        Ledger(path).entries()
    assert path.read_text().startswith("Not an account.")


def test_an_entry_with_a_name_that_is_no_text_takes_no_other_one_along(path: Path) -> None:
    write(path, entry(0), entry(1, model="m\ud800"), entry(2))
    assert [each.model for each in Ledger(path).entries()] == [entry().model, "m?", entry().model]


@pytest.mark.timeout(20)
def test_a_disk_that_hangs_does_not_hold_up_the_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(Ledger, "_write", lambda self, batch: goes_on.wait(30))
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    ledger = Ledger(path)
    for number in range(10):
        ledger.note(entry(number))
    ledger.close()
    ledger.close()
    goes_on.set()
    ledger.flush()


def test_the_file_of_a_newer_kvstet_is_left_alone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, entry())
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(LedgerUnavailable, match="a newer kvstet has written it"):
        Ledger(path).entries()
    with caplog.at_level(logging.WARNING):
        write(path, entry())
    assert "1 requests are not in the account of usage" in caplog.text
    assert [each.name for each in path.parent.iterdir() if "damaged" in each.name] == []


def test_a_folder_that_cannot_be_made_loses_entries_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        write(tmp_path / "file" / "ledger.sqlite", entry())
    assert "are not in the account of usage" in caplog.text


def test_one_entry_that_cannot_be_written_does_not_end_the_account(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), Ledger(path) as ledger:
        ledger.note(entry(usage=Usage(num_input_tokens=2**70)))
        ledger.flush()
        ledger.note(entry())
        assert ledger.entries() == [entry()]
    assert "not in the account" in caplog.text


def test_after_the_end_nothing_is_taken_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(path)
    ledger.note(entry())
    ledger.close()
    ledger.close()
    with caplog.at_level(logging.WARNING):
        ledger.note(entry())
    assert "after the account of usage was closed" in caplog.text
    assert len(ledger.entries()) == 1
    assert "kvstet-ledger" not in {thread.name for thread in threading.enumerate()}


def test_the_usual_place_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KVSTET_LEDGER", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path().name == "ledger.sqlite"
    assert default_path().parts[-3:-1] == ("kvstet", "usage")
    monkeypatch.setenv("KVSTET_LEDGER", str(tmp_path / "mine.sqlite"))
    assert Ledger().path == tmp_path / "mine.sqlite"
