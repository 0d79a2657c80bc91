"""What was found on disk at the start, in the order in which idle time brings it to RAM."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import takewhile

from kvstet.cache.tree import Node, Stored


class Warmup:
    """Blobs to bring to RAM, those of the paths used last first, each path from its top."""

    def __init__(self, found: Sequence[Stored]) -> None:
        self._queue = deque(_likeliest(found))

    def next(self, free_bytes: int) -> Stored | None:
        """The next blob that only the disk has. None: that was all, or RAM is full, and then that was all too."""
        while self._queue:
            stored = self._queue.popleft()
            if stored.num_bytes > free_bytes:
                self._queue.clear()
            elif stored.nodes and stored.on_disk and not stored.in_ram:
                return stored
        return None

    def __repr__(self) -> str:
        return f"<Warmup {len(self._queue)} blobs>"


def _likeliest(found: Sequence[Stored]) -> list[Stored]:
    nodes = {stored.nodes[-1] for stored in found}
    # Leaves first: a conversation goes on from its tip, and the way there was used no less recently.
    tips = sorted(nodes, key=lambda node: (not node.children, node.last_used), reverse=True)
    ordered: dict[Stored, None] = {}
    seen: set[Node] = set()
    for tip in tips:
        if tip.checkpoint:
            ordered[tip.checkpoint] = None
        # Above what was seen, all was.
        path = list(takewhile(lambda step: step not in seen, tip.path()))
        seen.update(path)
        ordered.update((step.span, None) for step in reversed(path) if step.span and step.span.num_bytes)
    return list(ordered)
