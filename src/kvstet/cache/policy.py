"""What a piece of state is worth: chance of reuse x seconds to bring it back / bytes. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Literal

from kvstet.cache.tree import Branch, Node, Stored
from kvstet.types import MemoryTraits

IDLE_SECONDS = 600.0
"""Idle time at which a prefix that was never reused is half as likely to be reused as a fresh one."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What computing and loading cost on this machine."""

    seconds_per_token: float = 1e-2
    seconds_per_token_and_position: float = 1e-7
    """Attention: a token costs more the more tokens it looks back on."""
    load_seconds_per_token: float = 1e-4

    def compute_seconds(self, start: int, stop: int) -> float:
        """Seconds to decode tokens ``[start, stop)`` behind ``start`` others."""
        num_looks = (stop * stop - start * start) / 2
        return (stop - start) * self.seconds_per_token + num_looks * self.seconds_per_token_and_position


def chance(node: Node, now: float) -> float:
    """How likely a prefix is to be asked for again: it falls with idle time, the slower the more often it was hit."""
    weight = 1.0 + node.num_hits
    return weight / (weight + max(0.0, now - node.last_used) / IDLE_SECONDS)


@dataclass(frozen=True, slots=True)
class Piece:
    """State of one node that can be evicted alone."""

    node: Node
    kind: Literal["span", "checkpoint"]
    stored: Stored
    """May be shared with other nodes; its bytes become free when the last of them gives it up."""
    value: float
    """Seconds per byte that keeping it is expected to save."""


def freed_bytes(pieces: Iterable[Piece]) -> int:
    """Bytes that become free if all of these pieces are evicted."""
    shares = Counter(piece.stored for piece in pieces)
    return sum(stored.num_bytes for stored, count in shares.items() if count == stored.num_nodes)


class Policy:
    """Judges state by the rates of this machine and the kind of memory."""

    def __init__(self, traits: MemoryTraits, rates: Rates | None = None) -> None:
        self.traits = traits
        self.rates = rates or Rates()

    def span_piece(self, node: Node, now: float, gone: Set[Node] = frozenset()) -> Piece | None:
        """The node's span, if nothing that is kept needs it; spans of ``gone`` nodes are kept no more."""
        span = node.span
        if span is None or node.num_leases:
            return None
        if any(child.span and child not in gone for child in node.children.values()):
            return None
        # The last node that has a part of a blob keeps all of it.
        share = (node.stop - node.start) / (span.stop - span.start) if span.num_nodes > 1 else 1.0
        num_bytes = max(1.0, span.num_bytes * share)
        return Piece(node, "span", span, self._span_seconds(node) * chance(node, now) / num_bytes)

    def checkpoint_piece(self, node: Node, now: float) -> Piece | None:
        """The node's checkpoint; to lose it is to compute again from the one before."""
        if node.checkpoint is None or node.num_leases:
            return None
        num_bytes = max(1, node.checkpoint.num_bytes)
        # Without the spans that lead to it, a checkpoint brings nothing back.
        is_useful = node.span is not None or node.branches or not self.traits.has_spans
        seconds = self.rates.compute_seconds(_previous_checkpoint(node), node.stop) if is_useful else 0.0
        return Piece(node, "checkpoint", node.checkpoint, seconds * chance(node, now) / num_bytes)

    def victims(self, nodes: Iterable[Node], num_bytes: int, now: float, below: float) -> Iterator[Piece]:
        """Pieces to evict, worst first, until ``num_bytes`` are free; only those worth less than ``below``.

        A span becomes a candidate when the spans behind it are gone, so a branch is evicted from its end.
        """
        count = 0
        heap: list[tuple[float, int, Piece]] = []
        gone: set[Node] = set()
        num_given_up: Counter[Stored] = Counter()

        def push(piece: Piece | None) -> None:
            nonlocal count
            if piece is not None and piece.value < below:
                count += 1
                heapq.heappush(heap, (piece.value, count, piece))

        for node in nodes:
            push(self.checkpoint_piece(node, now))
            push(self.span_piece(node, now))
        while num_bytes > 0 and heap:
            piece = heapq.heappop(heap)[2]
            yield piece
            num_given_up[piece.stored] += 1
            if num_given_up[piece.stored] == piece.stored.num_nodes:
                num_bytes -= piece.stored.num_bytes
            if piece.kind == "span" and piece.node.parent is not None:
                gone.add(piece.node)
                push(self.span_piece(piece.node.parent, now, gone))

    def branch_value(self, branch: Branch, num_cells: int, now: float) -> float:
        """Seconds per cell that keeping a parked branch live is expected to save."""
        seconds = 0.0
        for node in branch.node.path():
            if len(node.branches) > 1:
                break
            is_saved = node.span is not None or (node.checkpoint is not None and not self.traits.has_spans)
            seconds += (
                (node.stop - node.start) * self.rates.load_seconds_per_token
                if is_saved
                else self.rates.compute_seconds(node.start, node.stop)
            )
        return seconds * chance(branch.node, now) / max(1, num_cells)

    def _span_seconds(self, node: Node) -> float:
        if not self.traits.has_checkpoints:
            return self.rates.compute_seconds(node.start, node.stop)
        # Behind the last checkpoint of its path, additive state brings nothing back.
        needed = node.checkpoint is not None or any(child.checkpoint for child in node.children.values())
        return self.rates.compute_seconds(node.start, node.stop) if needed or node.branches else 0.0


def _previous_checkpoint(node: Node) -> int:
    """Where one could resume on the way to the node, if its own checkpoint were gone."""
    for ancestor in node.path():
        if ancestor is not node and ancestor.checkpoint is not None:
            return ancestor.stop
    return 0
