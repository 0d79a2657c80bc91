"""Where saved state lives: one small protocol for RAM now, disk and remote later."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from kvstet.types import Blob

BlobKind = Literal["span", "checkpoint"]


class BlobKey(NamedTuple):
    """Names a blob by what it is the state of, so that equal prefixes find it whoever saved it."""

    kind: BlobKind
    prefix: bytes
    """Identity of the tokens ``[0, stop)`` (`kvstet.cache.tree.Node.id`)."""
    start: int


class Tier(Protocol):
    """Keeps blobs. Does what it is told: what to keep is decided by `kvstet.cache.policy`."""

    @property
    def name(self) -> str: ...

    @property
    def capacity_bytes(self) -> int: ...

    @property
    def used_bytes(self) -> int: ...

    def put(self, key: BlobKey, blob: Blob) -> None: ...

    def get(self, key: BlobKey) -> Blob | None:
        """None where the blob is lost or fails its checks: a miss, never an error."""
        ...

    def drop(self, key: BlobKey) -> None: ...


class RamTier:
    """Blobs in this process's memory."""

    name = "ram"

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._blobs: dict[BlobKey, Blob] = {}

    def put(self, key: BlobKey, blob: Blob) -> None:
        self.drop(key)
        self._blobs[key] = blob
        self.used_bytes += blob.num_bytes

    def get(self, key: BlobKey) -> Blob | None:
        return self._blobs.get(key)

    def drop(self, key: BlobKey) -> None:
        blob = self._blobs.pop(key, None)
        if blob is not None:
            self.used_bytes -= blob.num_bytes

    def __len__(self) -> int:
        return len(self._blobs)

    def __repr__(self) -> str:
        return f"<RamTier {len(self._blobs)} blobs, {self.used_bytes}/{self.capacity_bytes} bytes>"
