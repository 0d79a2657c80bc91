"""The cache folder: blob files and their index, of all models.

::

    <folder>/v1/index.sqlite3                                   what lies in the files (`kvstet.cache.disk.index`)
    <folder>/v1/<model>/<2 digits>/<prefix>-<start>.s or .c     one blob each (`kvstet.cache.disk.blobfile`)
    <folder>/v1/temp/                                           files that are being written

The files are the truth. A blob exists from the rename of its file on; its row follows, and a row that is missing is
found at the next start. Several processes may share a folder: each may publish and delete what it likes, and what one
deletes is a miss for the others.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import xxhash

from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.database import is_damaged
from kvstet.cache.disk.index import Index, ModelEntry, Quarantined
from kvstet.cache.tier import BlobKey
from kvstet.errors import DamagedBlob, DiskUnavailable

logger = logging.getLogger("kvstet.cache")

LAYOUT = "v1"
TEMP = "temp"
INDEX = "index.sqlite3"
MODEL_FOLDER = re.compile(r"[0-9a-f]{16}")

T = TypeVar("T")


class DiskStore:
    """A cache folder with the blobs of all models. Not thread-safe. Its methods raise DiskUnavailable."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self.clock = clock
        self.num_damaged = 0
        """Files that were lost, or not what was written, and were given up."""
        self.num_rebuilds = 0
        """How often the index was replaced while this store was open."""
        self._root = folder / LAYOUT
        self.temp_folder = self._root / TEMP
        self._index: Index | None = None
        with self._translated():
            self._index = self._open()
        try:
            self.run(self._reconcile)
        except BaseException:
            self.close()
            raise

    # What is kept

    @property
    def used_bytes(self) -> int:
        """Bytes of all blob files."""
        return self.run(lambda index: index.num_bytes)

    @property
    def free_bytes(self) -> int:
        """What the disk has left."""
        with self._translated():
            return shutil.disk_usage(self._root).free

    def models(self) -> list[ModelEntry]:
        """Last used first."""
        return self.run(lambda index: index.models())

    def records(self, fingerprint: bytes) -> list[Record]:
        """One model's blobs without the quarantined ones, parents before children."""
        return [record for _, record in self.run(lambda index: index.records(fingerprint))]

    def path(self, fingerprint: bytes, key: BlobKey) -> Path:
        """Where a blob is, or would be."""
        return Path(self._path(fingerprint, key))

    def verify(self) -> Iterator[tuple[Path, str | None]]:
        """Read every file; with each, what is wrong with it (None: sound)."""
        with self._translated():
            paths = blob_files(self.folder)
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                yield path, damage(path)

    # Changing

    # What depends on whether a file is there is decided while the index is locked, and files are deleted under that
    # lock: so rows and files agree, whatever two processes do at once.

    def publish(self, fingerprint: bytes, record: Record, num_written_bytes: int) -> None:
        """Add the row of a file that was just written, unless another process has deleted it since."""

        def act(index: Index) -> None:
            with index.transaction():
                is_there = os.path.exists(self._path(fingerprint, record.key))
                index.put([(fingerprint, record)] if is_there else [], num_written_bytes)

        self.run(act)

    def remove(self, fingerprint: bytes, keys: Iterable[BlobKey]) -> int:
        """Delete blobs; the bytes that became free."""
        keys = list(keys)

        def act(index: Index) -> int:
            num_freed_bytes = 0
            removed: list[tuple[bytes, BlobKey]] = []
            fault: OSError | None = None
            with index.transaction():
                for key in keys:
                    try:
                        num_freed_bytes += _unlink(self._path(fingerprint, key))
                    except OSError as error:
                        fault = error
                        break
                    removed.append((fingerprint, key))
                # Those that are gone are gone, also where the next one cannot be deleted.
                index.delete(removed)
            if fault is not None:
                raise fault
            return num_freed_bytes

        return self.run(act)

    def unlink(self, fingerprint: bytes, keys: Iterable[BlobKey]) -> None:
        """Delete the files of blobs, while the index cannot be used; to `remove` them is still due."""
        with self._translated():
            for key in keys:
                _unlink(self._path(fingerprint, key))

    def remove_lost(self, fingerprint: bytes, key: BlobKey) -> bool:
        """Delete the row of a blob whose file is not there. False: another process has deleted both, as it should."""

        def act(index: Index) -> bool:
            with index.transaction():
                is_lost = index.has(fingerprint, key) and not os.path.exists(self._path(fingerprint, key))
                if is_lost:
                    index.delete([(fingerprint, key)])
            return is_lost

        return self.run(act)

    def purge(self, fingerprint: bytes | None) -> None:
        """Delete all that is kept of a model, or of all (None). What was written this hour still counts."""
        with self._translated():
            for folder in self._model_folders():
                if fingerprint is None or folder.name == _model_folder(fingerprint):
                    for entry in _blob_entries(folder.path):
                        _unlink(entry.path)
                    # Not empty where another process is publishing again.
                    shutil.rmtree(folder.path, ignore_errors=True)
            self._remove_orphans()
        self.run(lambda index: index.clear(fingerprint))

    # Notes

    def quarantined(self, fingerprint: bytes) -> list[Quarantined]:
        """Prefixes of a model whose state was found to be wrong."""
        return self.run(lambda index: index.quarantined(fingerprint))

    def noise_floor(self, fingerprint: bytes) -> str | None:
        """What `set_noise_floor` was given."""
        return self.run(lambda index: index.noise_floor(fingerprint))

    def set_noise_floor(self, fingerprint: bytes, text: str) -> None:
        self.run(lambda index: index.set_noise_floor(fingerprint, text))

    def drift_gate(self, fingerprint: bytes) -> str | None:
        """What `set_drift_gate` was given."""
        return self.run(lambda index: index.drift_gate(fingerprint))

    def set_drift_gate(self, fingerprint: bytes, text: str) -> None:
        self.run(lambda index: index.set_drift_gate(fingerprint, text))

    def file_hash(self, path: Path) -> bytes | None:
        """What `set_file_hash` was given for this very file: its size, mtime and inode are the same. Raises OSError."""
        state = path.stat()
        return self.run(lambda index: index.file_hash(path, state))

    def set_file_hash(self, path: Path, digest: bytes, state: os.stat_result) -> None:
        """``state`` is from before the file was read, so that a change meanwhile shows."""
        self.run(lambda index: index.set_file_hash(path, digest, state))

    # Inside

    def run(self, act: Callable[[Index], T]) -> T:
        """Do something with the index; where it is lost or damaged, with one that was rebuilt from the files."""
        with self._translated():
            index = self._index
            if index is None or index.is_gone:
                index = self._rebuilt("it was deleted")
            try:
                return act(index)
            except sqlite3.Error as error:
                if not is_damaged(error):
                    raise
                return act(self._rebuilt(str(error)))

    def close(self) -> None:
        if self._index is not None:
            self._index.close()

    def _open(self) -> Index:
        _make_private(self.folder, self._root)
        blobfile.make_private(self.temp_folder)
        return Index(self._root / INDEX, clock=self.clock)

    def _rebuilt(self, reason: str) -> Index:
        old, self._index = self._index, None
        if old is not None:
            logger.warning("The index of the cache on disk is rebuilt from the files: %s (%s).", reason, self.folder)
            old.set_aside()
        self.num_rebuilds += 1
        index = self._open()
        try:
            self._reconcile(index)
        except BaseException:
            index.close()
            raise
        self._index = index
        return index

    def _reconcile(self, index: Index) -> None:
        """Make rows and files agree, whatever a process that was killed left behind."""
        self._remove_orphans()
        rows = {self._path(fingerprint, key): (fingerprint, key, size) for fingerprint, key, size in index.sizes()}
        unknown: list[os.DirEntry[str]] = []
        changed: list[os.DirEntry[str]] = []
        for entry in self._entries():
            row = rows.get(entry.path)
            if row is None:
                unknown.append(entry)
            elif row[2] != _size(entry.path):
                changed.append(entry)
            else:
                del rows[entry.path]
        found = list(self._headers(unknown + changed))
        stale = {entry.path: rows[entry.path] for entry in changed}
        with index.transaction():
            stale |= {path: row for path, row in rows.items() if not os.path.exists(path)}
            index.delete((fingerprint, key) for fingerprint, key, _ in stale.values())
            index.put(blob for blob in found if os.path.exists(self._path(blob[0], blob[1].key)))
            # Of what has no row, the write budget knows nothing either.
            index.add_writes(_writes(entry.path for entry in unknown))

    def _headers(self, entries: Iterable[os.DirEntry[str]]) -> Iterator[tuple[bytes, Record]]:
        """Fingerprint and record of each file; damaged ones are deleted."""
        num_damaged = 0
        for entry in entries:
            try:
                header = blobfile.read_header(Path(entry.path))
            except FileNotFoundError:
                continue
            except DamagedBlob:
                header = None
            if header and self._path(header.fingerprint, header.record.key) == entry.path:
                yield header.fingerprint, header.record
            else:
                num_damaged += 1
                _unlink(entry.path)
        if num_damaged:
            self.num_damaged += num_damaged
            logger.warning("%d damaged files were removed from the cache on disk (%s).", num_damaged, self.folder)

    def _path(self, fingerprint: bytes, key: BlobKey) -> str:
        return f"{self._root}/{_model_folder(fingerprint)}/{blobfile.file_name(key)}"

    def _model_folders(self) -> list[os.DirEntry[str]]:
        return _model_folders(self._root)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        """All blob files."""
        for folder in self._model_folders():
            yield from _blob_entries(folder.path)

    def _remove_orphans(self) -> None:
        with os.scandir(self.temp_folder) as entries:
            for entry in entries:
                blobfile.remove_orphan(Path(entry.path))

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise DiskUnavailable(f"The cache on disk cannot be used: {reason(error)} ({self.folder}).") from error

    def __repr__(self) -> str:
        return f"<DiskStore {self.folder}>"


def is_cache_folder(folder: Path) -> bool:
    """A store was opened there before."""
    return any((folder / LAYOUT / name).exists() for name in (INDEX, TEMP))


def blob_files(folder: Path) -> list[Path]:
    """All blobs of a cache folder, without a look at its index. Raises OSError."""
    models = _model_folders(folder / LAYOUT)
    return sorted(Path(entry.path) for model in models for entry in _blob_entries(model.path))


def index_bytes(folder: Path) -> int:
    """What the index takes, with the log of its last changes. Raises OSError."""
    with os.scandir(folder / LAYOUT) as entries:
        return sum(_size(entry.path) or 0 for entry in entries if entry.name.startswith(INDEX))


def damage(path: Path) -> str | None:
    """Read a blob's file; what is wrong with it (None: it is sound). Raises FileNotFoundError."""
    try:
        header = blobfile.verify(path)
    except DamagedBlob as error:
        return str(error)
    except FileNotFoundError:
        raise
    except OSError as error:
        return f"{path} cannot be read: {reason(error)}."
    is_at_home = path.parents[1].name == _model_folder(header.fingerprint)
    return None if is_at_home else f"{path} lies in the folder of another model."


def reason(error: BaseException) -> str:
    """What went wrong, in words that are the same for every file."""
    if isinstance(error, MemoryError):
        return "out of memory"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text[:1].lower() + text[1:]


@functools.lru_cache(maxsize=1024)
def _model_folder(fingerprint: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(fingerprint)


def _model_folders(root: str | Path) -> list[os.DirEntry[str]]:
    """What else lies there is not ours."""
    with os.scandir(root) as entries:
        return [entry for entry in entries if entry.is_dir() and MODEL_FOLDER.fullmatch(entry.name)]


def _blob_entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            parts = [entry.path for entry in entries if entry.is_dir()]
        for part in parts:
            with os.scandir(part) as entries:
                yield from (entry for entry in entries if blobfile.is_blob_name(entry.name))
    except FileNotFoundError:
        return  # purged by another process


def _make_private(folder: Path, root: Path) -> None:
    """Only this user may look into ``root``, nor into ``folder`` either, unless it is used for something else too."""
    blobfile.make_private(root)
    for path in (folder, root):
        is_ours = {entry.name for entry in path.iterdir()} <= {LAYOUT} or path == root
        if is_ours and path.stat().st_mode & 0o077:
            path.chmod(0o700)


def _size(path: str) -> int | None:
    """None: there is no such file."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


def _unlink(path: str) -> int:
    """The bytes that became free."""
    num_bytes = _size(path)
    if num_bytes is None:
        return 0
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.unlink(path)
    return num_bytes


def _writes(paths: Iterable[str]) -> Iterator[tuple[float, int]]:
    """When each file was written, and its size."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            state = os.stat(path)
            yield state.st_mtime, state.st_size
