"""The index of a cache folder: an SQLite database of what its files hold. Derived data: the files can rebuild it.

One row per blob and model. `DiskStore` keeps rows and files together, and rebuilds an index that is lost or damaged.
Methods raise sqlite3.Error; `database.is_damaged` tells whether another index would help.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstet.cache.disk import database
from kvstet.cache.disk.blobfile import KINDS, Record
from kvstet.cache.disk.database import NonsenseRow
from kvstet.cache.disk.packing import packed, unpacked
from kvstet.cache.tier import BlobKey

MAX_COUNT = 1 << 60
"""More than any number of tokens, bytes or hits; SQLite's own limit is not far above."""

BUDGET_SECONDS = 3600
"""The write budget is one of the last hour."""
MEMORY_OF_WRITES_SECONDS = 24 * 3600
"""Longer than the budget's hour, so that a clock that jumps ahead and back does not clear it."""

_PUT = """
INSERT INTO blobs (model, prefix, kind, start, parent, origin, stop, seconds, num_hits, last_used, num_bytes, tokens)
VALUES ((SELECT id FROM models WHERE fingerprint = ?), ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (prefix, model, kind, start) DO UPDATE SET
    parent = excluded.parent, origin = excluded.origin, stop = excluded.stop, seconds = excluded.seconds,
    num_hits = excluded.num_hits, last_used = excluded.last_used, num_bytes = excluded.num_bytes,
    tokens = excluded.tokens
"""

_RECORDS = """
SELECT sequence, kind, prefix, start, parent, origin, stop, tokens, seconds, num_hits, last_used, num_bytes FROM blobs
WHERE model = (SELECT id FROM models WHERE fingerprint = :fingerprint) AND sequence > :after
    AND prefix NOT IN (SELECT prefix FROM quarantine WHERE fingerprint = :fingerprint)
ORDER BY stop, origin
"""

_ADD_WRITE = (
    "INSERT INTO writes VALUES (?, ?) ON CONFLICT (minute) DO UPDATE SET num_bytes = num_bytes + excluded.num_bytes"
)

_ONE_BLOB = "model = (SELECT id FROM models WHERE fingerprint = ?) AND prefix = ? AND kind = ? AND start = ?"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model, or one set of its options, that has blobs in the folder."""

    fingerprint: bytes
    name: str
    num_blobs: int
    num_bytes: int
    last_used: float
    description: str = ""


@dataclass(frozen=True, slots=True)
class ForeignBlob:
    """Another model's blob, as far as it matters for eviction."""

    fingerprint: bytes
    key: BlobKey
    stop: int
    num_bytes: int
    num_hits: int
    last_used: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A prefix whose state was found to be wrong."""

    prefix: bytes
    noted: float
    divergence: float
    floor: float


class Index:
    """The open database. Times are unix times; those in the future are read as now."""

    def __init__(self, path: Path, *, clock: Callable[[], float]) -> None:
        """Open or create it; one that is not ours is set aside. Raises sqlite3.Error and OSError."""
        self.path = path
        self._clock = clock
        with database.locked(path):
            self._db = database.open_or_replace(path)
            self._inode = path.stat().st_ino

    @property
    def is_gone(self) -> bool:
        """The file was deleted or is another one now, so that nobody else sees what we do."""
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def set_aside(self) -> None:
        """Close the database, and delete it, if it is still the one we opened."""
        try:
            if not self.is_gone:
                with database.locked(self.path):
                    # While we hold it open, no other file can have its inode.
                    if not self.is_gone:
                        database.delete(self.path)
        finally:
            self.close()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """All or nothing, and no other process changes the index meanwhile. Those within belong to the outer one."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has ended it by itself where the disk is full or broken.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    # Models

    def register(self, fingerprint: bytes, name: str = "", description: str = "") -> None:
        """The model is in use now; empty texts leave those that are there."""
        now = self._clock()
        with self.transaction():
            self._add_models([fingerprint])
            self._db.execute(
                "UPDATE models SET name = coalesce(nullif(?, ''), name), last_used = ?,"
                " description = coalesce(nullif(?, ''), description) WHERE fingerprint = ?",
                (name, now, description, fingerprint),
            )

    def models(self) -> list[ModelEntry]:
        """Last used first."""
        rows = self._db.execute(
            "SELECT fingerprint, name, num_blobs, num_bytes, min(last_used, ?), description FROM models"
            " ORDER BY last_used DESC, id",
            (self._clock(),),
        )
        return [ModelEntry(*row) for row in rows]

    @property
    def num_bytes(self) -> int:
        """Of all blobs."""
        return int(self._db.execute("SELECT coalesce(sum(num_bytes), 0) FROM models").fetchone()[0])

    # Blobs

    def put(self, blobs: Iterable[tuple[bytes, Record]], num_written_bytes: int = 0) -> None:
        """Add blobs, each with its model's fingerprint, and what was written to the write budget, at once."""
        blobs = list(blobs)
        with self.transaction():
            self._add_models(dict.fromkeys(fingerprint for fingerprint, _ in blobs))
            self._db.executemany(_PUT, (_row(fingerprint, record) for fingerprint, record in blobs))
            if num_written_bytes:
                self._add_writes([(self._clock(), num_written_bytes)])

    def delete(self, blobs: Iterable[tuple[bytes, BlobKey]]) -> None:
        with self.transaction():
            self._db.executemany(f"DELETE FROM blobs WHERE {_ONE_BLOB}", (_where(*blob) for blob in blobs))

    def has(self, fingerprint: bytes, key: BlobKey) -> bool:
        row = self._db.execute(f"SELECT 1 FROM blobs WHERE {_ONE_BLOB}", _where(fingerprint, key)).fetchone()
        return row is not None

    def records(self, fingerprint: bytes, after: int = 0) -> list[tuple[int, Record]]:
        """One model's blobs with a higher sequence number than ``after``, parents first, quarantined ones left out.

        Later additions have higher numbers, whichever process makes them.
        """
        now = self._clock()
        rows = self._db.execute(_RECORDS, {"fingerprint": fingerprint, "after": after})
        return [(row[0], _record(row[1:], now)) for row in rows]

    def sizes(self) -> Iterator[tuple[bytes, BlobKey, int]]:
        """Fingerprint, key and size of every blob."""
        rows = self._db.execute(
            "SELECT fingerprint, kind, prefix, start, blobs.num_bytes FROM blobs JOIN models ON model = models.id"
        )
        for fingerprint, kind, prefix, start, num_bytes in rows:
            yield fingerprint, _key(kind, prefix, start), num_bytes

    def foreign(self, fingerprint: bytes) -> list[ForeignBlob]:
        """The blobs of all other models."""
        rows = self._db.execute(
            "SELECT fingerprint, kind, prefix, start, stop, blobs.num_bytes, num_hits, min(blobs.last_used, ?), seconds"
            " FROM blobs JOIN models ON model = models.id WHERE fingerprint != ?",
            (self._clock(), fingerprint),
        )
        return [_foreign(row) for row in rows]

    def touch(self, fingerprint: bytes, used: Iterable[tuple[BlobKey, int, float]]) -> None:
        """Set hits and last use of blobs."""
        rows = [(hits, last_used, *_where(fingerprint, key)) for key, hits, last_used in used]
        with self.transaction():
            self._db.executemany(f"UPDATE blobs SET num_hits = ?, last_used = ? WHERE {_ONE_BLOB}", rows)
            self._db.execute("UPDATE models SET last_used = ? WHERE fingerprint = ?", (self._clock(), fingerprint))

    # Write budget

    def add_writes(self, writes: Iterable[tuple[float, int]]) -> None:
        """Note when how many bytes were written."""
        with self.transaction():
            self._add_writes(writes)

    def num_written_bytes(self) -> int:
        """By all processes in the last hour, or a minute more."""
        since = _minute(self._clock() - BUDGET_SECONDS)
        self._bring_back_future_writes()
        rows = self._db.execute("SELECT coalesce(sum(num_bytes), 0) FROM writes WHERE minute >= ?", (since,))
        return int(rows.fetchone()[0])

    # Quarantine, noise floors, drift gates, hashes of model files

    def quarantine(self, fingerprint: bytes, prefixes: Iterable[bytes], divergence: float, floor: float) -> None:
        rows = [(fingerprint, prefix, self._clock(), divergence, floor) for prefix in prefixes]
        with self.transaction():
            self._db.executemany("INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?)", rows)

    def quarantined(self, fingerprint: bytes) -> list[Quarantined]:
        query = "SELECT prefix, min(noted, ?), divergence, floor FROM quarantine WHERE fingerprint = ?"
        return [Quarantined(*row) for row in self._db.execute(query, (self._clock(), fingerprint))]

    def quarantined_keys(self, fingerprint: bytes) -> list[BlobKey]:
        """What is kept of quarantined prefixes."""
        query = (
            "SELECT kind, prefix, start FROM blobs"
            " WHERE model = (SELECT id FROM models WHERE fingerprint = :fingerprint)"
            " AND prefix IN (SELECT prefix FROM quarantine WHERE fingerprint = :fingerprint)"
        )
        return [_key(*row) for row in self._db.execute(query, {"fingerprint": fingerprint})]

    def noise_floor(self, fingerprint: bytes) -> str | None:
        row = self._db.execute("SELECT content FROM noise_floors WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return row and row[0]

    def set_noise_floor(self, fingerprint: bytes, content: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO noise_floors VALUES (?, ?)", (fingerprint, content))

    def drift_gate(self, fingerprint: bytes) -> str | None:
        row = self._db.execute("SELECT content FROM drift_gates WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return row and row[0]

    def set_drift_gate(self, fingerprint: bytes, content: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO drift_gates VALUES (?, ?)", (fingerprint, content))

    def file_hash(self, path: Path, state: os.stat_result) -> bytes | None:
        """None where the file is not, by size, mtime and inode, the one whose hash was noted."""
        row = self._db.execute(
            "SELECT num_bytes, mtime_ns, inode, digest FROM file_hashes WHERE path = ?", (str(path),)
        )
        found = row.fetchone()
        return found[3] if found and found[:3] == _file_state(state) else None

    def set_file_hash(self, path: Path, digest: bytes, state: os.stat_result) -> None:
        """``state`` is from before the file was read, so that a change meanwhile shows."""
        row = (str(path), *_file_state(state), digest)
        self._db.execute("INSERT OR REPLACE INTO file_hashes VALUES (?, ?, ?, ?, ?)", row)

    # All of it

    def clear(self, fingerprint: bytes | None) -> None:
        """Forget a model, or all (None), and leave no trace of it in the file. The write budget stays used."""
        everything = ("blobs", "models", "quarantine", "noise_floors", "drift_gates", "file_hashes")
        with self.transaction():
            if fingerprint is None:
                for table in everything:
                    self._db.execute(f"DELETE FROM {table}")
            else:
                blobs = "DELETE FROM blobs WHERE model = (SELECT id FROM models WHERE fingerprint = ?)"
                self._db.execute(blobs, (fingerprint,))
                for table in ("models", "quarantine", "noise_floors", "drift_gates"):
                    self._db.execute(f"DELETE FROM {table} WHERE fingerprint = ?", (fingerprint,))
        # What was deleted is overwritten with zeros; that the file shrinks can wait until nobody else works on it.
        with contextlib.suppress(sqlite3.OperationalError):
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # Inside

    def _add_models(self, fingerprints: Iterable[bytes]) -> None:
        now = self._clock()
        self._db.executemany(
            "INSERT OR IGNORE INTO models (fingerprint, first_used, last_used) VALUES (?, ?, ?)",
            ((fingerprint, now, now) for fingerprint in fingerprints),
        )

    def _add_writes(self, writes: Iterable[tuple[float, int]]) -> None:
        now = self._clock()
        rows = [(_minute(min(when, now)), num_bytes) for when, num_bytes in writes]
        self._db.executemany(_ADD_WRITE, rows)
        self._db.execute("DELETE FROM writes WHERE minute < ?", (_minute(now - MEMORY_OF_WRITES_SECONDS),))

    def _bring_back_future_writes(self) -> None:
        """Where the clock was set back, writes from what is the future now age like those of this minute."""
        minute = _minute(self._clock())
        if not self._db.execute("SELECT 1 FROM writes WHERE minute > ?", (minute,)).fetchone():
            return
        with self.transaction():
            ahead = self._db.execute("SELECT sum(num_bytes) FROM writes WHERE minute > ?", (minute,)).fetchone()[0]
            self._db.execute("DELETE FROM writes WHERE minute > ?", (minute,))
            self._db.execute(_ADD_WRITE, (minute, ahead or 0))


def _row(fingerprint: bytes, record: Record) -> tuple[Any, ...]:
    return (
        *_where(fingerprint, record.key),
        record.parent,
        record.origin,
        record.stop,
        record.seconds,
        record.num_hits,
        record.last_used,
        record.num_bytes,
        packed(record.tokens),
    )


def _where(fingerprint: bytes, key: BlobKey) -> tuple[Any, ...]:
    return fingerprint, key.prefix, KINDS.index(key.kind), key.start


def _key(kind: Any, prefix: Any, start: Any) -> BlobKey:
    if kind not in range(len(KINDS)) or not isinstance(prefix, bytes) or not _is_count(start):
        raise NonsenseRow(f"a row names a blob {kind!r} {prefix!r} {start!r}")
    return BlobKey(KINDS[kind], prefix, start)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MAX_COUNT


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _foreign(row: tuple[Any, ...]) -> ForeignBlob:
    owner, kind, prefix, start, stop, num_bytes, num_hits, last_used, seconds = row
    key = _key(kind, prefix, start)
    if not all(map(_is_count, (stop, num_bytes, num_hits))) or not all(map(_is_time, (last_used, seconds))):
        raise NonsenseRow(f"a row says of {key.kind} {key.prefix.hex()} what cannot be")
    return ForeignBlob(owner, key, stop, num_bytes, num_hits, last_used, seconds)


def _record(row: tuple[Any, ...], now: float) -> Record:
    kind, prefix, start, parent, origin, stop, tokens, seconds, num_hits, last_used, num_bytes = row
    key = _key(kind, prefix, start)
    is_sound = (
        isinstance(parent, bytes)
        and isinstance(tokens, bytes)
        and all(map(_is_count, (origin, stop, num_hits, num_bytes)))
        and all(map(_is_time, (seconds, last_used)))
    )
    if not is_sound:
        raise NonsenseRow(f"a row says of {key.kind} {prefix.hex()} what cannot be")
    try:
        tokens = unpacked(tokens, stop - origin)
    except ValueError as error:
        raise NonsenseRow(f"a row has of {key.kind} {prefix.hex()} {error}") from error
    return Record(key, parent, origin, stop, tokens, seconds, num_hits, min(last_used, now), num_bytes)


def _file_state(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_size, state.st_mtime_ns, state.st_ino


def _minute(seconds: float) -> int:
    return int(seconds // 60)
