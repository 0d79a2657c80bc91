"""Damage to a cache folder, and an engine that tells at once if any of it were ever believed."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tests.engine.real import CHUNK, Logits, RealEngine, divergence

from kvstet.cache.cache import Cache
from kvstet.cache.disk.tier import PAUSE_SECONDS, DiskStore, DiskTier, Record
from kvstet.cache.policy import Policy
from kvstet.cache.rates import Rates, TierName
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.config import EngineOptions
from kvstet.engine.engine import Engine
from kvstet.engine.model import Batch
from kvstet.types import Blob, SeqId

FINGERPRINT = b"a toy with f32 state"

MAX_DIVERGENCE = 1e-6
"""Cold runs in other batches differ by as much (`test_exactness`); state that is wrong differs by 1e-2 and more."""

FILE_FAULTS = ("flip", "truncate", "zero", "delete")
INDEX_FAULTS = ("flip index", "flip log", "truncate index", "delete index", "age index")

Random = np.random.Generator


@dataclass
class Wounds:
    """Files that were damaged, and have been neither found out nor replaced since."""

    digests: dict[Path, bytes | None] = field(default_factory=dict)
    """Of the damaged content; None: the file was deleted."""
    num_refused: int = 0
    """Damaged files that were asked for; the loss of a whole file is not counted."""

    def note(self, path: Path) -> None:
        self.digests[path] = digest_of(path)

    def is_open(self, path: Path) -> bool:
        """Whether the file is still as it was left by the fault."""
        if path in self.digests and digest_of(path) != self.digests[path]:
            del self.digests[path]
        return path in self.digests

    @property
    def files(self) -> set[Path]:
        """Damaged files that lie there now."""
        return {path for path in list(self.digests) if self.is_open(path) and path.exists()}


def digest_of(path: Path) -> bytes | None:
    """None: there is no such file."""
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except FileNotFoundError:
        return None


class FixedRates(Rates):
    """Those of a real model: a toy may compute as fast as it loads, and would then not load."""

    def observe_compute(self, num_tokens: int, looks: float, seconds: float) -> None: ...

    def observe_load(self, num_bytes: int, tier: TierName, seconds: float) -> None: ...


class WatchedTier(DiskTier):
    """Gives what was written and nothing else, and none of it from a damaged file; else the test fails."""

    wounds: Wounds
    written: dict[BlobKey, set[bytes]]
    """Digests of all state that was ever written under each key."""
    store: DiskStore

    def write(self, record: Record, data: np.ndarray) -> None:
        self.written.setdefault(record.key, set()).add(hashlib.sha256(data.data).digest())
        super().write(record, data)

    def get(self, key: BlobKey) -> Blob | None:
        path = self.store.path(FINGERPRINT, key)
        is_wounded = self.wounds.is_open(path)
        is_damaged = is_wounded and path.exists()
        num_before = self.num_damaged
        blob = super().get(key)
        if is_damaged:
            assert self.num_damaged > num_before, path
            assert not self.wounds.is_open(path), "it is still there"
            self.wounds.num_refused += 1
        assert blob is None or not is_wounded, path
        assert blob is None or hashlib.sha256(blob.data.data).digest() in self.written[key], path
        return blob


@dataclass(kw_only=True)
class DiskEngine(RealEngine):
    """A real engine with a disk. Replies are compared with cold runs, which are computed once for each prompt."""

    folder: Path
    wounds: Wounds = field(default_factory=Wounds)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.written: dict[BlobKey, set[bytes]] = {}
        self.expected: dict[tuple[int, ...], tuple[list[int], list[Logits]]] = {}
        self.open()

    def open(self) -> None:
        # Each request finds the disk past the pause that followed its last fault.
        self.store = DiskStore(self.folder, clock=lambda: time.time() + PAUSE_SECONDS * len(self.reuses))
        self.disk = WatchedTier(self.store, FINGERPRINT, capacity_bytes=1 << 30, write_bytes_per_hour=None)
        self.disk.wounds, self.disk.written, self.disk.store = self.wounds, self.written, self.store
        policy = Policy(self.context.traits, FixedRates())
        ram = RamTier(self.ram_bytes)
        self.cache = Cache(self.context.traits, ram, self.disk, fingerprint=FINGERPRINT, policy=policy)
        self.engine = Engine(self.context, self.cache, EngineOptions(prefill_chunk=CHUNK), parallel=self.parallel)

    def restart(self) -> None:
        """All that is not on disk is lost."""
        self.cache.finish()
        self.store.close()
        for seq in range(self.context.num_sequences):
            self.context.remove(SeqId(seq))
        self.open()

    def close(self) -> None:
        self.cache.finish()
        self.store.close()
        super().close()

    def settle(self) -> None:
        """Until all is on disk, and there is nothing else to do."""
        while (pause := self.engine.idle_step()) is not None:
            time.sleep(pause)
        self.cache.check()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("v1/*/*/*") if path.is_file())

    def files_of(self, tokens: list[int]) -> list[Path]:
        """Files that a request with these tokens may read."""
        path = self.cache.tree.match(np.array(tokens, np.int32)).path
        stored = [stored for node in path for stored in (node.span, node.checkpoint) if stored is not None]
        files = [self.store.path(FINGERPRINT, each.key) for each in stored if each.on_disk and not each.in_ram]
        return [file for file in files if file.exists()]

    def check_replies(self) -> int:
        """Compare all that was said since the last call with cold runs; how many requests that were."""
        samplers, self.context.samplers = self.context.samplers, []
        for sampler in samplers:
            reply, rows = self.cold_reply(sampler.prompt)
            assert sampler.reply == reply[: len(sampler.reply)]
            for cold, warm in zip(rows, sampler.rows, strict=False):
                assert divergence(cold, warm) < MAX_DIVERGENCE
        return len(samplers)

    def cold_reply(self, prompt: list[int]) -> tuple[list[int], list[Logits]]:
        """The greedy reply and the logits it came from, with nothing reused."""
        if tuple(prompt) not in self.expected:
            reply: list[int] = []
            rows = self.cold_rows(prompt, [0])
            for _ in range(self.num_reply_tokens):
                reply.append(int(rows[-1].argmax()))
                self.cold.decode(Batch(np.array(reply[-1:], np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_)))
                rows.append(self.cold.logits(0).copy())
            self.expected[tuple(prompt)] = reply, rows
        return self.expected[tuple(prompt)]


def damage(engine: DiskEngine, fault: str, wanted: list[Path], random: Random) -> None:
    """What a disk, a power failure or a user may do to one file, behind the engine's back.

    Mostly to one of the ``wanted``, if there are any.
    """
    index = engine.folder / "v1" / "index.sqlite3"
    match fault:
        case "delete index":
            for path in engine.folder.glob("v1/index.sqlite3*"):
                path.unlink()
        case "age index":
            with suppress(sqlite3.Error), sqlite3.connect(index) as db:
                db.execute("PRAGMA user_version = 999")
            db.close()
        case "truncate index":
            spoil(index, "truncate", random)
        case "flip index" | "flip log":
            path = index if fault == "flip index" else index.with_name(index.name + "-wal")
            for _ in range(int(random.integers(1, 20))):
                spoil(path, "flip", random)
        case _:
            files = wanted if wanted and random.random() < 0.8 else engine.files()
            files = sorted(set(files) - engine.wounds.files)
            if files:
                path = files[int(random.integers(len(files)))]
                before = digest_of(path)
                spoil(path, fault, random)
                if digest_of(path) != before:
                    engine.wounds.note(path)


def spoil(path: Path, fault: str, random: Random) -> None:
    """Damage one file, if there is any of it."""
    num_bytes = path.stat().st_size if path.exists() else 0
    if not num_bytes:
        return
    if fault == "delete":
        path.unlink()
        return
    # Headers are short beside the state, and as worth hitting.
    limit = num_bytes if random.random() < 0.7 else min(num_bytes, 300)
    place = int(random.integers(limit))
    with path.open("r+b") as file:
        if fault == "truncate":
            file.truncate(place)
            return
        file.seek(place)
        old = file.read(1 if fault == "flip" else 512)
        file.seek(place)
        file.write(bytes([old[0] ^ 1 << int(random.integers(8))]) if fault == "flip" else bytes(len(old)))
