"""What a piece of state is worth: chance of reuse x seconds to bring it back / bytes. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, count

import numpy as np

from kvstet.cache.placement import Array, EditDepths
from kvstet.cache.rates import Rates, TierName
from kvstet.cache.tree import Branch, Node, Stored
from kvstet.types import CutKind, MemoryTraits

IDLE_SECONDS = 600.0
"""Idle time at which a prefix that was never reused is half as likely to be reused as a fresh one."""

KIND_WEIGHTS: dict[CutKind, float] = {"head": 8.0, "user": 3.0, "tool": 2.0, "assistant": 2.0, "other": 1.0}
"""How much likelier than anywhere else a conversation is left where these stand: new conversations begin behind the
head, turns are taken back, reasoning is stripped, and tool results are pruned."""


def chance(node: Node, now: float) -> float:
    """How likely a prefix is to be asked for again: it falls with idle time, the slower the more often it was hit."""
    return chance_of(node.num_hits, now - node.last_used)


def chance_of(num_hits: float, idle_seconds: float) -> float:
    """`chance`, of what has been hit so often and not been used for so long."""
    weight = 1.0 + num_hits
    return weight / (weight + max(0.0, idle_seconds) / IDLE_SECONDS)


@dataclass(frozen=True, slots=True)
class Piece:
    """A blob that can be evicted from a tier."""

    stored: Stored
    tier: TierName
    value: float
    """Seconds per byte that keeping it there is expected to save."""

    @property
    def num_bytes(self) -> int:
        return self.stored.num_bytes if self.tier == "ram" else self.stored.disk_bytes


class Policy:
    """Judges state by the rates of this machine, the kind of memory, and how conversations were edited so far."""

    def __init__(self, traits: MemoryTraits, rates: Rates | None = None, depths: EditDepths | None = None) -> None:
        self.traits = traits
        self.rates = rates or Rates()
        self.depths = depths or EditDepths()

    def branch_value(self, branch: Branch, num_cells: int, now: float) -> float:
        """Seconds per cell that keeping a parked branch live is expected to save."""
        seconds = 0.0
        for node in branch.node.path():
            if len(node.branches) > 1:
                break
            stored = node.span if self.traits.has_spans else node.checkpoint
            seconds += (
                self.load_seconds(stored) * (node.stop - node.start) / max(1, stored.stop - stored.start)
                if stored is not None
                else self.rates.compute_seconds(node.start, node.stop)
            )
        return seconds * chance(branch.node, now) / max(1, num_cells)

    def load_seconds(self, stored: Stored) -> float:
        """Seconds to bring a blob back from the fastest tier that has it."""
        return self.rates.load_seconds(stored.num_bytes, "ram" if stored.in_ram else "disk")

    def compute_seconds(self, stored: Stored) -> float:
        """Seconds to compute again what a blob holds: its tokens, or those from the checkpoint before it."""
        if stored.key.kind == "span":
            return self.rates.compute_seconds(stored.start, stored.stop)
        return self.rates.compute_seconds(previous_checkpoint(stored.nodes[-1]), stored.stop)

    def is_worth_writing(self, stored: Stored) -> bool:
        """Whether loading it from disk would beat computing it again."""
        return self.compute_seconds(stored) > self.rates.load_seconds(stored.num_bytes, "disk")


class Appraisal:
    """The worth of everything saved, at one moment. Reads the whole tree once; evictions change the worth of others."""

    def __init__(self, policy: Policy, nodes: Iterable[Node], now: float) -> None:
        """``nodes`` are all of a tree, parents first."""
        self._policy = policy
        self._nodes = list(nodes)
        self._now = now
        self._gone: set[Stored] = set()
        """Evicted, and in no other tier."""
        # Lists are by the number of the node. The root's is -1: the last element of those that need one for it.
        self._numbers: dict[Node | None, int] = {node: number for number, node in enumerate(self._nodes)}
        self._parents = [self._numbers.get(node.parent, -1) for node in self._nodes]
        self._shares = self._shares_of_requests()
        self._resumes: list[int] = []
        """For each node: the one above it that has a checkpoint, or had one."""
        self._demand: list[float] = []
        """For each checkpoint: how many requests are expected to resume at it, while it lasts."""
        if policy.traits.has_checkpoints:
            self._forecast()

    def value(self, stored: Stored, tier: TierName) -> float:
        """Seconds per byte that keeping a blob in a tier is expected to save."""
        weight, seconds = self._saved(stored)
        if tier == "disk":
            seconds = max(0.0, seconds - self._policy.rates.load_seconds(stored.num_bytes, "disk"))
        elif stored.disk_bytes:
            seconds = min(seconds, self._policy.rates.load_seconds(stored.num_bytes, "disk"))
        return weight * seconds / (stored.num_bytes or 1)

    def victims(self, tier: TierName, num_bytes: int, newcomer: Stored | None = None) -> list[Piece]:
        """Blobs to evict from a tier, worst first, until ``num_bytes`` are free.

        Only those go that are worth less than the ``newcomer``, a blob that some node has already and the tier not;
        for the record of a path no price is too high, since it takes next to nothing. A span becomes a candidate when
        the spans behind it are gone, so a branch is evicted from its end. The worth of a checkpoint grows as those
        around it go.
        """
        below = self.value(newcomer, tier) if newcomer and newcomer.num_bytes else math.inf
        num_behind = self._num_behind(tier, newcomer)
        tickets = count()
        heap: list[tuple[float, int, Stored]] = []
        evicted: set[Stored] = set()
        victims: list[Piece] = []

        def push(stored: Stored | None) -> None:
            if stored in num_behind and not (num_behind[stored] or stored in evicted or stored.is_leased):
                value = self.value(stored, tier)
                if value < below:
                    heapq.heappush(heap, (value, next(tickets), stored))

        for stored in num_behind:
            push(stored)
        while num_bytes > 0 and heap:
            known, _, stored = heapq.heappop(heap)
            if stored in evicted:
                continue
            value = self.value(stored, tier)
            if value > known:
                push(stored)
                continue
            victims.append(Piece(stored, tier, value))
            evicted.add(stored)
            num_bytes -= victims[-1].num_bytes
            self._remove(stored, tier)
            front = self._front(stored)
            if front in num_behind:
                num_behind[front] -= 1
            for other in (front, *_related(stored)):
                push(other)
        return victims

    # Inside

    def _shares_of_requests(self) -> list[float]:
        """For each node: the part of the requests with its conversation's beginning that is expected to come this way.

        A request goes on below the latest child, or else comes back to one that was left. That conversations begin
        differently says nothing about any of them, so the root is no fork.
        """
        parts = [1.0] * len(self._nodes)
        for node in self._nodes:
            if len(node.children) > 1:
                latest, return_chance = node.latest_child, node.return_chance
                for child in node.children.values():
                    if child is not latest:
                        parts[self._numbers[child]] = return_chance
        shares = [1.0] * (len(self._nodes) + 1)
        for number, parent in enumerate(self._parents):
            shares[number] = shares[parent] * parts[number]
        return shares

    def _forecast(self) -> None:
        """Find out where requests would resume, and how many."""
        nodes, parents = self._nodes, self._parents
        has_checkpoint = [node.checkpoint is not None for node in nodes] + [False]
        num_above = [0] * (len(nodes) + 1)
        resumes = [-1] * (len(nodes) + 1)
        for number, parent in enumerate(parents):
            num_above[number] = num_above[parent] + 1
            resumes[number] = parent if has_checkpoint[parent] else resumes[parent]
        num_below = [0] * (len(nodes) + 1)
        for number in reversed(range(len(nodes))):
            num_below[parents[number]] = max(num_below[parents[number]], num_below[number] + 1)
        expected = np.array(self._shares[:-1])
        expected *= self._chances()
        expected *= self._depth_chances(num_above, num_below)
        expected *= [KIND_WEIGHTS[node.kind] if below else 1.0 for node, below in zip(nodes, num_below, strict=False)]
        at = np.where(has_checkpoint, np.arange(len(nodes) + 1), resumes)[:-1]
        # One more for those who would resume at nothing.
        self._demand = np.bincount(at + 1, expected, len(nodes) + 1)[1:].tolist()
        self._resumes = resumes

    def _chances(self) -> Array:
        """`chance` of each node."""
        num_hits = np.array([node.num_hits for node in self._nodes])
        last_used = np.array([node.last_used for node in self._nodes])
        weights = 1.0 + num_hits
        return weights / (weights + np.maximum(0.0, self._now - last_used) / IDLE_SECONDS)

    def _depth_chances(self, num_above: list[int], num_below: list[int]) -> list[float]:
        """For each node: how likely a request that comes to the tip of its path leaves it there."""
        known: dict[int, list[float]] = {}
        chances: list[float] = []
        for above, below in zip(num_above, num_below[:-1], strict=False):
            if (num_ends := above + below) not in known:
                known[num_ends] = self._policy.depths.chances(num_ends).tolist()
            chances.append(known[num_ends][below])
        return chances

    def _saved(self, stored: Stored) -> tuple[float, float]:
        """How many requests are expected to use a blob, and the seconds it spares each of them."""
        policy = self._policy
        if stored.key.kind == "checkpoint":
            (node,) = stored.nodes
            # Without the spans that lead to it, a checkpoint brings nothing back.
            if policy.traits.has_spans and (node.span is None or node.span in self._gone) and not node.branches:
                return 0.0, 0.0
            number = self._numbers[node]
            before = self._resume_before(number)
            start = self._nodes[before].stop if before >= 0 else 0
            return self._demand[number], policy.rates.compute_seconds(start, node.stop)
        if not policy.traits.has_spans:
            return 0.0, 0.0  # The record of a path: it is worth what stands on it.
        top = stored.nodes[0]
        weight = self._shares[self._numbers[top]] * chance(top, self._now)
        return weight, sum(policy.rates.compute_seconds(n.start, n.stop) for n in stored.nodes if self._brings_back(n))

    def _resume_before(self, number: int) -> int:
        """Where one could resume on the way to a node, if its own checkpoint were gone; -1: at nothing."""
        before = self._resumes[number]
        while before >= 0 and self._nodes[before].checkpoint in self._gone:
            before = self._resumes[before]
        return before

    def _brings_back(self, node: Node) -> bool:
        """Whether a span is of use: where checkpoints are needed, none helps behind the last one of its path."""
        if not self._policy.traits.has_checkpoints or node.branches:
            return True
        nearest = (node, *node.children.values())
        return any(n.checkpoint is not None and n.checkpoint not in self._gone for n in nearest)

    def _num_behind(self, tier: TierName, newcomer: Stored | None) -> dict[Stored, int]:
        """For each blob in the tier, how many others that it has, or is to have, lean on it and go first."""
        has_spans = self._policy.traits.has_spans
        every = dict.fromkeys(chain.from_iterable((node.span, node.checkpoint) for node in self._nodes))
        num_behind = {stored: 0 for stored in every if stored is not None and _is_in(stored, tier)}
        for stored in num_behind:
            if (stored.key.kind == "span" or not has_spans) and (front := self._front(stored)) in num_behind:
                num_behind[front] += 1
        if newcomer and (newcomer.key.kind == "span" or not has_spans):
            # Records of its path may be missing still: it leans on what is there.
            front = next((node.span for node in newcomer.nodes[-1].path() if node.span in num_behind), None)
            if front is not None:
                num_behind[front] += 1
        return num_behind

    def _front(self, stored: Stored) -> Stored | None:
        """The span without which a blob cannot stand."""
        top = stored.nodes[0]
        if stored.key.kind == "span":
            return top.parent.span if top.parent else None
        return None if self._policy.traits.has_spans else top.span

    def _remove(self, stored: Stored, tier: TierName) -> None:
        if stored.on_disk if tier == "ram" else stored.in_ram:
            return
        self._gone.add(stored)
        if stored.key.kind == "checkpoint":
            number = self._numbers[stored.nodes[-1]]
            before = self._resume_before(number)
            if before >= 0:
                self._demand[before] += self._demand[number]


def previous_checkpoint(node: Node) -> int:
    """Where one could resume on the way to the node, if its own checkpoint were gone."""
    return next((step.stop for step in node.path() if step is not node and step.checkpoint), 0)


def total_bytes(pieces: Iterable[Piece]) -> int:
    """Bytes that become free if all of these pieces are evicted."""
    return sum(piece.num_bytes for piece in pieces)


def _is_in(stored: Stored, tier: TierName) -> bool:
    return stored.in_ram if tier == "ram" else stored.disk_bytes > 0


def _related(stored: Stored) -> list[Stored | None]:
    """Blobs that may be worth less without this one: checkpoints, and the spans that lead to them."""
    if stored.key.kind == "span":
        return [node.checkpoint for node in stored.nodes]
    (node,) = stored.nodes
    return [node.span, node.parent.span if node.parent else None]
