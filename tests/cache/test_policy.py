from __future__ import annotations

import math

import pytest
from tests.cache.shelf import FLAT, Shelf, prefix, tokens

from kvstet.cache.policy import IDLE_SECONDS, Piece, Policy, Rates, chance, freed_bytes
from kvstet.cache.tree import Node, Tree
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits

BOTH = pytest.mark.parametrize("traits", [SWA, HYBRID], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)


def order(shelf: Shelf, num_bytes: int = 1_000_000, below: float = math.inf) -> list[str]:
    """Everything that may be evicted, worst first."""
    policy, nodes = shelf.cache.policy, shelf.cache.tree.nodes()
    return [f"{prefix(p.node)} {p.kind}" for p in policy.victims(nodes, num_bytes, shelf.now, below)]


def used(num_hits: int, last_used: float) -> Node:
    node = Tree().insert(tokens("a"), (), last_used)
    node.num_hits = num_hits
    return node


# Rates and chances


def test_a_token_costs_more_the_more_tokens_it_looks_back_on():
    rates = Rates(seconds_per_token=1.0, seconds_per_token_and_position=0.5)
    assert rates.compute_seconds(0, 2) == 2 + 0.5 * 2
    assert rates.compute_seconds(2, 4) == 2 + 0.5 * 6
    assert rates.compute_seconds(0, 2) + rates.compute_seconds(2, 4) == rates.compute_seconds(0, 4)
    assert rates.compute_seconds(3, 3) == 0


def test_a_prefix_that_was_never_hit_is_half_as_likely_after_the_idle_time():
    assert chance(used(0, 100.0), 100.0) == 1.0
    assert chance(used(0, 100.0), 100.0 + IDLE_SECONDS) == 0.5


def test_the_chance_falls_slower_the_more_often_a_prefix_was_hit():
    chances = [chance(used(num_hits, 0.0), IDLE_SECONDS) for num_hits in range(5)]
    assert chances == sorted(set(chances))


def test_a_clock_that_stepped_back_makes_no_prefix_certain():
    assert chance(used(0, 100.0), 0.0) == 1.0


# Whole eviction orders


def test_a_branch_is_evicted_from_its_end():
    shelf = Shelf()
    shelf.saved("abcdefgh", cuts=(2, 4, 6))
    assert order(shelf) == ["abcdefgh span", "abcdef span", "abcd span", "ab span"]


def test_a_trunk_stays_until_all_that_grows_on_it_is_gone():
    shelf = Shelf()
    shelf.saved("ab", at=0)
    shelf.saved("abcd", at=100)
    shelf.saved("abef", at=200)
    assert order(shelf) == ["abcd span", "abef span", "ab span"]


def test_the_longest_unused_goes_first():
    shelf = Shelf()
    for now, prompt in enumerate(["cc", "aa", "bb"]):
        shelf.saved(prompt, at=100.0 * now)
    assert order(shelf) == ["cc span", "aa span", "bb span"]
    shelf.now = 1000
    shelf.cache.touch(shelf.node("cc"))
    assert order(shelf) == ["aa span", "bb span", "cc span"]


def test_a_big_prompt_that_nobody_asked_for_again_goes_before_a_small_one_that_was_hit():
    shelf = Shelf()
    shelf.saved("small", at=0)
    for now in (10, 20, 30):
        shelf.now = now
        shelf.cache.touch(shelf.node("small"))
    shelf.saved("a very long side request", at=40)
    shelf.now = 2000
    assert order(shelf) == ["a very long side request span", "small span"]


def test_what_costs_more_to_compute_stays_longer():
    shelf = Shelf(rates=Rates(1.0, 1.0))
    shelf.saved("abcdefgh", cuts=(4,))
    shelf.saved("xyz")
    # The end of a long prompt looks back on all before it.
    assert order(shelf) == ["xyz span", "abcdefgh span", "abcd span"]


def test_what_takes_fewer_bytes_for_the_same_tokens_stays_longer():
    shelf = Shelf()
    for prompt, num_bytes in (("aaaa", 8), ("bbbb", 2), ("cccc", 4)):
        shelf.save_span(shelf.cache.insert(tokens(prompt), ()), num_bytes)
    assert order(shelf) == ["aaaa span", "cccc span", "bbbb span"]


def test_only_what_is_worth_less_than_the_newcomer_goes():
    shelf = Shelf()
    for prompt, num_bytes in (("aaaa", 8), ("bbbb", 2), ("cccc", 4)):
        shelf.save_span(shelf.cache.insert(tokens(prompt), ()), num_bytes)
    assert order(shelf, below=1.0) == ["aaaa span"]
    assert order(shelf, below=1.5) == ["aaaa span", "cccc span"]


def test_no_more_goes_than_must():
    shelf = Shelf()
    for now, prompt in enumerate(["aaa", "bbb", "ccc"]):
        shelf.saved(prompt, at=100.0 * now)
    assert order(shelf, num_bytes=0) == []
    assert order(shelf, num_bytes=3) == ["aaa span"]
    assert order(shelf, num_bytes=4) == ["aaa span", "bbb span"]


def test_leased_state_never_goes():
    shelf = Shelf(SWA)
    node = shelf.saved("abcd", cuts=(2,))
    assert shelf.save_checkpoint(node)
    shelf.saved("abX", at=1)
    with shelf.cache.lease(node):
        assert order(shelf) == ["abX span"]
        with shelf.cache.lease(shelf.node("abX")):
            assert order(shelf) == []
    assert sorted(order(shelf)) == ["ab span", "abX span", "abcd checkpoint", "abcd span"]


# Split blobs


def test_a_split_blob_goes_node_by_node_and_its_bytes_come_with_the_last():
    shelf = Shelf()
    shelf.saved("abcdef", at=0)
    shelf.saved("zz", at=500)
    shelf.cache.insert(tokens("abX"), ())
    assert order(shelf, num_bytes=1) == ["abcdef span", "ab span"]
    assert order(shelf, num_bytes=7) == ["abcdef span", "ab span", "zz span"]


def test_the_last_part_of_a_split_blob_answers_for_all_of_its_bytes():
    shelf = Shelf()
    shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    upper, lower = shelf.nodes(["ab", "abcdef"])
    policy = shelf.cache.policy
    piece = policy.span_piece(lower, shelf.now)
    assert piece and piece.value == pytest.approx(1.0)
    shelf.cache.evict(piece)
    shelf.cache.check()
    last = policy.span_piece(upper, shelf.now)
    # Two tokens in six bytes now.
    assert last and last.value == pytest.approx(2 / 6)


def test_bytes_are_free_only_when_a_blob_has_no_part_left():
    shelf = Shelf()
    shelf.saved("abcdef")
    shelf.saved("xyz")
    shelf.cache.insert(tokens("abX"), ())
    pieces = [*shelf.cache.policy.victims(shelf.cache.tree.nodes(), 1000, 0.0, math.inf)]
    named = {prefix(piece.node): piece for piece in pieces}
    assert freed_bytes([named["abcdef"]]) == 0
    assert freed_bytes([named["abcdef"], named["xyz"]]) == 3
    assert freed_bytes(pieces) == 9


# Checkpoints


@WITHOUT_SPANS
def test_a_checkpoint_is_worth_the_way_from_the_one_before(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdefgh")
    shelf.saved("abcdefghi")
    shelf.saved("xxx")
    # Per four bytes: eight tokens, one token, three tokens.
    assert order(shelf) == ["abcdefghi checkpoint", "xxx checkpoint", "abcdefgh checkpoint"]
    values = [shelf.cache.policy.checkpoint_piece(shelf.node(p), 0.0) for p in ("abcdefgh", "abcdefghi", "xxx")]
    assert [piece and piece.value for piece in values] == [2.0, 0.25, 0.75]


@BOTH
def test_checkpoints_go_apart_from_spans(traits: MemoryTraits):
    shelf = Shelf(traits, checkpoint_bytes=100)
    node = shelf.saved("abcd", cuts=(2,))
    assert shelf.save_checkpoint(node)
    # A big checkpoint is worth less per byte than the spans in front of it.
    assert order(shelf) == ["abcd checkpoint", "abcd span", "ab span"]


@BOTH
def test_spans_behind_the_last_checkpoint_are_worth_nothing(traits: MemoryTraits):
    shelf = Shelf(traits, checkpoint_bytes=1)
    shelf.saved("abcdef", cuts=(2, 4))
    assert shelf.save_checkpoint(shelf.node("ab"))
    policy = shelf.cache.policy
    piece = policy.span_piece(shelf.node("abcdef"), 0.0)
    assert piece and piece.value == 0
    assert order(shelf, below=1e-9) == ["abcdef span", "abcd span"]


@BOTH
def test_a_checkpoint_whose_spans_are_gone_is_worth_nothing(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcd")
    assert shelf.save_checkpoint(node) and node.span
    policy = shelf.cache.policy
    before = policy.checkpoint_piece(node, 0.0)
    shelf.cache.forget(node.span)
    after = policy.checkpoint_piece(node, 0.0)
    assert before and after and before.value > 0 == after.value
    shelf.parked(0, "abcd")
    again = policy.checkpoint_piece(node, 0.0)
    assert again and again.value > 0


# Live branches


def test_a_live_branch_is_worth_the_tokens_that_only_it_holds():
    policy = Policy(ATTENTION, FLAT)
    shelf = Shelf()
    shelf.parked(0, "abcd")
    branch = shelf.parked(1, "abXYZ")
    assert policy.branch_value(branch, 3, 0.0) == pytest.approx(3 / 3)
    assert shelf.branch_value(branch) == pytest.approx(3 / 3)
    assert shelf.save_span(branch.node)
    assert shelf.branch_value(branch) == pytest.approx(3 * FLAT.load_seconds_per_token / 3)


def test_a_branch_within_another_is_worth_nothing():
    shelf = Shelf()
    inner = shelf.parked(0, "ab")
    shelf.parked(1, "abcd")
    assert shelf.branch_value(inner) == 0


@WITHOUT_SPANS
def test_a_branch_with_a_checkpoint_at_its_tip_can_be_loaded_again(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcd")
    before = shelf.branch_value(branch)
    assert shelf.save_checkpoint(branch.node)
    assert 0 < shelf.branch_value(branch) < before


def test_pieces_are_plain_values():
    shelf = Shelf()
    node = shelf.saved("abcd")
    assert node.span
    assert shelf.cache.policy.span_piece(node, 0.0) == Piece(node, "span", node.span, 1.0)
    assert shelf.cache.policy.checkpoint_piece(node, 0.0) is None
