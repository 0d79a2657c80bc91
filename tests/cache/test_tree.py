from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cache.shelf import outline, prefix, text, tokens

from kvstet.cache.tier import BlobKey, BlobKind
from kvstet.cache.tree import ID_BYTES, Node, Stored, Tree


def grown(*prompts: str, cuts: tuple[int, ...] = ()) -> Tree:
    tree = Tree()
    for prompt in prompts:
        tree.insert(tokens(prompt), cuts, 0.0)
    return tree


def test_equal_prefixes_are_one_node_whoever_inserts_them():
    tree = Tree()
    first = tree.insert(tokens("system user"), (), 0.0)
    assert tree.insert(tokens("system user"), (), 1.0) is first
    assert tree.num_nodes == 1


def test_a_prompt_is_cut_at_message_ends():
    assert outline(grown("system user", cuts=(7, 11))) == {"system ": {"user": {}}}


def test_cuts_outside_the_prompt_and_double_ones_count_for_nothing():
    assert outline(grown("abcd", cuts=(-1, 0, 2, 2, 4, 9))) == {"ab": {"cd": {}}}


def test_a_node_is_cut_where_prompts_part():
    tree = grown("abcdef", "abcxyz", "abq", "z")
    assert outline(tree) == {"ab": {"c": {"def": {}, "xyz": {}}, "q": {}}, "z": {}}
    assert tree.num_nodes == 6


def test_a_prompt_that_ends_inside_a_node_gets_a_node_end():
    tree = grown("abcdef", "abc")
    assert outline(tree) == {"abc": {"def": {}}}


def test_known_nodes_are_cut_too_where_a_prompt_asks_for_it():
    tree = grown("abcdef", "abcxyz")
    tree.insert(tokens("abcdefgh"), (1, 2, 3, 5, 7), 0.0)
    assert outline(tree) == {"a": {"b": {"c": {"de": {"f": {"g": {"h": {}}}}, "xyz": {}}}}}
    tree.insert(tokens("abcx"), (1, 3), 0.0)
    assert outline(tree) == {"a": {"b": {"c": {"de": {"f": {"g": {"h": {}}}}, "x": {"yz": {}}}}}}


def test_nothing_is_cut_where_a_prompt_only_goes_on():
    assert outline(grown("abc", "abcdef", "abcdefg")) == {"abc": {"def": {"g": {}}}}


def test_positions_are_those_of_the_whole_prefix():
    node = grown("abcdefg", cuts=(2, 5)).match(tokens("abcdefg")).path
    assert [(step.start, step.stop) for step in node] == [(0, 2), (2, 5), (5, 7)]
    assert [prefix(step) for step in node] == ["ab", "abcde", "abcdefg"]


def test_a_match_tells_how_far_the_tokens_are_known():
    tree = grown("abcdef", "abx", cuts=(4,))
    for asked, known, steps in [
        ("abcdef", "abcdef", ["ab", "cd", "ef"]),
        ("abcdefgh", "abcdef", ["ab", "cd", "ef"]),
        ("abcQ", "abc", ["ab", "cd"]),
        ("ab", "ab", ["ab"]),
        ("a", "a", ["ab"]),
        ("Q", "", []),
        ("", "", []),
    ]:
        match = tree.match(tokens(asked))
        assert match.length == len(known), asked
        assert [text(node.tokens) for node in match.path] == steps, asked


def test_only_nodes_that_are_matched_to_their_end_are_had_whole():
    match = grown("abcdef", cuts=(3,)).match(tokens("abcdX"))
    assert [node.stop <= match.length for node in match.path] == [True, False]


def test_the_match_reads_arrays_of_any_layout():
    tree = grown("abcdef", cuts=(3,))
    strided = np.repeat(tokens("abcdef"), 2)[::2]
    assert tree.match(strided).length == 6
    assert tree.insert(strided, (), 0.0).id == grown("abcdef").insert(tokens("abcdef"), (), 0.0).id


def test_a_node_does_not_hold_on_to_the_requests_array():
    prompt = tokens("abcdef")
    tree = Tree()
    tree.insert(prompt, (3,), 0.0)
    prompt[:] = 0
    assert outline(tree) == {"abc": {"def": {}}}


def test_tokens_that_share_low_bytes_are_different():
    tree = Tree()
    tree.insert(np.array([1, 256, 3], np.int32), (), 0.0)
    assert tree.match(np.array([1, 257, 3], np.int32)).length == 1
    assert tree.match(np.array([257, 256, 3], np.int32)).length == 0


def test_the_fingerprint_changes_every_identity():
    nodes = [Tree(fingerprint).insert(tokens("abc"), (), 0.0) for fingerprint in (b"", b"model a", b"model b")]
    assert len({node.id for node in nodes}) == 3


prompts = st.text("ab", min_size=1, max_size=12)


@given(st.lists(prompts, min_size=1, max_size=8), st.lists(prompts, max_size=8), st.sets(st.integers(1, 11)))
def test_identities_are_equal_wherever_nodes_are_cut(one: list[str], other: list[str], cuts: set[int]):
    whole, torn = grown(*one), grown(*other, *one, cuts=tuple(cuts))
    torn_ids = {prefix(node): node.id for node in torn.nodes()}
    for node in whole.nodes():
        assert torn_ids[prefix(node)] == node.id
    for name, identity in torn_ids.items():
        data = tokens(name).astype("<i4").tobytes()
        assert identity == hashlib.blake2b(data, digest_size=ID_BYTES).digest()
    assert len(set(torn_ids.values())) == len(torn_ids)


@given(st.lists(prompts, max_size=10), prompts)
def test_the_match_is_the_longest_common_prefix(known: list[str], asked: str):
    match = grown(*known).match(tokens(asked))
    starts = [n for n in range(len(asked) + 1) if any(prompt.startswith(asked[:n]) for prompt in ("", *known))]
    assert match.length == max(starts)
    assert "".join(text(node.tokens) for node in match.path).startswith(asked[: match.length])


def test_all_nodes_are_told_parents_first():
    tree = grown("abc", "abd", "x", "xyz")
    order = [prefix(node) for node in tree.nodes()]
    assert sorted(order) == ["ab", "abc", "abd", "x", "xyz"]
    assert order.index("ab") < min(order.index("abc"), order.index("abd"))
    assert order.index("x") < order.index("xyz")


def test_what_a_node_has_is_shown():
    tree = grown("abc")
    node = tree.match(tokens("abc")).path[0]
    assert repr(node) == f"<Node [0, 3) {node.id.hex()[:8]} bare>"
    assert repr(tree) == "<Tree 1 nodes>"


def test_only_a_bare_node_can_be_removed():
    tree = grown("abc", "abcd")
    upper, lower = tree.match(tokens("abcd")).path
    with pytest.raises(AssertionError):
        tree.remove(upper)
    lower.num_leases = 1
    with pytest.raises(AssertionError):
        tree.remove(lower)
    lower.num_leases = 0
    tree.remove(lower)
    assert outline(tree) == {"abc": {}}
    assert tree.num_nodes == 1


def test_the_root_stays_where_it_is():
    tree = Tree()
    assert tree.insert(tokens(""), (), 0.0) is tree.root
    assert tree.num_nodes == 0


# What is saved


def stored(kind: BlobKind, *nodes: Node) -> Stored:
    """As if it had been put somewhere."""
    start = nodes[0].start if kind == "span" else 0
    made = Stored(BlobKey(kind, nodes[-1].id, start), start, nodes[-1].stop, 10, [*nodes])
    made.attach()
    return made


def test_a_node_that_is_cut_shares_its_span_and_keeps_its_checkpoint():
    tree = grown("abcdef")
    (node,) = tree.nodes()
    span, checkpoint = stored("span", node), stored("checkpoint", node)
    tree.insert(tokens("abX"), (), 0.0)
    tree.insert(tokens("abcdY"), (), 0.0)
    path = tree.match(tokens("abcdef")).path
    assert [prefix(step) for step in path] == ["ab", "abcd", "abcdef"]
    assert [prefix(step) for step in span.nodes] == ["ab", "abcd", "abcdef"]
    assert [step.span for step in path] == [span] * 3
    assert [step.checkpoint for step in path] == [None, None, checkpoint]
    assert checkpoint.nodes == [node] and span.key.prefix == node.id


def test_what_no_tier_has_any_more_is_forgotten_by_all_of_its_nodes():
    tree = grown("abcdef", "abX")
    upper, lower = tree.match(tokens("abcdef")).path
    span, checkpoint = stored("span", upper, lower), stored("checkpoint", lower)
    span.detach()
    assert (upper.span, lower.span, lower.checkpoint) == (None, None, checkpoint)
    assert span.nodes == []
    checkpoint.detach()
    assert lower.is_bare


def test_a_blob_is_leased_while_any_of_its_nodes_is():
    tree = grown("abcdef", "abX")
    upper, lower = tree.match(tokens("abcdef")).path
    span = stored("span", upper, lower)
    assert not span.is_leased
    upper.num_leases = 1
    assert span.is_leased


def test_a_blob_tells_where_it_is():
    (node,) = grown("abcdef").nodes()
    span = stored("span", node)
    assert repr(span) == "<Stored span [0, 6) 10 bytes >"
    span.in_ram, span.disk_bytes = True, 200
    assert span.on_disk
    assert repr(span) == "<Stored span [0, 6) 10 bytes ram disk>"


# Finding again


def data(letters: str) -> bytes:
    return tokens(letters).astype("<i4").tobytes()


@pytest.mark.parametrize(
    ("parent", "below", "expected"),
    [
        ("", "xyz", {"abcdef": {}, "xyz": {}}),
        ("", "abcdef", {"abcdef": {}}),
        ("", "abcdefgh", {"abcdef": {"gh": {}}}),
        ("", "abc", {"abc": {"def": {}}}),
        ("", "abX", {"ab": {"cdef": {}, "X": {}}}),
        ("abcdef", "gh", {"abcdef": {"gh": {}}}),
        ("abcdef", "", {"abcdef": {}}),
    ],
)
def test_tokens_are_grafted_below_a_node_wherever_it_was_cut(parent: str, below: str, expected: object):
    tree = grown("abcdef")
    top = tree.insert(tokens(parent), (), 0.0)
    node = tree.graft(top, data(below), 0.0)
    assert prefix(node) == parent + below
    assert outline(tree) == expected
    assert tree.num_nodes == len([*tree.nodes()])


def test_a_prefix_is_found_by_its_identity_and_cut_out_where_no_node_ends():
    tree = grown("abcdef", "abXYZ")
    names = ["a", "ab", "abc", "abcdef", "abXY"]
    identities = {name: Tree().insert(tokens(name), (), 0.0).id for name in names}
    for name, identity in identities.items():
        node = tree.find(identity, len(name))
        assert node is not None and prefix(node) == name
    assert outline(tree) == {"a": {"b": {"c": {"def": {}}, "XY": {"Z": {}}}}}
    assert tree.find(identities["abc"], 4) is None
    assert tree.find(b"?" * ID_BYTES, 3) is None
