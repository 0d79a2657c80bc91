from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import (
    FINGERPRINT,
    NOW,
    OTHER,
    Clock,
    assert_consistent,
    files,
    record,
    save,
    saved,
    state,
    temps,
)

from kvstet.cache.disk import blobfile, database
from kvstet.cache.disk import tier as disk
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier, Written


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fsync` is for cannot be seen from here."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path, clock=clock)
    yield store
    store.close()


def open_tier(store: DiskStore, fingerprint: bytes = FINGERPRINT, **changes) -> DiskTier:
    options = {"capacity_bytes": 1 << 30, "write_bytes_per_hour": None, "model_name": "smol"}
    return DiskTier(store, fingerprint, **(options | changes))


@pytest.fixture
def tier(store: DiskStore) -> Iterator[DiskTier]:
    tier = open_tier(store)
    yield tier
    tier.close()


def fail_with(code: int):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def by_key(records):
    return sorted(records, key=lambda entry: entry.key)


class Held:
    """Keeps the writer from publishing until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go = threading.Event()
        os_replace = os.replace

        def hold(source: Path, target: Path) -> None:
            assert self._go.wait(50)
            os_replace(source, target)

        monkeypatch.setattr(os, "replace", hold)

    def let_go(self) -> None:
        self._go.set()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(monkeypatch)
    yield held
    held.let_go()


# Keeping


def test_a_blob_comes_back_as_it_was_written(tier: DiskTier, store: DiskStore):
    written = save(tier, record("a"), state(1, 500))
    size = store.path(FINGERPRINT, record("a").key).stat().st_size
    assert written == Written(replace(record("a"), num_bytes=size), None)
    blob = tier.get(record("a").key)
    assert blob is not None
    assert (blob.start, blob.stop) == (4, 7)
    assert np.array_equal(blob.data, state(1, 500))
    assert (tier.used_bytes, tier.num_written, tier.num_written_bytes) == (size, 1, size)
    assert tier.records() == [written.record]
    assert repr(tier) == f"<DiskTier 66696e67 1 blobs, <DiskStore {store.folder}>>"
    assert_consistent(store)


def test_a_record_of_a_pure_path_has_an_empty_blob(tier: DiskTier):
    save(tier, record("a"), state(0, 0))
    blob = tier.get(record("a").key)
    assert blob is not None
    assert blob.num_bytes == 0


def test_what_was_kept_is_there_after_a_restart(tier: DiskTier, store: DiskStore, clock: Clock):
    records = saved(tier, "a", "b", "c")
    tier.touch([(records[0].key, 9, NOW - 5)])
    tier.close()
    store.close()
    again = DiskStore(store.folder, clock=clock)
    tier = open_tier(again)
    assert by_key(tier.records()) == by_key([replace(records[0], num_hits=9, last_used=NOW - 5), *records[1:]])
    assert [model.name for model in again.models()] == ["smol"]
    tier.close()
    again.close()


def test_the_writer_works_behind_the_engine(tier: DiskTier, held: Held, store: DiskStore):
    tier.write(record("a"), state())
    assert tier.is_busy
    assert tier.finished() == []
    assert tier.used_bytes == 40
    held.let_go()
    tier.wait()
    assert tier.is_busy
    (written,) = tier.finished()
    assert not tier.is_busy
    assert tier.used_bytes == written.record.num_bytes > 40
    assert_consistent(store)


def test_closing_waits_for_the_writer_and_loses_nothing(store: DiskStore):
    tier = open_tier(store)
    tier.write(record("a"), state(0, 1_000_000))
    tier.close()
    assert [written.error for written in tier.finished()] == [None]
    assert_consistent(store)
    assert len(store.records(FINGERPRINT)) == 1


def test_a_dropped_blob_is_gone_from_the_disk(tier: DiskTier, store: DiskStore):
    a, b = saved(tier, "a", "b")
    tier.drop([a.key, record("never written").key])
    assert tier.get(a.key) is None
    assert tier.records() == [b]
    assert tier.num_damaged == 0
    assert_consistent(store)


def test_a_blob_that_is_dropped_while_it_is_written_does_not_come_back(tier: DiskTier, store: DiskStore, held: Held):
    tier.write(record("a"), state())
    tier.drop([record("a").key])
    held.let_go()
    tier.wait()
    assert [written.error for written in tier.finished()] == ["it was dropped meanwhile"]
    assert (tier.records(), tier.used_bytes, files(store.folder)) == ([], 0, [])
    saved(tier, "a")
    assert tier.get(record("a").key) is not None


def test_a_blob_is_written_again_with_its_newest_state(tier: DiskTier, store: DiskStore):
    save(tier, record("a"), state(1, 100))
    save(tier, record("a"), state(2, 200))
    blob = tier.get(record("a").key)
    assert blob is not None
    assert np.array_equal(blob.data, state(2, 200))
    assert_consistent(store)


def test_other_models_blobs_are_seen_and_can_be_dropped(tier: DiskTier, store: DiskStore):
    other = open_tier(store, OTHER)
    saved(tier, "a")
    b, c = saved(other, "b", "c")
    foreign = tier.foreign()
    assert {(blob.fingerprint, blob.key, blob.num_bytes) for blob in foreign} == {
        (OTHER, entry.key, entry.num_bytes) for entry in (b, c)
    }
    assert tier.drop_foreign(blob for blob in foreign if blob.key == b.key) == b.num_bytes
    assert other.get(b.key) is None
    assert other.num_damaged == 0
    assert tier.used_bytes == other.used_bytes
    assert_consistent(store, (FINGERPRINT, OTHER))
    other.close()


# Sharing


def test_what_other_processes_publish_is_told_once(tier: DiskTier, store: DiskStore, clock: Clock):
    second_store = DiskStore(store.folder, clock=clock)
    second = open_tier(second_store)
    saved(tier, "a")
    assert [entry.key for entry in second.records()] == [record("a").key]
    saved(tier, "b")
    saved(second, "c")
    assert [entry.key for entry in second.new_records()] == [record("b").key]
    assert second.new_records() == []
    assert [entry.key for entry in tier.new_records()] == [record("c").key]
    saved(second, "a")
    assert tier.new_records() == []
    tier.drop([record("a").key])
    saved(second, "a")
    assert [entry.key for entry in tier.new_records()] == [record("a").key]
    second.close()
    second_store.close()


def test_news_are_told_also_where_the_index_was_rebuilt_meanwhile(tier: DiskTier, store: DiskStore, clock: Clock):
    for _ in range(3):
        tier.drop(record(name).key for name in "abcdef")
        saved(tier, *"abcdef")
    tier.records()
    (store.folder / "v1" / "index.sqlite3").unlink()
    assert tier.new_records() == []
    second_store = DiskStore(store.folder, clock=clock)
    second = open_tier(second_store)
    saved(tier, "g")
    tier.drop(record(name).key for name in "abcdef")
    saved(second, "z")
    assert [entry.key for entry in tier.new_records()] == [record("z").key]
    second.close()
    second_store.close()


def test_what_another_process_deleted_is_a_miss_and_no_damage(
    tier: DiskTier, store: DiskStore, clock: Clock, caplog: pytest.LogCaptureFixture
):
    (a,) = saved(tier, "a")
    second_store = DiskStore(store.folder, clock=clock)
    second = open_tier(second_store)
    second.records()
    tier.drop([a.key])
    assert second.get(a.key) is None
    assert (second.num_damaged, caplog.messages) == (0, [])
    saved(tier, "a")
    assert [entry.key for entry in second.new_records()] == [a.key]
    second.close()
    second_store.close()


def test_a_purge_by_another_process_is_survived(tier: DiskTier, store: DiskStore, clock: Clock):
    a, _ = saved(tier, "a", "b")
    other = DiskStore(store.folder, clock=clock)
    other.purge(None)
    other.close()
    assert tier.get(a.key) is None
    assert (tier.used_bytes, tier.num_damaged) == (0, 0)
    saved(tier, "a", "c")
    assert_consistent(store)


# The write budget


def test_the_write_budget_is_never_exceeded(store: DiskStore, clock: Clock):
    tier = open_tier(store, write_bytes_per_hour=1000)
    num_written_bytes: list[tuple[float, int]] = []
    for number in range(200):
        clock.now += 60
        if tier.can_write(200):
            written = save(tier, record(str(number)), state(0, 60))
            num_written_bytes.append((clock.now, written.record.num_bytes))
        in_the_last_hour = sum(size for when, size in num_written_bytes if when > clock.now - 3600)
        assert in_the_last_hour <= 1000
    # 200 minutes are three hours and a bit, and each hour takes the blobs that fit into it.
    assert len(num_written_bytes) >= 3 * (1000 // 200)
    tier.close()


def test_the_write_budget_is_shared_and_survives_a_restart(store: DiskStore, clock: Clock):
    tier = open_tier(store, write_bytes_per_hour=1000)
    save(tier, record("a"), state(0, 700))
    assert tier.can_write(100)
    assert not tier.can_write(200)
    tier.close()
    store.close()
    (store.folder / "v1" / "index.sqlite3").unlink()
    os.utime(store.path(FINGERPRINT, record("a").key), (NOW, NOW))
    again = DiskStore(store.folder, clock=clock)
    tier = open_tier(again, OTHER, write_bytes_per_hour=1000)
    assert tier.can_write(100)
    assert not tier.can_write(200)
    tier.close()
    again.close()


def test_what_the_writer_has_in_hand_counts(store: DiskStore, held: Held):
    tier = open_tier(store, write_bytes_per_hour=1000)
    tier.write(record("a"), state(0, 700))
    assert not tier.can_write(400)
    held.let_go()
    tier.close()


def test_a_budget_of_nothing_writes_nothing(store: DiskStore):
    tier = open_tier(store, write_bytes_per_hour=0)
    assert not tier.can_write(1)
    tier.close()


# Quarantine


def test_quarantined_state_is_never_served_again(tier: DiskTier, store: DiskStore, clock: Clock):
    a, b = saved(tier, "a", "b")
    save(tier, record("a", kind="checkpoint", start=0))
    tier.quarantine([a.key.prefix], 0.5, 0.1)
    assert tier.get(a.key) is None
    assert tier.records() == [b]
    assert files(store.folder) == [store.path(FINGERPRINT, b.key)]
    assert save(tier, record("a")).error == "it is quarantined"
    assert [(entry.prefix, entry.divergence) for entry in store.quarantined(FINGERPRINT)] == [(a.key.prefix, 0.5)]
    tier.close()
    again = DiskStore(store.folder, clock=clock)
    path = again.path(FINGERPRINT, a.key)
    blobfile.write(again.temp_folder, path, FINGERPRINT, record("a"), state())
    tier = open_tier(again)
    assert tier.get(a.key) is None
    tier.close()
    again.close()


def test_state_that_is_quarantined_while_it_is_written_does_not_come_back(tier: DiskTier, store: DiskStore, held: Held):
    tier.write(record("a"), state())
    tier.quarantine([record("a").key.prefix], 0.5, 0.1)
    held.let_go()
    tier.wait()
    assert [written.error for written in tier.finished()] == ["it was dropped meanwhile"]
    assert files(store.folder) == []


def test_a_quarantine_outlives_the_index(tier: DiskTier, store: DiskStore):
    (a,) = saved(tier, "a")
    tier.quarantine([a.key.prefix], 0.5, 0.1)
    (store.folder / "v1" / "index.sqlite3").unlink()
    saved(tier, "b")
    assert [entry.prefix for entry in store.quarantined(FINGERPRINT)] == [a.key.prefix]
    assert [model.name for model in store.models()] == ["smol"]


def test_quarantined_state_that_comes_back_with_a_rebuilt_index_is_deleted(tier: DiskTier, store: DiskStore):
    (a,) = saved(tier, "a")
    tier.quarantine([a.key.prefix], 0.5, 0.1)
    # By a process that did not know.
    blobfile.write(store.temp_folder, store.path(FINGERPRINT, a.key), FINGERPRINT, record("a"), state())
    (store.folder / "v1" / "index.sqlite3").unlink()
    (b,) = saved(tier, "b")
    assert files(store.folder) == [store.path(FINGERPRINT, b.key)]
    assert store.used_bytes == b.num_bytes


# Damage


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "does not match its checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes and not"),
        (lambda path: path.write_bytes(b""), "it ends after 0 bytes"),
        (lambda path: path.unlink(), "is lost"),
    ],
    ids=["bit flipped", "cut off", "empty", "deleted"],
)
def test_a_damaged_blob_is_a_miss_and_is_given_up(
    tier: DiskTier, store: DiskStore, caplog: pytest.LogCaptureFixture, spoil, said: str
):
    a, b = saved(tier, "a", "b")
    spoil(store.path(FINGERPRINT, a.key))
    assert tier.get(a.key) is None
    assert tier.get(a.key) is None
    (line,) = caplog.messages
    assert said in line
    assert line.endswith(" What it held is computed again.")
    assert tier.num_damaged == 1
    assert tier.records() == [b]
    assert_consistent(store)
    saved(tier, "a")
    assert tier.get(a.key) is not None


def test_a_bad_sector_is_damage(tier: DiskTier, store: DiskStore, monkeypatch: pytest.MonkeyPatch):
    (a,) = saved(tier, "a")
    with monkeypatch.context() as patch:
        patch.setattr(blobfile, "read", fail_with(errno.EIO))
        assert tier.get(a.key) is None
    assert tier.num_damaged == 1
    assert files(store.folder) == []


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), MemoryError()])
def test_a_blob_that_cannot_be_read_now_is_not_given_up(
    tier: DiskTier, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    a, b = saved(tier, "a", "b")

    def fail(*_args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(blobfile, "read", fail)
        assert tier.get(a.key) is None
        assert tier.get(b.key) is None
    assert len(caplog.messages) == 1
    assert tier.get(a.key) is not None
    assert tier.num_damaged == 0


# Faults


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_fault_pauses_writing_for_a_minute_and_is_said_once(
    tier: DiskTier,
    store: DiskStore,
    *,
    clock: Clock,
    call: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    (a,) = saved(tier, "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(code))
        for name in "bcd":
            assert tier.can_write(1)
            assert save(tier, record(name)).error == os.strerror(code)[:1].lower() + os.strerror(code)[1:]
            assert not tier.can_write(1)
            clock.now += 59
            assert not tier.can_write(1)
            assert tier.get(a.key) is not None or call == "open"
            clock.now += 1
    (line,) = [line for line in caplog.messages if "written" in line]
    assert line.startswith(f"State cannot be written to {store.folder}; tried again every 60 seconds: ")
    saved(tier, "b")
    assert temps(store.folder) == []
    assert_consistent(store)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail_with(code))
        save(tier, record("c"))
    assert len([line for line in caplog.messages if "written" in line]) == 2


def test_a_disk_that_is_full_after_some_bytes_keeps_no_half_file(
    tier: DiskTier, store: DiskStore, monkeypatch: pytest.MonkeyPatch
):
    os_write, num_left_bytes = os.write, 500

    def write(file: int, data: memoryview) -> int:
        nonlocal num_left_bytes
        if num_left_bytes == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = os_write(file, data[:num_left_bytes])
        num_left_bytes -= size
        return size

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert save(tier, record("a"), state(0, 1000)).error == "no space left on device"
    assert (temps(store.folder), files(store.folder), tier.used_bytes) == ([], [], 0)


def test_what_a_failing_disk_was_made_to_write_counts(store: DiskStore, monkeypatch: pytest.MonkeyPatch, clock: Clock):
    tier = open_tier(store, write_bytes_per_hour=1000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(errno.EIO))
        save(tier, record("a"), state(0, 900))
    clock.now += 60
    assert tier.can_write(100)
    assert not tier.can_write(200)
    tier.close()


def lock(store: DiskStore) -> sqlite3.Connection:
    """Another process that holds the index for longer than we wait."""
    store.run(lambda index: index._db.execute("PRAGMA busy_timeout = 10"))
    db = sqlite3.connect(store.folder / "v1" / "index.sqlite3")
    db.execute("BEGIN IMMEDIATE")
    return db


def test_an_index_that_is_locked_is_told_later(
    tier: DiskTier, store: DiskStore, clock: Clock, caplog: pytest.LogCaptureFixture
):
    a, b = saved(tier, "a", "b")
    tier.write(record("c"), state(0, 100))
    tier.wait()
    other = lock(store)
    (c,) = tier.finished()
    assert c.error is None
    assert tier.used_bytes == a.num_bytes + b.num_bytes + c.record.num_bytes
    tier.drop([a.key])
    tier.touch([(b.key, 5, NOW)])
    assert not tier.can_write(1)
    assert tier.get(b.key) is not None
    assert tier.get(c.record.key) is not None
    assert save(tier, record("a")).error == "the folder is not in order"
    other.close()
    assert not tier.can_write(1)
    clock.now += 60
    assert tier.can_write(1)
    assert by_key(tier.records()) == by_key([b, c.record])
    assert_consistent(store)
    (line,) = caplog.messages
    assert line == (
        f"The index of {store.folder} cannot be kept up to date; tried again every 60 seconds: database is locked"
    )


def test_room_is_made_also_while_the_index_finds_none_itself(tier: DiskTier, store: DiskStore, clock: Clock):
    a, b = saved(tier, "a", "b")
    tier.write(record("c"), state())
    tier.wait()
    other = lock(store)
    tier.finished()
    tier.drop([a.key])
    assert not store.path(FINGERPRINT, a.key).exists()
    other.close()
    clock.now += 60
    assert tier.can_write(1)
    assert {entry.key for entry in tier.records()} == {b.key, record("c").key}
    assert_consistent(store)


def test_a_file_that_cannot_be_deleted_is_deleted_later(
    tier: DiskTier, store: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    a, b = saved(tier, "a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_with(errno.EROFS))
        tier.drop([a.key])
        assert not tier.can_write(1)
        assert tier.used_bytes == a.num_bytes + b.num_bytes
    clock.now += 60
    assert tier.can_write(1)
    assert tier.records() == [b]
    assert_consistent(store)


def test_an_index_that_cannot_be_rebuilt_now_is_rebuilt_later(
    tier: DiskTier, store: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    records = saved(tier, "a", "b")
    (store.folder / "v1" / "index.sqlite3").unlink()
    for call in ("open", "scandir"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail_with(errno.EIO))
            assert tier.used_bytes == sum(entry.num_bytes for entry in records)
            assert not tier.can_write(1)
            clock.now += 60
    assert tier.can_write(1)
    assert by_key(tier.records()) == by_key(records)
    assert_consistent(store)


def test_a_pause_ends_also_when_the_clock_is_set_back(tier: DiskTier, clock: Clock, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(errno.EIO))
        save(tier, record("a"))
    assert not tier.can_write(1)
    clock.now -= 1_000_000
    assert tier.can_write(1)


def test_nothing_goes_wrong_when_the_clock_jumps(tier: DiskTier, store: DiskStore, clock: Clock):
    rng = random.Random(4)
    for number in range(20):
        clock.now = NOW + rng.choice([-1e8, -4000, 0, 4000, 1e8])
        save(tier, replace(record(str(number)), last_used=clock.now))
        tier.touch([(record("0").key, number, clock.now)])
        assert all(entry.last_used <= clock.now for entry in tier.records())
        assert all(model.last_used <= clock.now for model in store.models())
    assert len(tier.records()) == 20
    assert_consistent(store)


@pytest.mark.parametrize("lost", ["index", "folder"])
def test_an_index_that_is_deleted_in_use_costs_nothing_but_a_line(
    tier: DiskTier, store: DiskStore, lost: str, caplog: pytest.LogCaptureFixture
):
    records = saved(tier, "a", "b")
    if lost == "index":
        (store.folder / "v1" / "index.sqlite3").unlink()
    else:
        shutil.rmtree(store.folder)
        records = []
    records += saved(tier, "c")
    assert tier.new_records() == []
    assert by_key(tier.records()) == by_key(records)
    assert_consistent(store)
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        "kind = 7",
        "seconds = 'abc'",
        "last_used = x'00'",
        "num_bytes = -5",
        "stop = 'x'",
        "tokens = x'01'",
        "parent = 'zz'",
        "origin = -7",
        "num_hits = 9223372036854775807",
        "start = 2.5",
    ],
)
def test_rows_that_nobody_can_have_written_are_made_again_from_the_files(
    store: DiskStore, nonsense: str, caplog: pytest.LogCaptureFixture
):
    tier = open_tier(store)
    records = saved(tier, "a", "b")
    tier.close()
    with sqlite3.connect(store.folder / "v1" / "index.sqlite3") as database:
        database.execute(f"UPDATE blobs SET {nonsense} WHERE sequence = (SELECT min(sequence) FROM blobs)")
    database.close()
    again = open_tier(store)
    assert by_key(again.records()) == by_key(records)
    assert open_tier(store, OTHER).foreign() != []
    again.close()
    (line,) = caplog.messages
    assert "rebuilt" in line


def test_an_error_of_our_own_is_not_taken_for_a_fault(tier: DiskTier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(disk.blobfile, "write", lambda *_args: 1 // 0)
    tier.write(record("a"), state())
    tier.wait()
    with pytest.raises(ZeroDivisionError):
        tier.finished()


# Processes


class Writers:
    """Processes that run `disk_writer`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        root = Path(__file__).parent.parent.parent
        command = [sys.executable, "-m", "tests.cache.disk_writer"]
        self._process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, seed: int, count: int, *, die_at: str = "replace", call: int = 0) -> int:
        """Its process id."""
        assert self._process.stdin
        self._process.stdin.write(f"{self._folder} {seed} {count} {die_at} {call}\n")
        return self.read()

    def read(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def assert_mended(folder: Path) -> None:
    """Whoever opens the folder next finds whole files, and nothing else stays."""
    store = DiskStore(folder)
    assert store.num_damaged == 0
    assert temps(folder) == []
    assert_consistent(store)
    store.close()


def test_a_writer_that_is_killed_leaves_only_whole_files(tmp_path: Path):
    rng = random.Random(7)
    with Writers(tmp_path) as writers:
        for seed in range(15):
            pid = writers.start(seed, 100_000)
            if seed % 3 == 0:
                wait_for_a_new_file(tmp_path)
            time.sleep(rng.uniform(0, 0.08))
            os.kill(pid, signal.SIGKILL)
            assert writers.read() == -signal.SIGKILL
            assert_mended(tmp_path)


def wait_for_a_new_file(folder: Path) -> None:
    """Until a blob was published that was not there; a slow disk takes its time."""
    before, deadline = set(files(folder)), time.monotonic() + 30
    while not set(files(folder)) - before:
        assert time.monotonic() < deadline, "nothing is ever published"
        time.sleep(0.001)


@pytest.mark.parametrize(("die_at", "call"), [("_write_all", 9), ("_write_all", 10), ("replace", 5)])
def test_a_writer_that_dies_before_a_file_is_published_leaves_none(tmp_path: Path, die_at: str, call: int):
    with Writers(tmp_path) as writers:
        writers.start(0, 100, die_at=die_at, call=call)
        assert writers.read() == -signal.SIGKILL
    published = files(tmp_path)
    # It had written four, and dropped one of them again.
    assert (len(temps(tmp_path)), len(published)) == (1, 3)
    assert_mended(tmp_path)
    assert files(tmp_path) == published


def test_two_processes_write_the_same_and_other_nodes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "BUSY_SECONDS", 60.0)
    store = DiskStore(tmp_path)
    tier = open_tier(store)
    with Writers(tmp_path) as first, Writers(tmp_path) as second:
        first.start(1, 100)
        second.start(2, 100)
        for number in range(100):
            tier.new_records()
            name = str(number)
            blob = tier.get(record(name, start=number).key)
            assert blob is None or np.array_equal(blob.data, state(number, 20_000 * (number % 7)))
        assert first.read() == second.read() == 0
    assert tier.num_damaged == 0
    assert len(tier.records()) > 40
    tier.close()
    assert_consistent(store)
    store.close()


def test_some_of_the_disk_is_left_to_others(
    store: DiskStore, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    tier = open_tier(store, reserve_bytes=5 << 20)
    free_bytes = 6 << 20
    usage = shutil.disk_usage(store.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=free_bytes))
    assert tier.can_write(1 << 20) and not tier.can_write((1 << 20) + 1)
    (line,) = caplog.messages
    assert "less than 5 MiB are free" in line
    assert not tier.can_write(1)
    clock.now += disk.PAUSE_SECONDS
    assert tier.can_write(1)
    tier.close()
