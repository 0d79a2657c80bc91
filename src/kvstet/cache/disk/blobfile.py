"""One blob in one file: what it is the state of, the state, and checksums over both. Published whole or not at all.

::

    magic "kvstet", version (2 bytes), header length (4 bytes)
    header                                                        msgpack, see `_Fields`
    xxh3_64 of all bytes before (8 bytes)
    payload                                                       as long as the header says, and nothing behind it

Integers are little-endian. The payload's own checksum, xxh3_128, stands in the header.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import struct
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from kvstet.cache.disk.packing import packed, unpacked
from kvstet.cache.tier import BlobKey, BlobKind
from kvstet.errors import DamagedBlob
from kvstet.types import Blob, new_buffer

MAGIC = b"kvstet"
VERSION = 2
CHUNK_BYTES = 1 << 20

_PREAMBLE = struct.Struct("<6sHI")
_CHECKSUM_BYTES = 8
KINDS: tuple[BlobKind, ...] = ("span", "checkpoint")
_SUFFIXES: dict[BlobKind, str] = {"span": ".s", "checkpoint": ".c"}

_counter = itertools.count()
_process_token = secrets.token_hex(4)
"""Processes in two containers may have the same id."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a blob without reading it."""

    key: BlobKey
    parent: bytes
    """Identity of the tokens ``[0, origin)``; the root's where ``origin`` is 0."""
    origin: int
    """Where ``tokens`` begin."""
    stop: int
    """Where they end; the blob is the state up to here."""
    tokens: bytes
    """int32, little-endian, of ``[origin, stop)``; may be empty (``origin == stop``)."""
    seconds: float
    """What it takes to compute the state again."""
    num_hits: int
    last_used: float
    """Unix time."""
    num_bytes: int = 0
    """Of the file; 0 until it is written."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    fingerprint: bytes
    record: Record
    payload_start: int
    num_payload_bytes: int
    payload_hash: bytes


class _Fields(msgspec.Struct, array_like=True, frozen=True):
    fingerprint: bytes
    kind: int
    prefix: bytes
    start: int
    parent: bytes
    origin: int
    stop: int
    seconds: float
    num_hits: int
    last_used: float
    num_payload_bytes: int
    payload_hash: bytes
    tokens: bytes
    """Packed, see `kvstet.cache.disk.packing`."""


# Names


def file_name(key: BlobKey) -> str:
    """The name of a blob's file, relative to its model's folder."""
    prefix = key.prefix.hex()
    return f"{prefix[:2]}/{prefix}-{key.start}{_SUFFIXES[key.kind]}"


def is_blob_name(name: str) -> bool:
    return name.endswith(tuple(_SUFFIXES.values()))


# Writing


def write(temp_folder: Path, path: Path, fingerprint: bytes, record: Record, data: NDArray[np.uint8]) -> int:
    """Publish a blob at ``path`` and return the size of the file. Raises OSError; then nothing is left behind.

    Whoever reads meanwhile finds the old file or the new one. After the return, the file survives a power failure.
    """
    payload = np.ascontiguousarray(data).data
    head = _head(fingerprint, record, payload)
    make_private(temp_folder)
    make_private(path.parent)
    with temporary(temp_folder) as (temp_path, file):
        _write_all(file, memoryview(head))
        _write_all(file, payload)
        os.fsync(file)
        os.replace(temp_path, path)
    sync_folder(path.parent)
    return len(head) + len(payload)


def make_private(folder: Path) -> None:
    """Create a folder, and those above it, for this user alone, where they are not there yet. Raises OSError."""
    if folder.is_dir():
        return
    make_private(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        if not folder.is_dir():  # else another process was faster
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    sync_folder(folder.parent)


def remove_orphan(path: Path) -> bool:
    """Remove a temporary file whose writer is dead: a living one holds a lock on it. Raises OSError."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


@contextmanager
def temporary(folder: Path) -> Generator[tuple[Path, int]]:
    """A new file, locked by us; where the block fails, it is gone afterwards."""
    path, file = _create_locked(folder)
    try:
        yield path, file
    except BaseException:
        # The first error says what is wrong; `remove_orphan` finds what cannot be removed now.
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(file)


def _create_locked(folder: Path) -> tuple[Path, int]:
    while True:
        path = folder / f"{os.getpid()}-{_process_token}-{next(_counter)}.tmp"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file).st_nlink:
                return path, file
        except BaseException:
            os.close(file)
            raise
        # Another process took it for an orphan before it was locked.
        os.close(file)


def _head(fingerprint: bytes, record: Record, payload: memoryview) -> bytes:
    key = record.key
    fields = _Fields(
        fingerprint,
        KINDS.index(key.kind),
        key.prefix,
        key.start,
        record.parent,
        record.origin,
        record.stop,
        float(record.seconds),
        int(record.num_hits),
        float(record.last_used),
        len(payload),
        xxhash.xxh3_128_digest(payload),
        packed(record.tokens),
    )
    header = msgspec.msgpack.encode(fields)
    checked = _PREAMBLE.pack(MAGIC, VERSION, len(header)) + header
    return checked + xxhash.xxh3_64_digest(checked)


def _write_all(file: int, data: memoryview) -> None:
    while data:
        data = data[os.write(file, data) :]


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


# Reading


def read_header(path: Path) -> Header:
    """Raises DamagedBlob, also where the size is not what the header says, and OSError. Reads no payload."""
    with path.open("rb", buffering=0) as file:
        return _read_header(file, _size(file), path)


def read(path: Path, fingerprint: bytes, key: BlobKey) -> Blob:
    """The verified blob, in memory of its own. Raises DamagedBlob, OSError and MemoryError."""
    with path.open("rb", buffering=0) as file:
        header = _read_header(file, _size(file), path)
        if header.fingerprint != fingerprint:
            raise DamagedBlob(f"{path} holds the state of another model.")
        if header.record.key != key:
            raise DamagedBlob(f"{path} holds another blob than its name says.")
        data = _read_payload(file, header, path)
    return Blob(key.start, header.record.stop, data)


def verify(path: Path) -> Header:
    """Read all of a file in small pieces, compare its checksums, and its name with its key. Raises as `read` does."""
    with path.open("rb", buffering=0) as file:
        header = check(file, _size(file), path)
    if not path.match(file_name(header.record.key)):
        raise DamagedBlob(f"{path} holds another blob than its name says.")
    return header


def check(file: FileIO, num_bytes: int, path: Path) -> Header:
    """Read the blob of ``num_bytes`` that begins where the file stands, in small pieces, and compare its checksums.

    ``path`` is what errors call it. Raises as `read` does.
    """
    header = _read_header(file, num_bytes, path)
    digest = xxhash.xxh3_128()
    num_missing_bytes = header.num_payload_bytes
    while num_missing_bytes:
        chunk = file.read(min(num_missing_bytes, CHUNK_BYTES))
        if not chunk:
            raise DamagedBlob(f"{path} is damaged: it became shorter while it was read.")
        digest.update(chunk)
        num_missing_bytes -= len(chunk)
    if digest.digest() != header.payload_hash:
        raise DamagedBlob(f"{path} is damaged: its state does not match its checksum.")
    return header


def load(file: FileIO, num_bytes: int, path: Path) -> tuple[Header, NDArray[np.uint8]]:
    """As `check`, with the payload."""
    header = _read_header(file, num_bytes, path)
    return header, _read_payload(file, header, path)


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _read_header(file: FileIO, num_bytes: int, path: Path) -> Header:
    """Of a blob of ``num_bytes``. Leaves the file at the start of the payload."""
    preamble = os.read(file.fileno(), _PREAMBLE.size)
    if len(preamble) < _PREAMBLE.size:
        raise DamagedBlob(f"{path} is damaged: it ends after {num_bytes} bytes.")
    magic, version, num_header_bytes = _PREAMBLE.unpack(preamble)
    if magic != MAGIC or version != VERSION:
        raise DamagedBlob(f"{path} is damaged, or was written by another version of kvstet.")
    payload_start = _PREAMBLE.size + num_header_bytes + _CHECKSUM_BYTES
    if payload_start > num_bytes:
        raise DamagedBlob(f"{path} is damaged: it ends within its header.")
    rest = bytearray(num_header_bytes + _CHECKSUM_BYTES)
    _read_all(file, memoryview(rest), path)
    encoded, checksum = rest[:num_header_bytes], bytes(rest[num_header_bytes:])
    if xxhash.xxh3_64_digest(preamble + encoded) != checksum:
        raise DamagedBlob(f"{path} is damaged: its header does not match its checksum.")
    fields, tokens = _decoded(encoded, path)
    if payload_start + fields.num_payload_bytes != num_bytes:
        raise DamagedBlob(
            f"{path} is damaged: it has {num_bytes} bytes and not {payload_start + fields.num_payload_bytes}."
        )
    record = Record(
        BlobKey(KINDS[fields.kind], fields.prefix, fields.start),
        fields.parent,
        fields.origin,
        fields.stop,
        tokens,
        fields.seconds,
        fields.num_hits,
        fields.last_used,
        num_bytes,
    )
    return Header(fields.fingerprint, record, payload_start, fields.num_payload_bytes, fields.payload_hash)


def _decoded(encoded: bytearray, path: Path) -> tuple[_Fields, bytes]:
    """With the tokens, unpacked."""
    try:
        fields = msgspec.msgpack.decode(encoded, type=_Fields)
        tokens = unpacked(fields.tokens, fields.stop - fields.origin)
    except (msgspec.DecodeError, ValueError) as error:
        raise DamagedBlob(f"{path} has a header that cannot be read: {error}.") from error
    if not 0 <= fields.kind < len(KINDS) or fields.num_payload_bytes < 0:
        raise DamagedBlob(f"{path} has a header that cannot be read.")
    return fields, tokens


def _read_payload(file: FileIO, header: Header, path: Path) -> NDArray[np.uint8]:
    data = new_buffer(header.num_payload_bytes)
    _read_all(file, data.data, path)
    if xxhash.xxh3_128_digest(data.data) != header.payload_hash:
        raise DamagedBlob(f"{path} is damaged: its state does not match its checksum.")
    return data


def _read_all(file: FileIO, buffer: memoryview, path: Path) -> None:
    while buffer:
        num_read = file.readinto(buffer)
        if not num_read:
            raise DamagedBlob(f"{path} is damaged: it became shorter while it was read.")
        buffer = buffer[num_read:]
