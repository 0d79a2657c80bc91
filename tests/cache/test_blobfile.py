from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import FINGERPRINT, OTHER, record, state

from kvstet.cache.disk import blobfile
from kvstet.errors import DamagedBlob
from kvstet.types import MAPPED_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model" / blobfile.file_name(record().key)


def write(path: Path, data=None, **changes) -> int:
    temp = path.parent.parent / "temp"
    return blobfile.write(temp, path, FINGERPRINT, replace(record(), **changes), state() if data is None else data)


@pytest.mark.parametrize("num_bytes", [0, 1, 40, MAPPED_BYTES, 3 * MAPPED_BYTES + 7])
def test_a_blob_comes_back_as_it_was_written(path: Path, num_bytes: int):
    data = state(1, num_bytes)
    size = write(path, data)
    blob = blobfile.read(path, FINGERPRINT, record().key)
    assert (blob.start, blob.stop) == (4, 7)
    assert np.array_equal(blob.data, data)
    assert blob.data.flags.writeable
    assert size == path.stat().st_size


@pytest.mark.parametrize("kind", ["span", "checkpoint"])
def test_the_header_holds_the_whole_record(path: Path, kind: str):
    written = record(kind=kind, start=0, num_tokens=0)
    size = blobfile.write(path.parent, path, FINGERPRINT, written, state())
    header = blobfile.read_header(path)
    assert header.record == replace(written, num_bytes=size)
    assert (header.fingerprint, header.num_payload_bytes) == (FINGERPRINT, 40)
    assert header.payload_start + 40 == size


def test_a_header_is_small(path: Path):
    assert write(path, state(0, 0), stop=250_000, seconds=1.5, num_hits=12_345, tokens=b"") < 150


def test_state_that_is_not_contiguous_is_written_in_its_order(path: Path):
    data = state(3, 100)[::2]
    write(path, data)
    assert np.array_equal(blobfile.read(path, FINGERPRINT, record().key).data, data)


def test_files_and_folders_are_private_whatever_the_umask(path: Path):
    before = os.umask(0)
    try:
        write(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.parent.stat().st_mode) == 0o700


def test_the_file_is_on_the_disk_before_its_name_is_and_then_the_name(path: Path, monkeypatch: pytest.MonkeyPatch):
    write(path)
    calls: list[str] = []
    fsync, replace_file = os.fsync, os.replace

    def note_fsync(file: int) -> None:
        calls.append("fsync folder" if stat.S_ISDIR(os.fstat(file).st_mode) else "fsync file")
        fsync(file)

    def note_replace(source: Path, target: Path) -> None:
        calls.append("replace")
        replace_file(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write(path)
    assert calls == ["fsync file", "replace", "fsync folder"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
):
    write(path)
    old = path.read_bytes()

    def fail(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            write(path, state(9))
    assert path.read_bytes() == old
    assert [entry for entry in path.parent.parent.rglob("*") if entry.is_file()] == [path]


def test_a_write_that_takes_several_calls_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch):
    os_write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: os_write(file, data[:7]))
    write(path)
    assert np.array_equal(blobfile.read(path, FINGERPRINT, record().key).data, state())


def test_a_temporary_file_is_an_orphan_once_its_writer_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch):
    found: list[tuple[bool, bool]] = []
    os_replace = os.replace

    def look(source: Path, target: Path) -> None:
        found.append((blobfile.remove_orphan(source), source.exists()))
        os_replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    write(path)
    assert found == [(False, True)]
    left = path.parent / "left.tmp"
    left.write_bytes(b"half")
    assert blobfile.remove_orphan(left)
    assert not left.exists()
    assert not blobfile.remove_orphan(left)


def test_every_flipped_bit_is_found(path: Path):
    write(path)
    sound = path.read_bytes()
    for position in [*range(20), *range(20, len(sound), 3)]:
        for bit in range(8):
            damaged = bytearray(sound)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(DamagedBlob):
                blobfile.read(path, FINGERPRINT, record().key)
            with pytest.raises(DamagedBlob):
                blobfile.verify(path)


def test_flipped_bits_of_a_large_file_are_found(path: Path):
    size = write(path, state(1, 1_000_000))
    with path.open("r+b") as file:
        for position in [*range(0, size, 9973), size - 1]:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1 << position % 8]))
            file.flush()
            with pytest.raises(DamagedBlob):
                blobfile.read(path, FINGERPRINT, record().key)
            file.seek(position)
            file.write(bytes([byte]))
    assert blobfile.read(path, FINGERPRINT, record().key).num_bytes == 1_000_000


def test_a_file_of_any_other_length_is_damaged(path: Path):
    write(path)
    sound = path.read_bytes()
    for data in [*(sound[:length] for length in range(len(sound))), sound + b"\0", sound + sound]:
        path.write_bytes(data)
        with pytest.raises(DamagedBlob):
            blobfile.read_header(path)
        with pytest.raises(DamagedBlob):
            blobfile.read(path, FINGERPRINT, record().key)


def test_garbage_is_damaged(path: Path):
    path.parent.mkdir(parents=True)
    for data in (b"", b"kvstet", bytes(1000), state(5, 1000).tobytes(), b"kvstet\x01\x00\xff\xff\xff\xff"):
        path.write_bytes(data)
        with pytest.raises(DamagedBlob):
            blobfile.read_header(path)


def test_a_blob_is_read_only_under_its_own_name_and_model(path: Path):
    write(path)
    with pytest.raises(DamagedBlob, match="another model"):
        blobfile.read(path, OTHER, record().key)
    for key in (record("b").key, record(start=5).key, record(kind="checkpoint").key):
        with pytest.raises(DamagedBlob, match="another blob"):
            blobfile.read(path, FINGERPRINT, key)
    moved = path.with_name("0" + path.name)
    path.rename(moved)
    with pytest.raises(DamagedBlob, match="another blob"):
        blobfile.verify(moved)


def test_names_differ_by_kind_start_and_prefix():
    keys = [entry.key for entry in (record(), record("b"), record(start=5), record(kind="checkpoint"))]
    names = [blobfile.file_name(key) for key in keys]
    assert len(set(names)) == 4
    assert all(blobfile.is_blob_name(name) for name in names)
    assert names[0] == f"{keys[0].prefix.hex()[:2]}/{keys[0].prefix.hex()}-4.s"
