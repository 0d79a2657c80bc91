from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.cache.records import FINGERPRINT, NOW, OTHER, Clock, assert_consistent, files, record, state, temps

from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.store import DiskStore
from kvstet.errors import DiskUnavailable


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fsync` is for cannot be seen from here."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = DiskStore(tmp_path, clock=Clock())
    yield store
    store.close()


def publish(store: DiskStore, blob: Record, fingerprint: bytes = FINGERPRINT) -> Record:
    """A blob's file without its row, as a process leaves it that is killed in between."""
    path = store.path(fingerprint, blob.key)
    return replace(blob, num_bytes=blobfile.write(store.temp_folder, path, fingerprint, blob, state()))


def add(store: DiskStore, *names: str, fingerprint: bytes = FINGERPRINT) -> list[Record]:
    records = [publish(store, record(name, start=start), fingerprint) for start, name in enumerate(names)]
    store.run(lambda index: index.put([(fingerprint, entry) for entry in records]))
    return records


def reopen(store: DiskStore) -> DiskStore:
    store.close()
    return DiskStore(store.folder, clock=store.clock)


def test_folders_are_private_also_where_they_were_not(tmp_path: Path):
    folder = tmp_path / "a" / "cache"
    DiskStore(folder).close()
    for path in (folder.parent, folder, folder / "v1", folder / "v1" / "temp"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    folder.chmod(0o755)
    (folder / "v1").chmod(0o777)
    DiskStore(folder).close()
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "v1")} == {0o700}


def test_a_folder_that_holds_other_things_keeps_its_mode(tmp_path: Path):
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    DiskStore(tmp_path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "v1").stat().st_mode) == 0o700


def test_models_and_their_blobs_are_listed(store: DiskStore):
    ours, others = add(store, "a", "b"), add(store, "c", fingerprint=OTHER)
    assert store.records(FINGERPRINT) == ours
    assert store.records(OTHER) == others
    assert sorted((model.fingerprint, model.num_blobs) for model in store.models()) == [(FINGERPRINT, 2), (OTHER, 1)]
    assert repr(store) == f"<DiskStore {store.folder}>"
    assert_consistent(store, (FINGERPRINT, OTHER))


def test_removed_blobs_leave_neither_file_nor_row(store: DiskStore):
    a, b, c = add(store, "a", "b", "c")
    store.path(FINGERPRINT, c.key).unlink()
    assert store.remove(FINGERPRINT, [a.key, c.key, record("unknown").key]) == a.num_bytes
    assert store.records(FINGERPRINT) == [b]
    assert_consistent(store)


def test_a_file_that_another_process_deleted_gets_no_row(store: DiskStore):
    a = publish(store, record("a"))
    store.path(FINGERPRINT, a.key).unlink()
    store.publish(FINGERPRINT, a, 100)
    assert store.records(FINGERPRINT) == []
    assert store.run(lambda index: index.num_written_bytes()) == 100


def test_only_a_row_without_a_file_is_lost(store: DiskStore):
    a, b = add(store, "a", "b")
    store.path(FINGERPRINT, a.key).unlink()
    assert store.remove_lost(FINGERPRINT, a.key)
    assert not store.remove_lost(FINGERPRINT, a.key)
    assert not store.remove_lost(FINGERPRINT, b.key)
    assert store.records(FINGERPRINT) == [b]


def test_what_was_deleted_before_a_fault_has_no_row(store: DiskStore, monkeypatch: pytest.MonkeyPatch):
    a, b, c = add(store, "a", "b", "c")
    unlink = os.unlink

    def fail_once(path: str) -> None:
        if path == str(store.path(FINGERPRINT, b.key)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail_once)
        with pytest.raises(DiskUnavailable, match="input/output error"):
            store.remove(FINGERPRINT, [a.key, b.key, c.key])
    assert store.records(FINGERPRINT) == [b, c]
    assert_consistent(store)


def test_purging_one_model_leaves_the_others(store: DiskStore):
    add(store, "a", "b")
    (other,) = add(store, "a", fingerprint=OTHER)
    store.set_noise_floor(FINGERPRINT, "{}")
    store.purge(FINGERPRINT)
    assert store.records(FINGERPRINT) == []
    assert store.noise_floor(FINGERPRINT) is None
    assert store.records(OTHER) == [other]
    assert_consistent(store, (FINGERPRINT, OTHER))


def test_purging_all_leaves_an_empty_folder(store: DiskStore):
    add(store, "a", "b")
    add(store, "a", fingerprint=OTHER)
    (store.temp_folder / "1-left-0.tmp").touch()
    store.purge(None)
    assert (store.models(), store.used_bytes, files(store.folder), temps(store.folder)) == ([], 0, [], [])
    store = reopen(store)
    assert store.models() == []
    store.close()


def test_verify_tells_what_is_wrong_with_each_file(store: DiskStore):
    for name in "abcd":
        add(store, name)
    sound, flipped, short, moved = (store.path(FINGERPRINT, record(name, start=0).key) for name in "abcd")
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\0")
    short.write_bytes(short.read_bytes()[:-1])
    elsewhere = store.path(OTHER, record("d", start=0).key)
    elsewhere.parent.mkdir(parents=True)
    moved.rename(elsewhere)
    problems = {path: problem and problem.removeprefix(f"{path} ") for path, problem in store.verify()}
    assert problems == {
        sound: None,
        flipped: "is damaged: its state does not match its checksum.",
        short: f"is damaged: it has {short.stat().st_size} bytes and not {short.stat().st_size + 1}.",
        elsewhere: "lies in the folder of another model.",
    }
    assert len(files(store.folder)) == 4


def test_reopening_reads_no_file_that_it_knows(store: DiskStore, monkeypatch: pytest.MonkeyPatch):
    records = add(store, "a", "b")
    orphan = publish(store, record("c", start=2))
    read: list[Path] = []
    read_header = blobfile.read_header
    monkeypatch.setattr(blobfile, "read_header", lambda path: read.append(path) or read_header(path))
    store = reopen(store)
    assert read == [store.path(FINGERPRINT, orphan.key)]
    assert store.records(FINGERPRINT) == [*records, orphan]
    store.close()


def test_reopening_makes_rows_and_files_agree(store: DiskStore, caplog: pytest.LogCaptureFixture):
    lost, cut, kept = add(store, "lost", "cut", "kept")
    store.path(FINGERPRINT, lost.key).unlink()
    path = store.path(FINGERPRINT, cut.key)
    path.write_bytes(path.read_bytes()[:-5])
    orphan = publish(store, record("orphan", start=3))
    alien = path.parent / "README"
    alien.write_text("not ours")
    (store.temp_folder / "1-left-0.tmp").write_bytes(b"half")
    store = reopen(store)
    assert store.records(FINGERPRINT) == [kept, orphan]
    assert temps(store.folder) == []
    assert alien.exists()
    assert store.num_damaged == 1
    assert caplog.messages == [f"1 damaged files were removed from the cache on disk ({store.folder})."]
    alien.unlink()
    assert_consistent(store)
    store.close()


def test_a_file_that_another_process_replaced_is_read_again(store: DiskStore):
    (old,) = add(store, "a")
    new = publish(store, replace(old, num_hits=70_000, num_bytes=0))
    assert new.num_bytes != old.num_bytes
    store = reopen(store)
    assert store.records(FINGERPRINT) == [new]
    store.close()


def test_an_index_is_rebuilt_precisely_from_the_files(store: DiskStore):
    ours, others = add(store, "a", "b", "c"), add(store, "a", "d", fingerprint=OTHER)
    store.close()
    for path in store.folder.glob("v1/index*"):
        path.unlink()
    store = DiskStore(store.folder, clock=store.clock)
    assert store.records(FINGERPRINT) == ours
    assert store.records(OTHER) == others
    assert_consistent(store, (FINGERPRINT, OTHER))
    store.close()


def test_what_the_files_show_of_this_hours_writes_counts_after_a_rebuild(tmp_path: Path):
    store = DiskStore(tmp_path)
    (old, new) = add(store, "a", "b")
    hour_ago = time.time() - 4000
    os.utime(store.path(FINGERPRINT, old.key), (hour_ago, hour_ago))
    store.close()
    (tmp_path / "v1" / "index.sqlite3").unlink()
    store = DiskStore(tmp_path)
    assert store.run(lambda index: index.num_written_bytes()) == new.num_bytes
    store.close()


def overwrite_pages(path: Path) -> None:
    """Damage all but the first page, which is all that is looked at when a database is opened."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def drop_table(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("DROP TABLE blobs")
    db.close()


@pytest.mark.parametrize("spoil", [overwrite_pages, drop_table, lambda path: path.write_bytes(b"garbage" * 999)])
def test_an_index_that_was_damaged_between_runs_is_rebuilt(store: DiskStore, spoil, caplog: pytest.LogCaptureFixture):
    records = add(store, *"abcdefgh")
    store.close()
    spoil(store.folder / "v1" / "index.sqlite3")
    store = DiskStore(store.folder, clock=store.clock)
    assert store.records(FINGERPRINT) == records
    assert_consistent(store)
    assert len(caplog.messages) == 1
    store.close()


def remove_index(path: Path) -> None:
    path.unlink()


def truncate_index(path: Path) -> None:
    for entry in (path, path.with_name(path.name + "-wal")):
        os.truncate(entry, 0)


def fill_index(path: Path) -> None:
    for entry in (path, path.with_name(path.name + "-wal")):
        with entry.open("r+b") as file:
            file.write(b"\xa5" * entry.stat().st_size)


@pytest.mark.parametrize("spoil", [remove_index, truncate_index, fill_index])
def test_an_index_that_is_lost_while_in_use_is_rebuilt(store: DiskStore, spoil, caplog: pytest.LogCaptureFixture):
    records = add(store, *"abcdefgh")
    spoil(store.folder / "v1" / "index.sqlite3")
    # From here on, SQLite may notice at any call.
    (more,) = add(store, "z")
    assert sorted(store.records(FINGERPRINT), key=repr) == sorted([*records, more], key=repr)
    store = reopen(store)
    assert sorted(store.records(FINGERPRINT), key=repr) == sorted([*records, more], key=repr)
    assert_consistent(store)
    assert len(caplog.messages) == 1
    store.close()


def test_a_folder_that_is_deleted_while_in_use_is_made_again(store: DiskStore):
    add(store, "a")
    shutil.rmtree(store.folder)
    assert store.used_bytes == 0
    (b,) = add(store, "b")
    assert store.records(FINGERPRINT) == [b]
    assert_consistent(store)


def test_a_second_process_that_rebuilt_the_index_is_joined(store: DiskStore):
    (a,) = add(store, "a")
    (store.folder / "v1" / "index.sqlite3").unlink()
    second = DiskStore(store.folder, clock=store.clock)
    b = publish(second, record("b", start=1))
    second.run(lambda index: index.put([(FINGERPRINT, b)]))
    assert store.records(FINGERPRINT) == second.records(FINGERPRINT) == [a, b]
    second.close()


def test_a_folder_that_cannot_be_created_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskUnavailable, match=r"The cache on disk cannot be used: not a directory \(.*/file/cache\)\."):
        DiskStore(tmp_path / "file" / "cache")


def test_a_folder_that_is_a_file_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(DiskUnavailable, match="The cache on disk cannot be used: "):
        DiskStore(tmp_path / "file")


def test_a_read_only_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(DiskUnavailable, match="cannot be used: read-only file system"):
        DiskStore(tmp_path)


def test_an_index_that_stays_locked_is_an_error_and_not_rebuilt(store: DiskStore, monkeypatch: pytest.MonkeyPatch):
    add(store, "a")
    store.run(lambda index: index._db.execute("PRAGMA busy_timeout = 10"))
    other = sqlite3.connect(store.folder / "v1" / "index.sqlite3")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DiskUnavailable, match="database is locked"):
        add(store, "b")
    other.close()
    assert store.num_rebuilds == 0
    add(store, "b")


def test_ten_thousand_blobs_are_found_again_in_under_a_second(tmp_path: Path):
    store = DiskStore(tmp_path, clock=Clock())
    blobs = [record(str(number), start=number, num_tokens=50) for number in range(10_000)]
    # Hard links spare most of the time it takes to write; known files are not read again.
    source = store.temp_folder.parent / "source"
    size = blobfile.write(store.temp_folder, source, FINGERPRINT, blobs[0], state())
    paths = [store.path(FINGERPRINT, blob.key) for blob in blobs]
    for folder in {path.parent for path in paths}:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.link(source, path)
    rows = [(FINGERPRINT, replace(blob, num_bytes=size)) for blob in blobs]
    store.run(lambda index: index.put(rows))
    store.close()
    began = time.process_time()
    store = DiskStore(tmp_path, clock=Clock())
    records = store.records(FINGERPRINT)
    elapsed = time.process_time() - began
    print(f"{len(records)} blobs found again in {elapsed:.2f} s of this processor")
    assert records == [blob for _, blob in rows]
    assert elapsed < 10  # a slow machine's; a second is the rule
    tokens_bytes = sum(len(blob.tokens) for blob in records)
    store.close()
    index_bytes = (tmp_path / "v1" / "index.sqlite3").stat().st_size
    assert (index_bytes - tokens_bytes) / len(records) < 160


def test_an_index_opens_beside_one_that_is_open(tmp_path: Path):
    first, second = DiskStore(tmp_path), DiskStore(tmp_path)
    (a,) = add(first, "a")
    assert second.records(FINGERPRINT) == [a]
    first.close()
    (b,) = add(second, "b")
    assert sorted(entry.key for entry in second.records(FINGERPRINT)) == sorted([a.key, b.key])
    second.close()


def test_the_times_of_a_rebuilt_index_are_not_in_the_future(tmp_path: Path):
    clock = Clock()
    store = DiskStore(tmp_path, clock=clock)
    publish(store, replace(record(), last_used=NOW + 99))
    store = reopen(store)
    assert [entry.last_used for entry in store.records(FINGERPRINT)] == [NOW]
    store.close()
