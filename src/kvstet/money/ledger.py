"""Where the account of what requests cost is kept: one SQLite file in the user's data folder, for all processes.

A request never waits for it: entries are handed to a thread, and one that cannot be written is lost with a warning.
A file that is damaged is set aside under another name, and a new one begun.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from datetime import datetime
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import platformdirs

from kvstet.errors import LedgerUnavailable
from kvstet.money.entry import LedgerEntry, Summary, summary_of
from kvstet.types import Usage

Result = TypeVar("Result")

logger = logging.getLogger("kvstet.money")

SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0
"""How long one process waits for another one's writing."""

MAX_WAITING = 10_000
"""Entries that wait for the disk; more are lost, so that a disk that hangs does not fill the memory."""

CLOSE_SECONDS = 10.0

_USAGE = tuple(each.name for each in fields(Usage))
_OWN = tuple(each.name for each in fields(LedgerEntry) if each.name != "usage")
_COLUMNS = (*_OWN, *_USAGE)
_TEXTS = ("session", "provider", "model", "source", "verdict")
_TYPES = {"time": "REAL NOT NULL", **dict.fromkeys(_TEXTS, "TEXT NOT NULL"), **dict.fromkeys(_USAGE, "INTEGER")}

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE requests (id INTEGER PRIMARY KEY, {", ".join(f"{name} {_TYPES.get(name, 'REAL')}" for name in _COLUMNS)});
CREATE INDEX requests_by_time ON requests (time);
CREATE INDEX requests_by_session ON requests (session, time);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_INSERT = f"INSERT INTO requests ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


def default_path() -> Path:
    """In the user's data folder, unless ``KVSTET_LEDGER`` names a file."""
    told = os.environ.get("KVSTET_LEDGER")
    if told:
        return Path(told).expanduser().absolute()
    return platformdirs.user_data_path("kvstet") / "usage" / "ledger.sqlite"


class Ledger:
    """The account at one path. It is opened when something is written or read; `close` writes what still waits."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_path()
        self._waiting: queue.Queue[LedgerEntry | None] = queue.Queue(MAX_WAITING)
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Ledger({self.path}, {self._waiting.qsize()} waiting)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def note(self, entry: LedgerEntry) -> None:
        """Hand an entry over; returns at once, and raises nothing."""
        with self._lock:
            if self._is_closed:
                logger.warning("A request was over after the account of usage was closed; it is not in it.")
                return
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="kvstet-ledger", daemon=True)
                self._writer.start()
        try:
            self._waiting.put_nowait(entry)
        except queue.Full:
            logger.warning("The account of usage cannot be written as fast as requests come; one is not in it.")

    def flush(self) -> None:
        """Wait until all that was handed over is written, or lost."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits; a disk that hangs is not waited for."""
        with self._lock:
            writer, self._is_closed = self._writer, True
        if writer is not None and writer.is_alive():
            self._waiting.put(None)
            writer.join(CLOSE_SECONDS)

    # Reading

    def entries(self, *, since: float | None = None, session: str | None = None) -> list[LedgerEntry]:
        """In the order of their times; ``session`` is a name or how it begins. Raises LedgerUnavailable."""
        self.flush()
        if not self.path.exists():
            return []
        # Not LIKE: a name may have anything in it.
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM requests WHERE time >= ? AND instr(session, ?) = 1 ORDER BY time, id"
        )
        told = (since or 0.0, session or "")
        rows = _done(self.path, lambda database: database.execute(query, told).fetchall())
        return [_entry(row) for row in rows]

    def by_session(self, *, since: float | None = None) -> list[Summary]:
        """The session that was last used comes last."""
        entries = sorted(self.entries(since=since), key=lambda entry: entry.session)
        groups = (summary_of(name, list(each)) for name, each in groupby(entries, key=lambda entry: entry.session))
        return sorted(groups, key=lambda each: each.last_time)

    def by_day(self, *, since: float | None = None, session: str | None = None) -> list[Summary]:
        """Days of this machine's clock, in their order."""
        entries = self.entries(since=since, session=session)
        return [summary_of(day, list(each)) for day, each in groupby(entries, key=_day)]

    # The thread that writes

    def _write_all(self) -> None:
        for batch in self._batches():
            try:
                self._write(batch)
            except Exception as error:
                # Whatever is wrong with one entry or the disk now, the next ones may be written.
                logger.warning("%d requests are not in the account of usage: %s", len(batch), error)
            for _ in batch:
                self._waiting.task_done()

    def _batches(self) -> Iterator[list[LedgerEntry]]:
        """What waits, together, until the end is handed over."""
        while True:
            batch: list[LedgerEntry] = []
            entry = self._waiting.get()
            while entry is not None:
                batch.append(entry)
                if self._waiting.empty():
                    break
                entry = self._waiting.get()
            if batch:
                yield batch
            if entry is None:
                self._waiting.task_done()
                return

    def _write(self, batch: Iterable[LedgerEntry]) -> None:
        rows = list(map(_row, batch))

        def insert(database: sqlite3.Connection) -> None:
            database.execute("BEGIN IMMEDIATE")
            database.executemany(_INSERT, rows)
            database.execute("COMMIT")

        _done(self.path, insert)


def _row(entry: LedgerEntry) -> list[Any]:
    return [*(getattr(entry, name) for name in _OWN), *(getattr(entry.usage, name) for name in _USAGE)]


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    own = dict(zip(_OWN, row, strict=False))
    return LedgerEntry(usage=Usage(**dict(zip(_USAGE, row[len(_OWN) :], strict=True))), **own)


def _day(entry: LedgerEntry) -> str:
    return datetime.fromtimestamp(entry.time).date().isoformat()


def _done(path: Path, action: Callable[[sqlite3.Connection], Result]) -> Result:
    """What ``action`` gives of the account; of a new one where there is none, or a damaged one.

    Raises LedgerUnavailable.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return _tried(path, action)
        except sqlite3.DatabaseError as error:
            if not _is_damaged(error):
                raise
            _set_aside(path, error)
            return _tried(path, action)
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"The account of usage in {path} cannot be used: {error}.") from error


def _tried(path: Path, action: Callable[[sqlite3.Connection], Result]) -> Result:
    with _alone(path):
        database = _connect(path)
    with closing(database):
        return action(database)


def _set_aside(path: Path, error: sqlite3.Error) -> None:
    """Unless another process has done it meanwhile."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    with _alone(path):
        if _is_sound(path):
            return
        logger.warning("The account of usage is damaged (%s); it is set aside as %s.", error, aside)
        for suffix in ("", "-wal", "-shm"):
            there = path.with_name(path.name + suffix)
            if there.exists():
                there.rename(aside.with_name(aside.name + suffix))


def _is_sound(path: Path) -> bool:
    try:
        with closing(_connect(path)) as database:
            return database.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        return False


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        # SQLite would create it for everyone to read; its other files take over this one's mode.
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        _prepare(database)
    except BaseException:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    num_tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version == 0 and num_tables == 0:
        database.executescript(_SCHEMA)
    elif version > SCHEMA_VERSION:
        raise sqlite3.OperationalError(f"a newer kvstet has written it, in version {version}")
    elif version != SCHEMA_VERSION:
        raise _ForeignFile("another program has made it")
    database.execute(f"SELECT {', '.join(_COLUMNS)} FROM requests ORDER BY id DESC LIMIT 1").fetchone()


class _ForeignFile(sqlite3.DatabaseError):
    """A database, but no account of ours."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


def _is_damaged(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0)
    is_broken = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    # Cut off, it ends within a page, or reads as empty.
    return is_broken or code == sqlite3.SQLITE_IOERR_SHORT_READ or "no such " in str(error)


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """One process at a time decides what becomes of a file that is new or damaged."""
    file = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
