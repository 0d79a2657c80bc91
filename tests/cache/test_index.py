from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import FINGERPRINT, NOW, OTHER, Clock, record

from kvstet.cache.disk.index import ForeignBlob, Index, ModelEntry, Quarantined
from kvstet.cache.disk.packing import packed

PRIVATE = np.random.default_rng(0).bytes(1200)
"""300 tokens; less than a page of SQLite's, so that they lie there in one piece."""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def index(tmp_path: Path, clock: Clock) -> Iterator[Index]:
    index = Index(tmp_path / "index.sqlite3", clock=clock)
    yield index
    index.close()


A, B, C = (
    replace(record(name, start=start), num_bytes=size)
    for name, start, size in [("a", 0, 10), ("b", 9, 20), ("c", 3, 5)]
)


def test_records_come_back_precisely_parents_first(index: Index):
    index.put([(FINGERPRINT, B), (FINGERPRINT, C), (FINGERPRINT, A)])
    assert [entry for _, entry in index.records(FINGERPRINT)] == [A, C, B]
    assert index.records(OTHER) == []


def test_a_checkpoint_comes_after_the_span_that_ends_with_it(index: Index):
    checkpoint = replace(record("a", kind="checkpoint", start=0, num_tokens=0), origin=3, stop=3)
    index.put([(FINGERPRINT, checkpoint), (FINGERPRINT, A)])
    assert [entry for _, entry in index.records(FINGERPRINT)] == [A, checkpoint]


def test_bytes_and_blobs_are_counted_through_additions_replacements_and_deletions(index: Index):
    index.put([(FINGERPRINT, A), (FINGERPRINT, B), (OTHER, C)])
    index.put([(FINGERPRINT, replace(A, num_bytes=11))])
    assert index.num_bytes == 36
    assert [(model.num_blobs, model.num_bytes) for model in index.models()] == [(2, 31), (1, 5)]
    index.delete([(FINGERPRINT, B.key), (FINGERPRINT, C.key), (OTHER, C.key)])
    assert index.num_bytes == 11
    assert [(model.num_blobs, model.num_bytes) for model in index.models()] == [(1, 11), (0, 0)]


def test_sequence_numbers_only_grow(index: Index):
    index.put([(FINGERPRINT, A)])
    ((first, _),) = index.records(FINGERPRINT)
    index.delete([(FINGERPRINT, A.key)])
    index.put([(FINGERPRINT, B)])
    assert [entry for _, entry in index.records(FINGERPRINT, after=first)] == [B]
    assert index.records(FINGERPRINT, after=first + 1) == []


def test_a_model_has_a_name_and_a_last_use(index: Index, clock: Clock):
    index.register(FINGERPRINT, "smol", "f16")
    clock.now += 10
    index.register(OTHER, "gem")
    index.register(OTHER)
    assert index.models() == [
        ModelEntry(OTHER, "gem", 0, 0, NOW + 10, ""),
        ModelEntry(FINGERPRINT, "smol", 0, 0, NOW, "f16"),
    ]


def test_hits_and_last_use_are_set(index: Index):
    index.put([(FINGERPRINT, A), (OTHER, A)])
    index.touch(FINGERPRINT, [(A.key, 7, NOW - 1), (B.key, 1, NOW)])
    assert [entry for _, entry in index.records(FINGERPRINT)] == [replace(A, num_hits=7, last_used=NOW - 1)]
    assert [entry for _, entry in index.records(OTHER)] == [A]


def test_other_models_blobs_are_foreign(index: Index):
    index.put([(FINGERPRINT, A), (OTHER, B)])
    assert index.foreign(FINGERPRINT) == [ForeignBlob(OTHER, B.key, B.stop, 20, 2, B.last_used, B.seconds)]
    assert list(index.sizes()) == [(FINGERPRINT, A.key, 10), (OTHER, B.key, 20)]
    assert index.has(OTHER, B.key)
    assert not index.has(FINGERPRINT, B.key)


def test_times_in_the_future_are_read_as_now(index: Index, clock: Clock):
    index.put([(FINGERPRINT, replace(A, last_used=NOW + 500))])
    index.quarantine(FINGERPRINT, [b"bad"], 2.0, 1.0)
    clock.now -= 1000
    assert [entry.last_used for _, entry in index.records(FINGERPRINT)] == [NOW - 1000]
    assert [entry.last_used for entry in index.foreign(OTHER)] == [NOW - 1000]
    assert [entry.last_used for entry in index.models()] == [NOW - 1000]
    assert [entry.noted for entry in index.quarantined(FINGERPRINT)] == [NOW - 1000]


def test_what_was_written_counts_for_an_hour(index: Index, clock: Clock):
    index.put([(FINGERPRINT, A)], num_written_bytes=10)
    clock.now += 1800
    index.add_writes([(clock.now, 5), (clock.now - 600, 1)])
    assert index.num_written_bytes() == 16
    clock.now += 1800
    assert index.num_written_bytes() == 16
    clock.now += 120
    assert index.num_written_bytes() == 6
    clock.now += 1800
    assert index.num_written_bytes() == 0


def test_a_clock_that_jumps_neither_clears_the_budget_nor_blocks_it_for_long(index: Index, clock: Clock):
    index.add_writes([(clock.now, 10)])
    clock.now += 7200
    assert index.num_written_bytes() == 0
    index.add_writes([(clock.now, 3)])
    clock.now -= 7200
    assert index.num_written_bytes() == 13
    clock.now -= 30 * 24 * 3600
    assert index.num_written_bytes() == 13
    clock.now += 3720
    assert index.num_written_bytes() == 0


def test_quarantined_prefixes_are_left_out(index: Index):
    index.put([(FINGERPRINT, A), (FINGERPRINT, B), (OTHER, A)])
    index.quarantine(FINGERPRINT, [A.key.prefix], 0.5, 0.1)
    assert [entry for _, entry in index.records(FINGERPRINT)] == [B]
    assert [entry for _, entry in index.records(OTHER)] == [A]
    assert index.quarantined(FINGERPRINT) == [Quarantined(A.key.prefix, NOW, 0.5, 0.1)]
    assert index.quarantined_keys(FINGERPRINT) == [A.key]


def test_noise_floors_and_file_hashes_are_remembered(index: Index, tmp_path: Path):
    assert index.noise_floor(FINGERPRINT) is None
    index.set_noise_floor(FINGERPRINT, "{}")
    index.set_noise_floor(FINGERPRINT, '{"max": 1}')
    assert index.noise_floor(FINGERPRINT) == '{"max": 1}'
    model = tmp_path / "model.gguf"
    model.write_bytes(b"weights")
    assert index.file_hash(model, model.stat()) is None
    index.set_file_hash(model, b"digest", model.stat())
    assert index.file_hash(model, model.stat()) == b"digest"
    model.write_bytes(b"others!")
    assert index.file_hash(model, model.stat()) is None


def test_clearing_leaves_no_trace_in_the_file_but_the_write_budget(index: Index, tmp_path: Path):
    for fingerprint in (FINGERPRINT, OTHER):
        index.register(fingerprint, "name")
        index.put([(fingerprint, replace(A, tokens=PRIVATE))], num_written_bytes=10)
        index.quarantine(fingerprint, [b"bad"], 2.0, 1.0)
        index.set_noise_floor(fingerprint, "{}")
    assert any(packed(PRIVATE) in path.read_bytes() for path in tmp_path.iterdir())
    index.clear(FINGERPRINT)
    assert [model.fingerprint for model in index.models()] == [OTHER]
    assert index.quarantined(FINGERPRINT) == []
    assert index.noise_floor(OTHER) == "{}"
    index.clear(None)
    assert (index.models(), index.num_bytes, index.num_written_bytes()) == ([], 0, 20)
    assert not any(packed(PRIVATE) in path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".sqlite3-shm")


def test_a_deleted_blob_leaves_no_tokens_in_the_file(tmp_path: Path, clock: Clock):
    index = Index(tmp_path / "index.sqlite3", clock=clock)
    index.put([(FINGERPRINT, replace(A, tokens=PRIVATE)), (FINGERPRINT, B)])
    assert any(packed(PRIVATE) in path.read_bytes() for path in tmp_path.iterdir())
    index.delete([(FINGERPRINT, A.key)])
    index.close()
    assert packed(PRIVATE) not in (tmp_path / "index.sqlite3").read_bytes()


def test_the_files_are_private(index: Index, tmp_path: Path):
    index.put([(FINGERPRINT, A)])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    names = ["index.lock", "index.sqlite3", "index.sqlite3-shm", "index.sqlite3-wal"]
    assert modes == dict.fromkeys(names, 0o600)


def spoil_version(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database" * 1000),
        lambda path: path.write_bytes(path.read_bytes()[:30]),
        spoil_version,
    ],
    ids=["garbage", "cut off", "another version"],
)
def test_what_is_not_ours_is_set_aside_with_one_warning(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, spoil
):
    path = tmp_path / "index.sqlite3"
    index = Index(path, clock=clock)
    index.put([(FINGERPRINT, A)])
    index.close()
    spoil(path)
    index = Index(path, clock=clock)
    assert index.records(FINGERPRINT) == []
    index.put([(FINGERPRINT, A)])
    index.close()
    (line,) = caplog.messages
    assert line.startswith("The index of the cache on disk is rebuilt from the files: ")


def test_a_log_without_its_database_is_not_taken_over(tmp_path: Path, clock: Clock):
    path = tmp_path / "index.sqlite3"
    index = Index(path, clock=clock)
    index.put([(FINGERPRINT, A)])
    log = path.with_name("index.sqlite3-wal").read_bytes()
    index.close()
    path.unlink()
    path.with_name("index.sqlite3-wal").write_bytes(log)
    index = Index(path, clock=clock)
    assert index.records(FINGERPRINT) == []
    index.close()


def test_closing_a_deleted_database_does_not_touch_the_one_in_its_place(tmp_path: Path, clock: Clock):
    path = tmp_path / "index.sqlite3"
    old = Index(path, clock=clock)
    old.put([(FINGERPRINT, A)])
    path.unlink()
    new = Index(path, clock=clock)
    new.put([(FINGERPRINT, B)])
    assert old.is_gone
    assert not new.is_gone
    # Had they a log or its index in common, this would spoil the new one.
    old.put([(FINGERPRINT, C)])
    new.put([(FINGERPRINT, A)])
    old.set_aside()
    assert path.with_name("index.sqlite3-wal").exists()
    again = Index(path, clock=clock)
    assert [entry for _, entry in again.records(FINGERPRINT)] == [A, B]
    again.close()
    new.close()


def test_a_failed_transaction_leaves_nothing(index: Index):
    with pytest.raises(sqlite3.IntegrityError):
        index.put([(FINGERPRINT, A), (FINGERPRINT, replace(B, stop=None))], num_written_bytes=5)
    assert (index.num_bytes, index.num_written_bytes(), index.models()) == (0, 0, [])
    index.put([(FINGERPRINT, A)])
