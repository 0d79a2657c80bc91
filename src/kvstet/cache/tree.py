"""The one tree: every prefix ever seen, as a path of nodes, each with the places where its state lives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kvstet.cache.tier import BlobKey
from kvstet.types import CutKind, SeqId, Tokens

ID_BYTES = 16
TOKEN = np.dtype("<i4")


@dataclass(eq=False, slots=True)
class Stored:
    """A blob of saved state: whose it is, and which tiers have it."""

    key: BlobKey
    start: int
    stop: int
    num_bytes: int
    nodes: list[Node] = field(default_factory=list["Node"])
    """The nodes whose state it is, from the top: one, or more where that was cut since."""
    in_ram: bool = False
    disk_bytes: int = 0
    """Of its file; 0: there is none."""

    @property
    def on_disk(self) -> bool:
        return self.disk_bytes > 0

    def attach(self) -> None:
        """Let the nodes know of it."""
        for node in self.nodes:
            if self.key.kind == "span":
                node.span = self
            else:
                node.checkpoint = self

    def detach(self) -> None:
        """No tier has it any more."""
        for node in self.nodes:
            if self.key.kind == "span":
                node.span = None
            else:
                node.checkpoint = None
        self.nodes.clear()

    @property
    def is_leased(self) -> bool:
        return any(node.num_leases for node in self.nodes)

    def __repr__(self) -> str:
        places = [name for name, is_there in (("ram", self.in_ram), ("disk", self.on_disk)) if is_there]
        return f"<Stored {self.key.kind} [{self.start}, {self.stop}) {self.num_bytes} bytes {' '.join(places)}>"


@dataclass(eq=False, slots=True)
class CellRun:
    """Live cells of positions ``start`` and up, of which one sequence fills the end; forks share what they forked."""

    start: int


@dataclass(eq=False, slots=True)
class Branch:
    """A live sequence: the state of the first ``length`` tokens of the path down to ``node``, and maybe a tail."""

    seq: SeqId
    node: Node
    length: int
    """Tokens whose state is live. Short of ``node.stop`` while it is being computed, past it while it generates."""
    own: CellRun
    shared: tuple[tuple[CellRun, int], ...] = ()
    """Runs that came with the fork, and where the share of each ends."""
    is_running: bool = True

    def cells(self, stop: int | None = None) -> tuple[tuple[CellRun, int], ...]:
        """Runs and ends that hold the first ``stop`` tokens (None: all)."""
        stop = self.length if stop is None else stop
        runs = (*self.shared, (self.own, self.length))
        return tuple((run, min(end, stop)) for run, end in runs if run.start < stop)

    @property
    def is_computing_prompt(self) -> bool:
        return self.is_running and self.length < self.node.stop

    def __repr__(self) -> str:
        return f"<Branch seq={self.seq} {self.length}/{self.node.stop} {'runs' if self.is_running else 'parked'}>"


@dataclass(eq=False, slots=True)
class Node:
    """Tokens ``[start, stop)`` behind the parent's; see the module's docstring."""

    parent: Node | None
    data: bytes
    """The node's tokens, as bytes: they compare many times faster than arrays that are as short as most nodes."""
    start: int
    hasher: hashlib.blake2b
    children: dict[int, Node] = field(default_factory=dict[int, "Node"])
    """First token -> child: no two children begin alike. The one that was used last stands last."""
    span: Stored | None = None
    """Additive state of a range that includes this node's."""
    checkpoint: Stored | None = None
    """Summary state at ``stop``."""
    branches: set[Branch] = field(default_factory=set[Branch])
    """Live sequences whose path goes through this node, however far they have come."""
    kind: CutKind = "other"
    """What stands behind its end."""
    num_leases: int = 0
    num_hits: int = 0
    num_returns: int = 0
    """Requests that went on below this node where others had been before, but not the one just before."""
    last_used: float = 0.0
    stop: int = field(init=False)
    """Stays when the node is cut: the new node takes its head."""

    def __post_init__(self) -> None:
        self.stop = self.start + len(self.data) // TOKEN.itemsize

    @property
    def tokens(self) -> Tokens:
        return np.frombuffer(self.data, TOKEN)

    @property
    def first_token(self) -> int:
        return int.from_bytes(self.data[: TOKEN.itemsize], "little", signed=True)

    @property
    def id(self) -> bytes:
        """Identity of the whole prefix ``[0, stop)``: equal for equal tokens, wherever nodes were cut."""
        return self.hasher.digest()

    @property
    def latest_child(self) -> Node | None:
        """The child that was used last."""
        return next(reversed(self.children.values()), None)

    def sort_children(self) -> None:
        """After `last_used` was set from elsewhere."""
        self.children = dict(sorted(self.children.items(), key=lambda item: item[1].last_used))

    @property
    def return_chance(self) -> float:
        """How likely a request that comes through here goes on below one given child other than the latest.

        Estimated by what the requests until now did, with half a return to begin with.
        """
        return (self.num_returns + 0.5) / (self.num_hits + 1) / max(1, len(self.children) - 1)

    @property
    def is_bare(self) -> bool:
        """Nothing depends on this node but the memory that its tokens were seen."""
        return not (self.span or self.checkpoint or self.branches or self.children or self.num_leases)

    def path(self) -> Iterator[Node]:
        """This node and its ancestors, upward, without the root."""
        node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def __repr__(self) -> str:
        places = [name for name in ("span", "checkpoint") if getattr(self, name)] + [repr(b) for b in self.branches]
        return f"<Node [{self.start}, {self.stop}) {self.id.hex()[:8]} {' '.join(places) or 'bare'}>"


@dataclass(frozen=True, slots=True)
class Match:
    """The longest prefix of some tokens that the tree has seen."""

    path: tuple[Node, ...]
    """Nodes from the top; the last one may be matched in part."""
    length: int

    @classmethod
    def to(cls, node: Node) -> Match:
        """The match of the tokens that end where the node does."""
        return cls(tuple(node.path())[::-1], node.stop)


class Tree:
    """A radix tree of token spans. Nodes are cut at message ends and where branches fork, and never change tokens."""

    def __init__(self, fingerprint: bytes = b"") -> None:
        """``fingerprint`` names the model and all that changes its numbers; it seeds every identity."""
        self.root = Node(None, b"", 0, hashlib.blake2b(fingerprint, digest_size=ID_BYTES))
        self.num_nodes = 0

    def match(self, tokens: Tokens) -> Match:
        """Walk down as far as the tokens go. Read-only; O(tokens + nodes on the path)."""
        path: list[Node] = []
        node, length = self.root, 0
        data = _bytes(tokens)
        firsts = memoryview(data).cast("i")
        num_tokens = len(firsts)
        while length < num_tokens and (child := node.children.get(firsts[length])):
            path.append(child)
            if not data.startswith(child.data, length * TOKEN.itemsize):
                length += num_equal(child.tokens, tokens[length:])
                break
            node, length = child, child.stop
        return Match(tuple(path), length)

    def insert(self, tokens: Tokens, cuts: tuple[int, ...], now: float, match: Match | None = None) -> Node:
        """The node that ends at the end of ``tokens``, growing what is missing, cut at ``cuts`` as well.

        ``match`` is that of the tokens, where the caller has it already.
        """
        match = match or self.match(tokens)
        node = self._end_at(match)
        for stop in sorted({cut for cut in cuts if 0 < cut < len(tokens)} - {step.stop for step in match.path}):
            if stop <= match.length:
                self.cut(next(step for step in node.path() if step.start < stop), stop)
            else:
                node = self._grow(node, tokens[node.stop : stop], now)
        return self._grow(node, tokens[node.stop :], now) if node.stop < len(tokens) else node

    def touch(self, path: Sequence[Node], now: float) -> None:
        """A request went this way. The path is whole, in either order."""
        for node in path:
            parent = node.parent
            assert parent is not None
            siblings = parent.children
            # This runs for every node of every prompt.
            if len(siblings) > 1 and node is not parent.latest_child:
                parent.num_returns += node.num_hits > 0
                siblings[node.first_token] = siblings.pop(node.first_token)
            node.num_hits += 1
            node.last_used = now
        self.root.num_hits += 1

    def graft(self, parent: Node, data: bytes, now: float) -> Node:
        """The node that ends ``data`` (tokens as bytes) below ``parent``, growing and cutting what it takes."""
        while data:
            child = parent.children.get(int.from_bytes(data[: TOKEN.itemsize], "little", signed=True))
            if child is None:
                return self._grow(parent, np.frombuffer(data, TOKEN), now)
            num_common = num_equal(child.tokens, np.frombuffer(data, TOKEN))
            parent = self.cut(child, child.start + num_common)
            data = data[num_common * TOKEN.itemsize :]
        return parent

    def find(self, prefix: bytes, stop: int) -> Node | None:
        """The node that ends where this identity's ``stop`` tokens do; known nodes are cut for it. Reads the tree."""
        for node in self.nodes():
            if node.start < stop <= node.stop:
                assert node.parent is not None
                head = node.data[: (stop - node.start) * TOKEN.itemsize]
                if _hashed(node.parent, head).digest() == prefix:
                    return self.cut(node, stop)
        return None

    def cut(self, node: Node, position: int) -> Node:
        """Make a node end at ``position`` within ``node``, and return it; all state stays where it is."""
        if position == node.stop:
            return node
        parent = node.parent
        assert parent is not None and node.start < position < node.stop
        middle = (position - node.start) * TOKEN.itemsize
        head, tail = node.data[:middle], node.data[middle:]
        upper = Node(parent, head, node.start, _hashed(parent, head))
        upper.span, upper.branches, upper.num_leases = node.span, set(node.branches), node.num_leases
        upper.num_hits, upper.last_used = node.num_hits, node.last_used
        if upper.span is not None:
            upper.span.nodes.insert(upper.span.nodes.index(node), upper)
        node.parent, node.data, node.start = upper, tail, position
        upper.children[node.first_token] = node
        parent.children[upper.first_token] = upper
        self.num_nodes += 1
        return upper

    def remove(self, node: Node) -> None:
        """Forget a bare node."""
        assert node.is_bare and node.parent is not None
        del node.parent.children[node.first_token]
        self.num_nodes -= 1

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents first, without the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def _end_at(self, match: Match) -> Node:
        if not match.path:
            return self.root
        return self.cut(match.path[-1], match.length)

    def _grow(self, parent: Node, tokens: Tokens, now: float) -> Node:
        data = _bytes(tokens)
        child = Node(parent, data, parent.stop, _hashed(parent, data), last_used=now)
        parent.children[child.first_token] = child
        self.num_nodes += 1
        return child

    def __repr__(self) -> str:
        return f"<Tree {self.num_nodes} nodes>"


def num_equal(a: Tokens, b: Tokens) -> int:
    """Length of the common prefix of two token arrays."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n


def _bytes(tokens: Tokens) -> bytes:
    return tokens.astype(TOKEN, copy=False).tobytes()


def _hashed(parent: Node, data: bytes) -> hashlib.blake2b:
    hasher = parent.hasher.copy()
    hasher.update(data)
    return hasher
