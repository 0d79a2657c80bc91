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
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import platformdirs

from kvstet.errors import LedgerUnavailable
from kvstet.money.entry import LedgerEntry
from kvstet.types import Usage

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
                # Never behind the end, which nobody would take from there.
                self._waiting.put_nowait(entry)
            except queue.Full:
                logger.warning("The account of usage cannot be written as fast as requests come; one is not in it.")

    def flush(self) -> None:
        """Wait until all that was handed over is written, or lost."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits; a disk that hangs is not waited for."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        if self._writer is not None and not was_closed:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_SECONDS)
                self._writer.join(CLOSE_SECONDS)

    # Reading

    def entries(self, *, since: float | None = None, session: str | None = None) -> list[LedgerEntry]:
        """In the order of their times; ``session`` is a name or how it begins. Raises LedgerUnavailable.

        A file that is no account is left as it is: whoever reads may have named another one by mistake.
        """
        self.flush()
        if not self.path.exists():
            return []
        # Not LIKE: a name may have anything in it.
        query = (
            f"SELECT {', '.join(_COLUMNS)} FROM requests WHERE time >= ? AND instr(session, ?) = 1 ORDER BY time, id"
        )
        told = (since or 0.0, session or "")
        with _translated(self.path), closing(_opened(self.path)) as database:
            return list(map(_entry, database.execute(query, told)))

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
        """Into the account, or into a new one where it is damaged. Raises LedgerUnavailable."""
        rows = list(map(_row, batch))
        with _translated(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                _insert(self.path, rows)
            except sqlite3.DatabaseError as error:
                if not _is_damaged(error):
                    raise
                _set_aside(self.path, error)
                _insert(self.path, rows)


def _insert(path: Path, rows: Iterable[list[Any]]) -> None:
    with closing(_opened(path)) as database:
        database.execute("BEGIN IMMEDIATE")
        database.executemany(_INSERT, rows)
        database.execute("COMMIT")


def _row(entry: LedgerEntry) -> list[Any]:
    values = [*(getattr(entry, name) for name in _OWN), *(getattr(entry.usage, name) for name in _USAGE)]
    # The name of a model is whatever a client sends; SQLite takes nothing but text.
    return [value.encode(errors="replace").decode() if isinstance(value, str) else value for value in values]


def _entry(row: tuple[Any, ...]) -> LedgerEntry:
    own = dict(zip(_OWN, row, strict=False))
    return LedgerEntry(usage=Usage(**dict(zip(_USAGE, row[len(_OWN) :], strict=True))), **own)


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailable(f"The account of usage in {path} cannot be used: {error}.") from error


def _opened(path: Path) -> sqlite3.Connection:
    with _alone(path):
        return _connect(path)


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
        raise sqlite3.OperationalError("another program has made it")
    database.execute(f"SELECT {', '.join(_COLUMNS)} FROM requests ORDER BY id DESC LIMIT 1").fetchone()


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
