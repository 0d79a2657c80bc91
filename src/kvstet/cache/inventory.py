"""What a cache folder holds of one model, as the tree of conversations that a person wants to see and name.

Reads records only: neither a model nor the files are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from kvstet.cache.archive import HEADER_BYTES, place
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.tree import Node, Tree


@dataclass(eq=False, slots=True)
class Chain:
    """Nodes between two forks, or between a fork and the end of a conversation."""

    nodes: list[Node]
    """From the top."""
    parent: Chain | None
    children: list[Chain] = field(default_factory=list["Chain"])
    """Last used first."""
    records: list[Record] = field(default_factory=list[Record])
    """Blobs that end within the chain."""

    @property
    def id(self) -> bytes:
        """Identity of the tokens up to the chain's end."""
        return self.nodes[-1].id

    @property
    def start(self) -> int:
        return self.nodes[0].start

    @property
    def stop(self) -> int:
        return self.nodes[-1].stop

    @property
    def num_bytes(self) -> int:
        return sum(record.num_bytes for record in self.records)

    @property
    def num_spans(self) -> int:
        """Without path records, which hold tokens and no state."""
        return sum(record.key.kind == "span" and _has_state(record) for record in self.records)

    @property
    def num_checkpoints(self) -> int:
        return sum(record.key.kind == "checkpoint" for record in self.records)

    @property
    def num_hits(self) -> int:
        """Of the part that was used most, also below."""
        return self.nodes[0].num_hits

    @property
    def last_used(self) -> float:
        """Unix time; of what was used last, also below."""
        return self.nodes[0].last_used

    def walk(self) -> Iterator[Chain]:
        """The chain and all below it, each before what hangs on it, and last used first."""
        stack: list[Chain] = [self]
        while stack:
            chain = stack.pop()
            yield chain
            stack.extend(reversed(chain.children))

    def path(self) -> Iterator[Chain]:
        """The chain and those above it, upward."""
        chain: Chain | None = self
        while chain is not None:
            yield chain
            chain = chain.parent

    def __repr__(self) -> str:
        return f"<Chain {self.id.hex()[:8]} [{self.start}, {self.stop}) {len(self.records)} blobs>"


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes when nodes are removed, and what cannot go without taking the state of others along."""

    goes: list[Record]
    stays: list[tuple[Record, Chain]]
    """Each with the chain that goes on needing it."""


class Inventory:
    """One model's blobs on the tree that they make up."""

    def __init__(self, model: ModelEntry, records: Iterable[Record]) -> None:
        self.model = model
        self.roots: list[Chain] = []
        """Last used first."""
        self.lost: list[Record] = []
        """Blobs that lead nowhere: what they go on from is gone."""
        self._placed: list[tuple[Record, Node]] = []
        self._chains: dict[Node, Chain] = {}
        tree = Tree(model.fingerprint)
        for record, node in place(tree, records):
            if node is None or node is tree.root:
                self.lost.append(record)
            else:
                self._placed.append((record, node))
        self._collapse(tree)
        for record, node in self._placed:
            self._chains[node].records.append(record)

    def chains(self) -> Iterator[Chain]:
        """All of them, each before what hangs on it."""
        for root in self.roots:
            yield from root.walk()

    def find(self, prefix: str) -> list[Chain]:
        """The chains in which tokens end whose identity begins so (hex digits)."""
        found = [chain for node, chain in self._chains.items() if node.id.hex().startswith(prefix)]
        return list(dict.fromkeys(found))

    def older_than(self, unix_time: float) -> list[Node]:
        """Nodes that were not used since, nor anything behind them."""
        return [node for node in self._chains if node.last_used < unix_time]

    def removal(self, nodes: Iterable[Node]) -> Removal:
        """What becomes of the blobs that end at these nodes, which are whole branches."""
        gone = set(nodes)
        removal = Removal([], [])
        for record, node in self._placed:
            if node not in gone:
                continue
            # A span that was cut since is state of a prefix that others share, too.
            top = _covered(record, node)[0]
            if top in gone:
                removal.goes.append(record)
            else:
                removal.stays.append((record, self._chains[top]))
        return removal

    def needed(self, chains: Iterable[Chain]) -> list[Record]:
        """The blobs of these chains, of all below, and of the way to them; parents before children."""
        nodes = {node for chain in chains for part in (*chain.walk(), *chain.path()) for node in part.nodes}
        needed = {record.key for record, node in self._placed if node in nodes}
        covered = {
            step for record, node in self._placed if record.key in needed for step in _covered(record, node)
        } & nodes
        for record, node in self._placed:
            # What ends elsewhere, and holds a part of the way that nothing else holds.
            steps = nodes.intersection(_covered(record, node)) if record.tokens else set[Node]()
            if not steps <= covered:
                needed.add(record.key)
                covered |= steps
        return [record for record, _ in self._placed if record.key in needed]

    def _collapse(self, tree: Tree) -> None:
        """Make chains of the nodes."""
        stack: list[tuple[Node, Chain | None]] = [(node, None) for node in reversed(_newest_first(tree.root))]
        while stack:
            node, parent = stack.pop()
            nodes = [node]
            while len(nodes[-1].children) == 1:
                nodes.extend(nodes[-1].children.values())
            chain = Chain(nodes, parent)
            (parent.children if parent else self.roots).append(chain)
            self._chains.update(dict.fromkeys(nodes, chain))
            stack.extend((child, chain) for child in reversed(_newest_first(nodes[-1])))

    def __repr__(self) -> str:
        return f"<Inventory {self.model.name} {len(self._placed)} blobs, {len(self._chains)} nodes>"


def _covered(record: Record, node: Node) -> list[Node]:
    """The nodes, from the top, whose state a blob holds."""
    if not record.tokens:
        return [node]
    return list(takewhile(lambda step: step.stop > record.origin, node.path()))[::-1]


def _newest_first(node: Node) -> list[Node]:
    return sorted(node.children.values(), key=lambda child: (-child.last_used, child.first_token))


def _has_state(record: Record) -> bool:
    return record.num_bytes > len(record.tokens) + HEADER_BYTES
