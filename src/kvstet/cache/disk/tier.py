"""The disk tier: one model's blobs in a cache folder, and the thread that writes them."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.index import ForeignBlob, Index, ModelEntry, Quarantined
from kvstet.cache.disk.store import DiskStore, reason
from kvstet.cache.tier import BlobKey
from kvstet.errors import DamagedBlob, DiskUnavailable
from kvstet.types import Blob

__all__ = ["DiskStore", "DiskTier", "ForeignBlob", "ModelEntry", "Quarantined", "Record", "Written"]

logger = logging.getLogger("kvstet.cache")

PAUSE_SECONDS = 60.0
"""After a fault, the disk is left alone for so long."""

WHAT_FOLLOWS = "What it held is computed again."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a blob that was handed to the writer."""

    record: Record
    """With ``num_bytes`` of the file where ``error`` is None."""
    error: str | None
    """Why the blob is not on disk."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A blob in the writer's hands."""

    record: Record
    num_bytes: int
    future: Future[int]


@dataclass(frozen=True, slots=True)
class _Debt:
    """Something the folder or its index must still be told. To say it twice does no harm."""

    pay: Callable[[DiskStore], object]
    num_kept_bytes: int = 0
    """Of files that have no row yet."""
    num_written_bytes: int = 0
    """That the write budget does not know of yet."""


RESERVE_BYTES = 512 << 20


class _Pause:
    """Leaves a disk that fails alone for a while, and says each cause once until it works again."""

    def __init__(self, clock: Callable[[], float], what: str) -> None:
        self._clock = clock
        self._what = what
        self._began: float | None = None
        self._said: set[str] = set()

    @property
    def is_on(self) -> bool:
        return self._began is not None and 0 <= self._clock() - self._began < PAUSE_SECONDS

    def begin(self, cause: str) -> None:
        self._began = self._clock()
        if cause not in self._said:
            self._said.add(cause)
            logger.warning("%s; tried again every %d seconds: %s", self._what, PAUSE_SECONDS, cause)

    def end(self) -> None:
        if self._began is not None:
            self._began = None
            self._said.clear()
            logger.info("The cache on disk works again.")


class DiskTier:
    """Keeps blobs, does what it is told, and never raises what the disk does wrong: that is a miss, or is not kept.

    Not thread-safe: one thread owns it, the engine's. Only the writing of files happens on a thread of its own.
    """

    name = "disk"

    def __init__(
        self,
        store: DiskStore,
        fingerprint: bytes,
        *,
        capacity_bytes: int,
        write_bytes_per_hour: int | None,
        model_name: str = "",
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        """``reserve_bytes`` of the disk are left free for others, whatever the capacity."""
        self.capacity_bytes = capacity_bytes
        self.reserve_bytes = reserve_bytes
        self.num_written = 0
        self.num_written_bytes = 0
        self._store = store
        self._fingerprint = fingerprint
        self._model_name = model_name
        self._write_bytes_per_hour = write_bytes_per_hour
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="kvstet-disk-writer")
        self._jobs: list[_Job] = []
        self._finished: list[Written] = []
        self._debts: list[_Debt] = []
        self._known: set[BlobKey] = set()
        """Keys that the owner knows to be there."""
        self._last_sequence = 0
        self._revoked: set[BlobKey] = set()
        """Keys that were dropped while the writer had them in hand."""
        self._quarantined: dict[bytes, tuple[float, float]] = {}
        """Prefix -> divergence and floor."""
        self._last_used_bytes = 0
        self._num_rebuilds = store.num_rebuilds
        self._writing = _Pause(store.clock, f"State cannot be written to {store.folder}")
        self._indexing = _Pause(store.clock, f"The index of {store.folder} cannot be kept up to date")
        self._reading_faults: set[str] = set()
        self._register()
        self._pay_debts()
        for entry in self._ask(lambda store: store.quarantined(fingerprint), []):
            self._quarantined[entry.prefix] = (entry.divergence, entry.floor)

    # What is kept

    @property
    def used_bytes(self) -> int:
        """Of the whole folder, with what the writer has in hand."""
        self._last_used_bytes = self._ask(lambda store: store.used_bytes, self._last_used_bytes)
        in_hand = sum(job.num_bytes for job in self._jobs)
        return self._last_used_bytes + in_hand + sum(debt.num_kept_bytes for debt in self._debts)

    @property
    def num_damaged(self) -> int:
        """Files that were lost, or not what was written, and were given up."""
        return self._store.num_damaged

    def records(self) -> list[Record]:
        """This model's blobs, parents before children."""
        self._last_sequence = 0
        self._known.clear()
        return self.new_records()

    def new_records(self) -> list[Record]:
        """What other processes published since the last call, parents before children."""
        after = self._last_sequence
        rows = self._ask(lambda store: store.run(lambda index: index.records(self._fingerprint, after)), [])
        # Where the index was rebuilt just now, numbers have begun anew.
        self._last_sequence = max([self._last_sequence, *(sequence for sequence, _ in rows)])
        records = [record for _, record in rows if record.key not in self._known]
        self._known.update(record.key for record in records)
        return records

    def get(self, key: BlobKey) -> Blob | None:
        """The verified blob; None where it is lost, damaged or cannot be read now. What is damaged is given up."""
        if key.prefix in self._quarantined:
            return None
        try:
            return blobfile.read(self._store.path(self._fingerprint, key), self._fingerprint, key)
        except FileNotFoundError:
            self._note_missing(key)
        except DamagedBlob as error:
            self._give_up(key, str(error))
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno == errno.EIO:
                self._give_up(key, f"The disk cannot read {self._store.path(self._fingerprint, key)}.")
            elif (cause := reason(error)) not in self._reading_faults:
                self._reading_faults.add(cause)
                logger.warning("State on disk cannot be read and is computed again: %s", cause)
        return None

    @property
    def quarantined(self) -> frozenset[bytes]:
        """Prefixes whose state was found to be wrong, by any process."""
        return frozenset(self._quarantined)

    def noise_floor(self) -> str | None:
        """What `set_noise_floor` was given, by any process."""
        return self._ask(lambda store: store.noise_floor(self._fingerprint), None)

    def set_noise_floor(self, text: str) -> None:
        """Remember how far two cold runs of this model lie apart."""
        self._ask(lambda store: store.set_noise_floor(self._fingerprint, text), None)

    def drift_gate(self) -> str | None:
        """What `kvstet verify --fidelity approximate` has found out about this model (`kvstet.engine.gate`)."""
        return self._ask(lambda store: store.drift_gate(self._fingerprint), None)

    def foreign(self) -> list[ForeignBlob]:
        """Other models' blobs."""
        return self._ask(lambda store: store.run(lambda index: index.foreign(self._fingerprint)), [])

    # Writing

    @property
    def is_busy(self) -> bool:
        """The writer has something in hand, or has done something that `finished` has not told yet."""
        return bool(self._jobs or self._finished)

    def can_write(self, num_bytes: int) -> bool:
        """Whether the write budget allows it and no fault has paused writing."""
        self._pay_debts()
        if self._debts or self._writing.is_on or self._indexing.is_on:
            return False
        if self._ask(lambda store: store.free_bytes, 0) < num_bytes + self.reserve_bytes:
            self._writing.begin(f"less than {self.reserve_bytes >> 20} MiB are free")
            return False
        if self._write_bytes_per_hour is None:
            return True
        budget = self._write_bytes_per_hour
        num_spent_bytes = self._ask(lambda store: store.run(lambda index: index.num_written_bytes()), budget)
        return num_spent_bytes + sum(job.num_bytes for job in self._jobs) + num_bytes <= budget

    def write(self, record: Record, data: NDArray[np.uint8]) -> None:
        """Hand one blob to the writer; only when it is not busy. What became of it, `finished` tells."""
        assert not self.is_busy
        self._pay_debts()
        if self._debts or record.key.prefix in self._quarantined:
            # A debt may be to delete this very file.
            why = "it is quarantined" if record.key.prefix in self._quarantined else "the folder is not in order"
            self._finished.append(Written(record, why))
            return
        path = self._store.path(self._fingerprint, record.key)
        write = (blobfile.write, self._store.temp_folder, path, self._fingerprint, record, data)
        self._jobs.append(_Job(record, data.nbytes, self._executor.submit(*write)))

    def finished(self) -> list[Written]:
        """What the writer has done since the last call. The index knows of it from then on."""
        while self._jobs and self._jobs[0].future.done():
            job = self._jobs.pop(0)
            self._finished.append(self._settled(job))
        self._pay_debts()
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> None:
        """Until the writer has done what it has in hand; `finished` tells what became of it."""
        wait([job.future for job in self._jobs])

    def close(self) -> None:
        """Wait for the writer and let it go. The store stays open."""
        self.wait()
        self._finished = self.finished()
        self._executor.shutdown()

    # Keeping order

    def drop(self, keys: Iterable[BlobKey]) -> None:
        """Delete blobs."""
        keys = list(keys)
        self._known.difference_update(keys)
        self._revoked.update({job.record.key for job in self._jobs}.intersection(keys))
        self._owe(_Debt(lambda store: store.remove(self._fingerprint, keys)))
        if self._debts:
            self._unlink(keys)

    def drop_foreign(self, blobs: Iterable[ForeignBlob]) -> int:
        """Delete other models' blobs; the bytes that became free."""
        keys: dict[bytes, list[BlobKey]] = defaultdict(list)
        for blob in blobs:
            keys[blob.fingerprint].append(blob.key)
        return sum(self._ask(lambda store, owner=owner: store.remove(owner, keys[owner]), 0) for owner in keys)

    def touch(self, used: Iterable[tuple[BlobKey, int, float]]) -> None:
        """Note hits and last use (unix time) of blobs."""
        used = list(used)
        self._ask(lambda store: store.run(lambda index: index.touch(self._fingerprint, used)), None)

    def quarantine(self, prefixes: Iterable[bytes], divergence: float, floor: float) -> None:
        """Drop the blobs of these prefixes, and never serve any of them again."""
        prefixes = list(prefixes)
        self._quarantined |= dict.fromkeys(prefixes, (divergence, floor))
        self._revoked.update(job.record.key for job in self._jobs if job.record.key.prefix in self._quarantined)
        self._known = {key for key in self._known if key.prefix not in self._quarantined}

        def note(index: Index) -> None:
            index.quarantine(self._fingerprint, prefixes, divergence, floor)

        self._debts.append(_Debt(lambda store: store.run(note)))
        self._owe(_Debt(self._remove_quarantined))

    # Inside

    def _settled(self, job: _Job) -> Written:
        key = job.record.key
        error = job.future.exception()
        if error is not None:
            if not isinstance(error, OSError | MemoryError):
                raise error
            self._writing.begin(reason(error))
            # Some of it may have reached the disk.
            self._debts.append(self._writes_debt(job.num_bytes))
            return Written(job.record, reason(error))
        self._writing.end()
        record = replace(job.record, num_bytes=job.future.result())
        if key in self._revoked:
            self._revoked.discard(key)
            self._debts.append(self._writes_debt(record.num_bytes))
            self._debts.append(_Debt(lambda store: store.remove(self._fingerprint, [key])))
            return Written(job.record, "it was dropped meanwhile")
        self.num_written += 1
        self.num_written_bytes += record.num_bytes
        self._known.add(key)
        self._debts.append(self._row_debt(record))
        return Written(record, None)

    def _unlink(self, keys: Iterable[BlobKey]) -> None:
        """Delete files before the index hears of it: where the disk is full, it needs the room itself."""
        try:
            self._store.unlink(self._fingerprint, keys)
        except DiskUnavailable as error:
            self._writing.begin(reason(error.__cause__ or error))

    def _row_debt(self, record: Record) -> _Debt:
        num_bytes = record.num_bytes
        return _Debt(lambda store: store.publish(self._fingerprint, record, num_bytes), num_bytes, num_bytes)

    def _writes_debt(self, num_bytes: int) -> _Debt:
        when = self._store.clock()
        return _Debt(
            lambda store: store.run(lambda index: index.add_writes([(when, num_bytes)])), num_written_bytes=num_bytes
        )

    def _note_missing(self, key: BlobKey) -> None:
        self._known.discard(key)
        if self._ask(lambda store: store.remove_lost(self._fingerprint, key), False):
            self._store.num_damaged += 1
            logger.warning("%s is lost. %s", self._store.path(self._fingerprint, key), WHAT_FOLLOWS)

    def _give_up(self, key: BlobKey, sentence: str) -> None:
        self._store.num_damaged += 1
        logger.warning("%s %s", sentence, WHAT_FOLLOWS)
        self.drop([key])

    def _owe(self, debt: _Debt) -> None:
        self._debts.append(debt)
        self._pay_debts()

    def _pay_debts(self) -> None:
        """In order, until one cannot be paid now."""
        while self._debts and self._ask(self._pay_first, False):
            self._debts.pop(0)

    def _pay_first(self, store: DiskStore) -> bool:
        self._debts[0].pay(store)
        self._last_used_bytes = store.used_bytes
        return True

    def _ask(self, act: Callable[[DiskStore], T], otherwise: T) -> T:
        """What the store says; ``otherwise`` where it cannot be used now. An index that was rebuilt is told of us."""
        if self._indexing.is_on:
            return otherwise
        try:
            answer = act(self._store)
        except DiskUnavailable as error:
            self._indexing.begin(reason(error.__cause__ or error))
            return otherwise
        self._indexing.end()
        if self._num_rebuilds != self._store.num_rebuilds:
            self._num_rebuilds = self._store.num_rebuilds
            self._last_sequence = 0
            self._register()
        return answer

    def _register(self) -> None:
        """Let the index know of the model, and of what a lost one knew."""

        def note(index: Index) -> None:
            index.register(self._fingerprint, self._model_name)
            for prefix, (divergence, floor) in self._quarantined.items():
                index.quarantine(self._fingerprint, [prefix], divergence, floor)

        self._debts.append(_Debt(lambda store: store.run(note)))
        # A process that was killed may have left some, or one that did not know of the quarantine.
        self._debts.append(_Debt(self._remove_quarantined))

    def _remove_quarantined(self, store: DiskStore) -> None:
        store.remove(self._fingerprint, store.run(lambda index: index.quarantined_keys(self._fingerprint)))

    def __repr__(self) -> str:
        return f"<DiskTier {self._fingerprint.hex()[:8]} {len(self._known)} blobs, {self._store!r}>"
