"""The SQLite file under the index: its tables, and how it is opened, judged and replaced."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("kvstet.cache")

SCHEMA_VERSION = 3
BUSY_SECONDS = 2.0

_SCHEMA = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY, fingerprint BLOB NOT NULL UNIQUE, name TEXT NOT NULL DEFAULT '',
    description TEXT NOT NULL DEFAULT '', first_used REAL NOT NULL, last_used REAL NOT NULL,
    num_blobs INTEGER NOT NULL DEFAULT 0, num_bytes INTEGER NOT NULL DEFAULT 0);
CREATE TABLE blobs (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, kind INTEGER NOT NULL, prefix BLOB NOT NULL,
    start INTEGER NOT NULL, parent BLOB NOT NULL, origin INTEGER NOT NULL, stop INTEGER NOT NULL,
    seconds REAL NOT NULL, num_hits INTEGER NOT NULL, last_used REAL NOT NULL, num_bytes INTEGER NOT NULL,
    tokens BLOB NOT NULL, UNIQUE (prefix, model, kind, start));
CREATE TRIGGER blob_added AFTER INSERT ON blobs BEGIN
    UPDATE models SET num_blobs = num_blobs + 1, num_bytes = num_bytes + new.num_bytes WHERE id = new.model;
END;
CREATE TRIGGER blob_resized AFTER UPDATE OF num_bytes ON blobs BEGIN
    UPDATE models SET num_bytes = num_bytes + new.num_bytes - old.num_bytes WHERE id = new.model;
END;
CREATE TRIGGER blob_deleted AFTER DELETE ON blobs BEGIN
    UPDATE models SET num_blobs = num_blobs - 1, num_bytes = num_bytes - old.num_bytes WHERE id = old.model;
END;
CREATE TABLE writes (minute INTEGER PRIMARY KEY, num_bytes INTEGER NOT NULL);
CREATE TABLE quarantine (
    fingerprint BLOB, prefix BLOB, noted REAL NOT NULL, divergence REAL NOT NULL, floor REAL NOT NULL,
    PRIMARY KEY (fingerprint, prefix)) WITHOUT ROWID;
CREATE TABLE noise_floors (fingerprint BLOB PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE drift_gates (fingerprint BLOB PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE file_hashes (
    path TEXT PRIMARY KEY, num_bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
    digest BLOB NOT NULL) WITHOUT ROWID;
"""


class NonsenseRow(sqlite3.DatabaseError):
    """SQLite takes the row for sound, but nobody can have written it."""


def is_damaged(error: sqlite3.Error) -> bool:
    """The database itself is at fault, and not the disk or another process."""
    if isinstance(error, NonsenseRow):
        return True
    code = getattr(error, "sqlite_errorcode", 0)
    is_broken = code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    # Cut off, it ends within a page, or reads as empty.
    return is_broken or code == sqlite3.SQLITE_IOERR_SHORT_READ or "no such " in str(error)


def open_or_replace(path: Path) -> sqlite3.Connection:
    """The database; a new one where there is none, or one that is damaged or not ours. `locked` must be held."""
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        logger.warning("The index of the cache on disk is rebuilt from the files: %s (%s).", error, path)
        delete(path)
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        delete(path)  # a log without its database
        # SQLite would create it for everyone to read; its other files take over this one's mode.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    # Whoever owns it may be another thread than the one that opened it; only one uses it at a time.
    db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA secure_delete = ON")  # conversations are private, deleted ones too
    version = db.execute("PRAGMA user_version").fetchone()[0]
    num_tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if version == 0 and num_tables == 0:
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        raise _ForeignVersion(f"its version is {version} and not {SCHEMA_VERSION}")


class _ForeignVersion(sqlite3.DatabaseError):
    """Another version of kvstet, or another program, has made this database."""

    sqlite_errorcode = sqlite3.SQLITE_NOTADB


def delete(path: Path) -> None:
    """With the files that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Generator[None]:
    """One process at a time decides what becomes of the database at ``path``."""
    # Not the file itself: to close it would drop the locks that SQLite holds on it.
    file = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
