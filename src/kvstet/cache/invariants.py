"""What holds of a cache between any two calls; for tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from kvstet.cache.tier import Tier
from kvstet.cache.tree import Branch, Node, Stored, Tree


def check(tree: Tree, tier: Tier, branches: Collection[Branch], *, is_writing: bool) -> None:
    """Raise AssertionError where an invariant does not hold. ``is_writing``: a blob may be on its way to the disk."""
    nodes = list(tree.nodes())
    assert len(nodes) == tree.num_nodes
    for node in nodes:
        _check_node(node, tree.root)
    _check_stored(nodes, tier, is_writing=is_writing)
    assert len({branch.seq for branch in branches}) == len(branches)
    for branch in branches:
        assert all(branch in node.branches for node in branch.node.path())
        assert branch.is_running or branch.length == branch.node.stop


def _check_node(node: Node, root: Node) -> None:
    parent = node.parent
    assert parent is not None and node.start < node.stop and node.start == parent.stop
    assert parent.children[node.first_token] is node
    assert parent.latest_child is not None and node.last_used <= parent.latest_child.last_used
    assert node.branches <= parent.branches or parent is root
    assert node.num_leases <= parent.num_leases or parent is root
    assert node.checkpoint is None or node.checkpoint.stop == node.stop


def _check_stored(nodes: Collection[Node], tier: Tier, *, is_writing: bool) -> None:
    shares: Counter[Stored] = Counter()
    for node in nodes:
        for stored in filter(None, (node.span, node.checkpoint)):
            shares[stored] += 1
            assert stored.start <= node.start < node.stop <= stored.stop
            assert node in stored.nodes
            assert stored.in_ram or stored.on_disk or is_writing
    assert all(len(stored.nodes) == count for stored, count in shares.items())
    assert len({stored.key for stored in shares}) == len(shares)
    assert sum(stored.num_bytes for stored in shares if stored.in_ram) == tier.used_bytes, (shares, tier)
    assert tier.used_bytes <= tier.capacity_bytes
