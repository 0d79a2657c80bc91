"""The tree's side of the disk: what is written and in which order, what is found again, and what must go.

Everything on disk hangs together from the root: the file of a span names the prefix before it, and is written after
that prefix's own. A memory without additive state has path records in their place, spans without a payload.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, takewhile

import numpy as np

from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.index import ForeignBlob
from kvstet.cache.disk.tier import DiskTier
from kvstet.cache.policy import Appraisal, Piece, Policy, chance, chance_of, total_bytes
from kvstet.cache.tier import BlobKey, Tier
from kvstet.cache.tree import TOKEN, Node, Stored, Tree
from kvstet.types import Blob

HEADER_BYTES = 256
"""About what a file takes beside tokens and state."""

FLUSH_BLOBS = 256
"""Blobs whose hits and times of use go to the index at once."""

SCAN_BLOBS = 64
"""Blobs to look at for one that can be written now."""

REFUSED_SECONDS = 1.0
"""How long it is taken for granted that there is no room, once a search has found none."""

EVICTION_STEPS = 32
"""A full disk is relieved of at least one part in this many at a time."""


class Archive:
    """Keeps a tree's state on disk. Owned by the engine's thread, as the cache is."""

    def __init__(
        self,
        tree: Tree,
        policy: Policy,
        ram: Tier,
        disk: DiskTier,
        *,
        clock: Callable[[], float],
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self.disk = disk
        self.num_evicted_blobs = 0
        self._tree = tree
        self._policy = policy
        self._ram = ram
        self._clock = clock
        self._unix_clock = unix_clock
        self._unwritten: dict[Stored, None] = {}
        self._num_refused = 0
        """In a row, for want of room."""
        self._in_hand: Stored | None = None
        self._began = clock()
        self._write_seconds = 0.0
        self._touched: set[Stored] = set()
        self._refused: tuple[float, int] = (0.0, 0)
        self._unwritable: set[BlobKey] = set()
        """The disk takes them not: they are quarantined there."""

    # Finding again

    def restore(self) -> list[Stored]:
        """Grow the tree by all that is on disk, and tell what was found; what hangs in the air is deleted.

        So is what no longer fits, where the disk may take less than before.
        """
        found, lost = self._graft_all(self.disk.records())
        self.disk.drop(record.key for record in lost)
        self._make_room(0)
        return [stored for stored in found if stored.nodes]

    def sync(self) -> None:
        """Grow the tree by what other processes have written since."""
        self._graft_all(self.disk.new_records())

    def fetch(self, stored: Stored) -> Blob | None:
        """The verified blob; None: it is on disk no more."""
        blob = self.disk.get(stored.key)
        if blob is None:
            stored.disk_bytes = 0
        return blob

    # Writing

    def add(self, stored: Stored) -> None:
        """The blob is in RAM, and should be on disk too."""
        self._unwritten[stored] = None
        self._num_refused = 0

    @property
    def is_busy(self) -> bool:
        return self.disk.is_busy

    @property
    def num_unwritten_blobs(self) -> int:
        return len(self._unwritten) + (self._in_hand is not None and self._in_hand not in self._unwritten)

    def write_step(self, share: float = 1.0) -> bool:
        """Hand the next blob to the writer, if it is free. False: there is nothing to write, or not now.

        Writing takes at most this ``share`` of the time. At most one search for room, which reads the whole tree.
        """
        self.collect()
        if self.disk.is_busy or self._clock() < self._began + self._write_seconds / share:
            return False
        for stored in list(islice(self._unwritten, SCAN_BLOBS)):
            del self._unwritten[stored]
            if not stored.nodes or not stored.in_ram or stored.on_disk or not self._policy.is_worth_writing(stored):
                continue
            first = self._first_missing(stored)
            if first is not stored:
                self._unwritten[stored] = None  # Later, behind what is still missing of its path.
            if first is None:
                continue
            blob = self._ram.get(first.key) if first.in_ram else None
            if _is_lost(first, blob):
                continue
            if not self._may_write(first, blob):
                self._unwritten[stored] = None
                return False
            if not self._hand_over(first, blob, stored):
                # There may be room for others, and another time for this one.
                self._unwritten[stored] = None
                self._num_refused += 1
                return self._num_refused < len(self._unwritten)
            self._num_refused = 0
            if blob is None:
                # What the record of a path was written for comes next, before others take the room.
                self._unwritten = {stored: None} | self._unwritten
            return True
        return False

    def write_now(self, stored: Stored, blob: Blob) -> bool:
        """Write a blob that nothing else keeps, and wait for it. False: it is not on disk."""
        while not stored.on_disk:
            self.disk.wait()
            self.collect()
            if stored.on_disk:
                break
            first = self._first_missing(stored)
            if first is None:
                return False
            data = blob if first is stored else self._ram.get(first.key) if first.in_ram else None
            if _is_lost(first, data) or not self._may_write(first, data) or not self._hand_over(first, data, stored):
                return False
            self.disk.wait()
            self.collect()
            if not first.on_disk:
                return False
        return True

    def collect(self) -> None:
        """Take note of what the writer has done."""
        for written in self.disk.finished():
            stored, self._in_hand = self._in_hand, None
            self._write_seconds = self._clock() - self._began
            assert stored is not None and stored.key == written.record.key
            if written.error is None and stored.nodes:
                stored.disk_bytes = written.record.num_bytes
                self._unwritten.pop(stored, None)
            elif written.error is None:
                self.disk.drop([stored.key])
            else:
                if self.disk.can_write(0):
                    # It was about this blob, and would be again.
                    self._unwritable.update([stored.key] if stored.nodes else [])
                elif stored.in_ram:
                    self._unwritten[stored] = None
                if not stored.in_ram:
                    stored.detach()

    def touch(self, nodes: Iterable[Node]) -> None:
        """The nodes were used; the index hears of it later."""
        for node in nodes:
            for stored in (node.span, node.checkpoint):
                if stored is not None and stored.on_disk:
                    self._touched.add(stored)

    def flush_step(self) -> bool:
        """Tell the index of some of what was used. False: it knows all of it."""
        batch = [self._touched.pop() for _ in range(min(FLUSH_BLOBS, len(self._touched)))]
        used = [(s.key, s.nodes[-1].num_hits, self._unix_time(s.nodes[-1].last_used)) for s in batch if s.nodes]
        if used:
            self.disk.touch(used)
        return bool(self._touched)

    def close(self) -> None:
        """Let the writer finish what it has in hand."""
        self.disk.wait()
        self.collect()
        while self.flush_step():
            continue
        self.disk.close()

    # Letting go

    def drop(self, stored: Stored) -> None:
        """Delete a blob from disk."""
        if stored.on_disk:
            stored.disk_bytes = 0
            self.disk.drop([stored.key])

    def __repr__(self) -> str:
        return f"<Archive {self.num_unwritten_blobs} unwritten, {self.disk!r}>"

    # Inside

    def _first_missing(self, stored: Stored) -> Stored | None:
        """What must be written first, so that the blob's path is on disk; None: it cannot be."""
        top = stored.nodes[-1] if stored.key.kind == "checkpoint" else stored.nodes[0].parent
        for node in reversed(list(top.path())) if top is not None else ():
            if node.span is None:
                key = BlobKey("span", node.id, node.start)
                if self._policy.traits.has_spans or key in self._unwritable:
                    return None
                node.span = Stored(key, node.start, node.stop, 0, [node])
                return node.span
            if not node.span.on_disk:
                can_be = node.span.in_ram or not self._policy.traits.has_spans
                return node.span if can_be and node.span.key not in self._unwritable else None
        return stored

    def _may_write(self, stored: Stored, blob: Blob | None) -> bool:
        """Whether the disk takes it now, if there is room."""
        may = self.disk.can_write(_file_bytes(stored, blob))
        if not may and blob is None:
            stored.detach()  # The record of a path, made just now.
        return may

    def _hand_over(self, stored: Stored, blob: Blob | None, cause: Stored) -> bool:
        """Begin to write something for the sake of another, or of itself. False: there is no room."""
        if blob is not None:
            has_room = self._make_room(_file_bytes(stored, blob), stored)
        else:
            # The record of a path is of no use without all the others, and what they are for.
            has_room = self._make_room(_path_bytes(cause) + cause.num_bytes + HEADER_BYTES, cause)
        if has_room:
            self._in_hand = stored
            self._began, self._write_seconds = self._clock(), 0.0
            self.disk.write(self._record(stored), blob.data if blob else np.zeros(0, np.uint8))
            return True
        if blob is None:
            stored.detach()
        return False

    def _record(self, stored: Stored) -> Record:
        tip = stored.nodes[-1]
        is_path = stored.key.kind == "span"
        parent = stored.nodes[0].parent if is_path else tip
        assert parent is not None
        return Record(
            stored.key,
            parent.id,
            parent.stop,
            stored.stop,
            b"".join(node.data for node in stored.nodes) if is_path else b"",
            self._policy.compute_seconds(stored),
            tip.num_hits,
            self._unix_time(tip.last_used),
        )

    def _make_room(self, num_bytes: int, newcomer: Stored | None = None) -> bool:
        """All or nothing, as in RAM; blobs of other models go where they are less likely to be asked for."""
        missing_bytes = self.disk.used_bytes + num_bytes - self.disk.capacity_bytes
        if missing_bytes <= 0:
            return True
        now = self._clock()
        if num_bytes > self.disk.capacity_bytes or (now < self._refused[0] and num_bytes >= self._refused[1]):
            return False
        wanted_bytes = max(missing_bytes, self.disk.capacity_bytes // EVICTION_STEPS)
        appraisal = Appraisal(self._policy, self._tree.nodes(), now)
        own = deque(appraisal.victims("disk", wanted_bytes, newcomer))
        foreign = deque(self._foreign())
        if missing_bytes > total_bytes(own) + sum(blob.num_bytes for _, blob in foreign):
            self._refused = (now + REFUSED_SECONDS, num_bytes)
            return False
        while wanted_bytes > 0 and (own or foreign):
            if foreign and (not own or foreign[0][0] <= chance(own[0].stored.nodes[-1], self._clock())):
                wanted_bytes -= self.disk.drop_foreign([foreign.popleft()[1]])
            else:
                wanted_bytes -= own[0].num_bytes
                self.evict(own.popleft())
        return self.disk.used_bytes + num_bytes <= self.disk.capacity_bytes

    def _foreign(self) -> list[tuple[float, ForeignBlob]]:
        """Other models' blobs, with how likely they are asked for: the least likely first, branches from their ends."""
        now = self._unix_clock()
        blobs = [(chance_of(blob.num_hits, now - blob.last_used), blob) for blob in self.disk.foreign()]
        return sorted(blobs, key=lambda pair: (pair[0], -pair[1].stop))

    def evict(self, piece: Piece) -> None:
        """Drop one blob from disk."""
        stored = piece.stored
        self.drop(stored)
        self.num_evicted_blobs += 1
        if not stored.in_ram:
            stored.detach()

    def _graft_all(self, records: Iterable[Record]) -> tuple[list[Stored], list[Record]]:
        found: list[Stored] = []
        lost: list[Record] = []
        for record, node in place(self._tree, records, self._cache_time):
            stored = self._attach(record, node) if node else None
            if stored:
                found.append(stored)
            else:
                lost.append(record)
        changed: set[Node] = set()
        for stored in found:
            # Above what was seen, all was.
            changed.update(takewhile(lambda node: node not in changed, stored.nodes[-1].path()))
        for parent in {node.parent for node in changed}:
            assert parent is not None
            parent.sort_children()
        return found, lost

    def _attach(self, record: Record, node: Node) -> Stored | None:
        """Let a node have what is on disk of it. None: what it has already overlaps with that."""
        known = node.span if record.key.kind == "span" else node.checkpoint
        if known is None:
            path = takewhile(lambda step: step.stop > record.key.start, node.path())
            nodes = list(path) if record.tokens else [node]
            if record.key.kind == "span" and any(step.span for step in nodes):
                return None
            has_payload = record.key.kind == "checkpoint" or self._policy.traits.has_spans
            num_bytes = record.num_bytes if has_payload else 0
            known = Stored(record.key, record.key.start, record.stop, num_bytes, nodes[::-1])
            known.attach()
        elif known.key != record.key:
            return None
        known.disk_bytes = record.num_bytes
        return known

    def _cache_time(self, used: float) -> float:
        return self._clock() - max(0.0, self._unix_clock() - used)

    def _unix_time(self, used: float) -> float:
        return self._unix_clock() - max(0.0, self._clock() - used)


def _file_bytes(stored: Stored, blob: Blob | None) -> int:
    """About what the file will take."""
    num_tokens = stored.stop - stored.start if stored.key.kind == "span" else 0
    return (blob.num_bytes if blob else 0) + num_tokens * TOKEN.itemsize + HEADER_BYTES


def _path_bytes(stored: Stored) -> int:
    """About what the records of its path will take that are still missing."""
    missing = [node for node in stored.nodes[-1].path() if node.span is None or not node.span.on_disk]
    return sum(len(node.data) + HEADER_BYTES for node in missing)


def _is_lost(stored: Stored, blob: Blob | None) -> bool:
    """RAM should have it, and has not; only the record of a path has no state."""
    return blob is None and stored.num_bytes > 0


def place(
    tree: Tree, records: Iterable[Record], time_of: Callable[[float], float] = float
) -> Iterator[tuple[Record, Node | None]]:
    """Grow a tree by records, whatever their order; with each, the node where its state ends.

    None: the prefix that it goes on from is not there, or it is not what its name says. ``time_of`` turns unix time
    into the tree's.
    """
    ends: dict[bytes, Node] = {tree.root.id: tree.root}
    # What a record goes on from may end amid the tokens of another, which begin before its own do.
    for record in sorted(records, key=lambda record: record.origin):
        parent = ends.get(record.parent) or tree.find(record.parent, record.origin)
        used = time_of(record.last_used)
        node = tree.graft(parent, record.tokens, used) if parent is not None else None
        if parent is None or node is None or node.id != record.key.prefix or node.stop != record.stop:
            yield record, None
            continue
        ends[record.parent], ends[node.id] = parent, node
        for step in node.path():
            if step is not node and step.num_hits >= record.num_hits and step.last_used >= used:
                break  # So it is with all above it.
            step.num_hits = max(step.num_hits, record.num_hits)
            step.last_used = max(step.last_used, used)
        yield record, node
