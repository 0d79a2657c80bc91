"""Which state belongs to which model: a hash of its file, and of all else that decides the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import xxhash

from kvstet.cache.disk.store import DiskStore

CHUNK_BYTES = 1 << 22

FINGERPRINT_BYTES = 16

PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""How llama.cpp names the parts of a model that was split."""


def model_fingerprint(path: Path, identity: Iterable[str], store: DiskStore, adapters: Iterable[Path] = ()) -> bytes:
    """Names the state of one model under one set of options. Raises OSError where a file cannot be read.

    The hash of a file is remembered in the store, and taken anew when its size, time or inode changes. It is no
    cryptographic one: it tells files apart, and nobody gains by a collision of their own.
    """
    hashes = [_remembered_hash(part, store).hex() for part in (*model_files(path), *adapters)]
    return xxhash.xxh3_128_digest("\n".join([*hashes, *identity]).encode())


def model_files(path: Path) -> list[Path]:
    """The file, or all parts of a split model of which it is the first."""
    found = PART.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found.group(2))
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def _remembered_hash(path: Path, store: DiskStore) -> bytes:
    known = store.file_hash(path)
    if known is None:
        state = path.stat()
        known = _hash(path)
        store.set_file_hash(path, known, state)
    return known


def _hash(path: Path) -> bytes:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.digest()
