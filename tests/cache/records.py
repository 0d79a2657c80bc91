"""Records and state for tests of the disk, and what a cache folder looks like from outside."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier, Written
from kvstet.cache.tier import BlobKey

FINGERPRINT = b"fingerprint-of-a"
OTHER = b"fingerprint-of-b"
NOW = 1_700_000_000.0


class Clock:
    """Unix time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def record(name: str = "a", *, kind: str = "span", start: int = 4, num_tokens: int = 3) -> Record:
    """A record whose identity is made from its name."""
    prefix, parent = (hashlib.blake2b(text.encode(), digest_size=16).digest() for text in (name, f"above {name}"))
    tokens = np.arange(num_tokens, dtype="<i4").tobytes()
    key = BlobKey("span" if kind == "span" else "checkpoint", prefix, start)
    return Record(key, parent, start, start + num_tokens, tokens, 1.25, 2, NOW - 60.5)


def state(seed: int = 0, num_bytes: int = 40) -> NDArray[np.uint8]:
    return np.frombuffer(random.Random(seed).randbytes(num_bytes), np.uint8)


def save(tier: DiskTier, blob: Record, data: NDArray[np.uint8] | None = None) -> Written:
    """Write one blob, and wait for it."""
    tier.write(blob, state() if data is None else data)
    tier.wait()
    (written,) = tier.finished()
    return written


def saved(tier: DiskTier, *names: str) -> list[Record]:
    """Write a blob per name; their records, as the disk has them."""
    results = [save(tier, record(name)) for name in names]
    assert [result.error for result in results] == [None] * len(names)
    return [result.record for result in results]


def files(folder: Path) -> list[Path]:
    """All blob files, and whatever else lies among them."""
    return sorted(path for path in folder.glob("v1/*/*/*") if path.is_file())


def temps(folder: Path) -> list[Path]:
    return sorted((folder / "v1" / "temp").iterdir())


def assert_consistent(store: DiskStore, fingerprints: tuple[bytes, ...] = (FINGERPRINT,)) -> None:
    """Every file is sound, and has a row that says of it what it says itself."""
    assert [problem for _, problem in store.verify() if problem] == []
    rows = {store.path(owner, row.key): row for owner in fingerprints for row in store.records(owner)}
    assert sorted(rows) == files(store.folder)
    assert all(row.num_bytes == path.stat().st_size for path, row in rows.items())
    assert store.used_bytes == sum(path.stat().st_size for path in rows)
    assert sum(model.num_blobs for model in store.models()) == len(rows)
