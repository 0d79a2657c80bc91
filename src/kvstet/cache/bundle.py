"""Saved state in one file, to take to another machine: a tar of blob files between a head and an end of JSON.

::

    kvstet-cache.json                                      what the file is
    <fingerprint>/<2 digits>/<prefix>-<start>.s or .c      the files of a cache folder (`kvstet.cache.disk.blobfile`)
    kvstet-cache-end.json                                  how many there are, and the models' names

What is read is not trusted: names only have to fit, and where a blob goes is told by its verified header alone.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import TypeVar

import msgspec

from kvstet.cache.archive import place
from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Header, Record
from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.disk.store import DiskStore, reason
from kvstet.cache.tier import BlobKey
from kvstet.cache.tree import TOKEN, Tree
from kvstet.errors import BadExport, DamagedBlob, DiskUnavailable

FORMAT = "kvstet cache export"
VERSION = 1
HEAD_NAME = "kvstet-cache.json"
END_NAME = "kvstet-cache-end.json"
MAX_NOTE_BYTES = 1 << 24

T = TypeVar("T")

OnProgress = Callable[[int], None]
"""Takes how many more bytes of blobs were dealt with."""


class _Head(msgspec.Struct):
    format: str
    version: int


class _End(msgspec.Struct):
    num_blobs: int
    models: dict[str, str]
    """Fingerprint, in hex digits -> name."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What went into a file."""

    num_blobs: int
    num_bytes: int
    num_left_out: int
    """Blobs that are damaged, or were deleted meanwhile."""


@dataclass(frozen=True, slots=True)
class Item:
    """A verified blob in a file that was exported."""

    offset: int
    num_bytes: int
    header: Header
    name: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A file that was exported, read whole and found sound."""

    path: Path
    items: list[Item]
    names: dict[bytes, str]
    """Fingerprint -> the model's name."""

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)


@dataclass(slots=True)
class Imported:
    """What became of one model's blobs."""

    fingerprint: bytes
    name: str
    num_blobs: int = 0
    num_bytes: int = 0
    num_known: int = 0
    """Blobs that were there."""
    num_left_out: int = 0
    """Blobs that would not be found: what they go on from is missing, or they are quarantined here."""


# Export


def export(
    path: Path, store: DiskStore, kept: Mapping[ModelEntry, Iterable[Record]], on_progress: OnProgress
) -> Exported:
    """Write these blobs to ``path``, whole or not at all, for this user alone. Raises BadExport."""
    num_blobs = num_bytes = num_left_out = 0
    if path.is_dir():
        raise BadExport(f"{path} cannot be written: it is a folder.")
    with _writing(path), blobfile.temporary(path.parent) as (temp_path, file), open(file, "wb", closefd=False) as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _add(tar, HEAD_NAME, msgspec.json.encode(_Head(FORMAT, VERSION)))
            for model, records in kept.items():
                for record in records:
                    was_added = _add_blob(tar, store.path(model.fingerprint, record.key), model.fingerprint, record)
                    num_blobs, num_left_out = num_blobs + was_added, num_left_out + (not was_added)
                    num_bytes += record.num_bytes if was_added else 0
                    on_progress(record.num_bytes)
            names = {model.fingerprint.hex(): model.name for model in kept}
            _add(tar, END_NAME, msgspec.json.encode(_End(num_blobs, names)))
        raw.flush()
        os.fsync(file)
        os.replace(temp_path, path)
        blobfile.sync_folder(path.parent)
    return Exported(num_blobs, num_bytes, num_left_out)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(_info(name, len(content)), io.BytesIO(content))


def _add_blob(tar: tarfile.TarFile, path: Path, fingerprint: bytes, record: Record) -> bool:
    """False: it is not there any more, or is damaged."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb", buffering=0))
            num_bytes = os.fstat(file.fileno()).st_size
            header = blobfile.check(file, num_bytes, path)
            file.seek(0)
        except (DamagedBlob, OSError):
            return False
        if (header.fingerprint, header.record.key) != (fingerprint, record.key):
            return False
        tar.addfile(_info(_member_name(header), num_bytes), file)
    return True


def _info(name: str, num_bytes: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = num_bytes, 0o600
    return info


def _member_name(header: Header) -> str:
    return f"{header.fingerprint.hex()}/{blobfile.file_name(header.record.key)}"


@contextmanager
def _writing(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise BadExport(f"{path} cannot be written: {reason(error)}.") from error


# Import


def read_bundle(path: Path, on_progress: OnProgress) -> Bundle:
    """Read all of a file and verify every blob in it. Raises BadExport where anything is not as it was written."""
    try:
        with path.open("rb", buffering=0) as file:
            return _read(file, path, on_progress)
    except OSError as error:
        raise BadExport(f"{path} cannot be read: {reason(error)}.") from error
    except DamagedBlob as error:
        raise BadExport(f"{str(error).removesuffix('.')}; nothing was imported.") from error
    except (tarfile.TarError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise _foreign(path) from error


def _read(file: FileIO, path: Path, on_progress: OnProgress) -> Bundle:
    num_file_bytes = os.fstat(file.fileno()).st_size
    items: list[Item] = []
    with tarfile.open(fileobj=file, mode="r:") as tar:
        head = tar.next()
        if head is None or head.name != HEAD_NAME:
            raise _foreign(path)
        if _note(file, head, _Head) != _Head(FORMAT, VERSION):
            raise BadExport(f"{path} was exported by another version of kvstet.")
        while (member := tar.next()) is not None:
            if member.offset_data + member.size > num_file_bytes:
                break
            if member.name == END_NAME:
                return _bundle(path, items, _note(file, member, _End))
            items.append(_item(file, member, path))
            on_progress(member.size)
    raise BadExport(f"{path} is not complete: its end is missing; nothing was imported.")


def _item(file: FileIO, member: tarfile.TarInfo, path: Path) -> Item:
    """Leaves the file where the next member is looked for."""
    if member.type != tarfile.REGTYPE or member.sparse is not None:
        raise _foreign(path)
    file.seek(member.offset_data)
    header = blobfile.check(file, member.size, path / member.name)
    record = header.record
    if member.name != _member_name(header) or len(record.tokens) != (record.stop - record.origin) * TOKEN.itemsize:
        raise DamagedBlob(f"{path / member.name} holds another blob than its name says.")
    return Item(member.offset_data, member.size, header, member.name)


def _note(file: FileIO, member: tarfile.TarInfo, kind: type[T]) -> T:
    file.seek(member.offset_data)
    return msgspec.json.decode(file.read(min(member.size, MAX_NOTE_BYTES)), type=kind)


def _bundle(path: Path, items: list[Item], end: _End) -> Bundle:
    if end.num_blobs != len(items):
        raise BadExport(f"{path} is damaged: it holds {len(items)} files and not {end.num_blobs}.")
    return Bundle(path, items, {bytes.fromhex(fingerprint): name for fingerprint, name in end.models.items()})


def _foreign(path: Path) -> BadExport:
    return BadExport(f"{path} is damaged, or was not written by `kvstet cache export`; nothing was imported.")


def publish(bundle: Bundle, store: DiskStore, on_progress: OnProgress) -> list[Imported]:
    """Put into a cache folder what is not there. Where that fails, what was put there is taken out again.

    Raises BadExport where the file has changed since it was read, and DiskUnavailable.
    """
    models: dict[bytes, list[Item]] = defaultdict(list)
    for item in bundle.items:
        models[item.header.fingerprint].append(item)
    results = [Imported(fingerprint, bundle.names.get(fingerprint, "")) for fingerprint in models]
    added: list[tuple[bytes, BlobKey]] = []
    try:
        for result in results:
            for item in _missing(models[result.fingerprint], store, result):
                added.append((result.fingerprint, _publish(bundle, item, store)))
                result.num_blobs += 1
                result.num_bytes += item.num_bytes
                on_progress(item.num_bytes)
            store.run(lambda index, result=result: index.register(result.fingerprint, result.name))
    except BaseException:
        for fingerprint, key in added:
            store.remove(fingerprint, [key])
        raise
    return results


def _missing(items: list[Item], store: DiskStore, result: Imported) -> list[Item]:
    """What is not there and would be found, parents before children; the rest is counted."""
    known = {record.key: record for record in store.records(result.fingerprint)}
    quarantined = {entry.prefix for entry in store.quarantined(result.fingerprint)}
    offered = {item.header.record.key: item for item in items if item.header.record.key.prefix not in quarantined}
    tree = Tree(result.fingerprint)
    records = known | {key: item.header.record for key, item in offered.items()}
    found = [record.key for record, node in place(tree, records.values()) if node is not None and node is not tree.root]
    result.num_known = sum(key in known for key in offered)
    missing = [offered[key] for key in found if key in offered and key not in known]
    result.num_left_out = len(items) - result.num_known - len(missing)
    return missing


def _publish(bundle: Bundle, item: Item, store: DiskStore) -> BlobKey:
    changed = BadExport(f"{bundle.path} was changed while it was imported.")
    try:
        with bundle.path.open("rb", buffering=0) as file:
            file.seek(item.offset)
            header, data = blobfile.load(file, item.num_bytes, bundle.path / item.name)
    except (DamagedBlob, OSError) as error:
        raise changed from error
    if header != item.header:
        raise changed
    fingerprint, record = header.fingerprint, header.record
    try:
        path = store.path(fingerprint, record.key)
        num_bytes = blobfile.write(store.temp_folder, path, fingerprint, record, data)
    except OSError as error:
        raise DiskUnavailable(f"The cache on disk cannot be used: {reason(error)} ({store.folder}).") from error
    store.publish(fingerprint, replace(record, num_bytes=num_bytes), num_bytes)
    return record.key
