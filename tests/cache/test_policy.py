from __future__ import annotations

from pathlib import Path

import pytest
from tests.cache.shelf import FLAT, QUICK, Shelf, prefix, tokens

from kvstet.cache.policy import IDLE_SECONDS, KIND_WEIGHTS, Piece, Policy, chance, total_bytes
from kvstet.cache.rates import Rates
from kvstet.cache.tier import BlobKey
from kvstet.cache.tree import Node, Stored, Tree
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import CutKind, MemoryTraits

BOTH = pytest.mark.parametrize("traits", [SWA, HYBRID], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)


def used(num_hits: int, last_used: float) -> Node:
    node = Tree().insert(tokens("a"), (), last_used)
    node.num_hits = num_hits
    return node


def value(shelf: Shelf, stored: Stored | None) -> float:
    assert stored is not None
    return shelf.appraisal().value(stored, "ram")


# Chances


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
    assert shelf.order() == ["abcdefgh span", "abcdef span", "abcd span", "ab span"]


def test_a_trunk_stays_until_all_that_grows_on_it_is_gone():
    shelf = Shelf()
    shelf.saved("ab", at=0)
    shelf.saved("abcd", at=100)
    shelf.saved("abef", at=200)
    assert shelf.order() == ["abcd span", "abef span", "ab span"]


def test_the_longest_unused_goes_first():
    shelf = Shelf()
    for now, prompt in enumerate(["cc", "aa", "bb"]):
        shelf.saved(prompt, at=100.0 * now)
    assert shelf.order() == ["cc span", "aa span", "bb span"]
    shelf.now = 1000
    shelf.cache.touch(shelf.node("cc"))
    assert shelf.order() == ["aa span", "bb span", "cc span"]


def test_a_big_prompt_that_nobody_asked_for_again_goes_before_a_small_one_that_was_hit():
    shelf = Shelf()
    shelf.saved("small", at=0)
    for now in (10, 20, 30):
        shelf.now = now
        shelf.cache.touch(shelf.node("small"))
    shelf.saved("a very long side request", at=40)
    shelf.now = 2000
    assert shelf.order() == ["a very long side request span", "small span"]


def test_what_costs_more_to_compute_stays_longer():
    shelf = Shelf(rates=Rates(1.0, 1.0))
    shelf.saved("abcdefgh", cuts=(4,))
    shelf.saved("xyz")
    # The end of a long prompt looks back on all before it.
    assert shelf.order() == ["xyz span", "abcdefgh span", "abcd span"]


def test_what_takes_fewer_bytes_for_the_same_tokens_stays_longer():
    shelf = Shelf()
    for prompt, num_bytes in (("aaaa", 8), ("bbbb", 2), ("cccc", 4)):
        shelf.save_span(shelf.cache.insert(tokens(prompt), ()), num_bytes)
    assert shelf.order() == ["aaaa span", "cccc span", "bbbb span"]


def test_only_what_is_worth_less_than_the_newcomer_goes():
    shelf = Shelf()
    for prompt, num_bytes in (("aaaa", 8), ("bbbb", 2), ("cccc", 4)):
        shelf.save_span(shelf.cache.insert(tokens(prompt), ()), num_bytes)
    newcomers = {shelf.cache.insert(tokens(prompt), ()): num_bytes for prompt, num_bytes in (("xx", 2), ("yyy", 2))}
    orders = {}
    for node, num_bytes in newcomers.items():
        stored = Stored(BlobKey("span", node.id, 0), 0, node.stop, num_bytes, [node])
        orders[prefix(node)] = shelf.order(newcomer=stored)
    # Of their two bytes, each of the newcomers' saves a second, and one and a half.
    assert orders == {"xx": ["aaaa span"], "yyy": ["aaaa span", "cccc span"]}


def test_no_more_goes_than_must():
    shelf = Shelf()
    for now, prompt in enumerate(["aaa", "bbb", "ccc"]):
        shelf.saved(prompt, at=100.0 * now)
    assert shelf.order(num_bytes=0) == []
    assert shelf.order(num_bytes=3) == ["aaa span"]
    assert shelf.order(num_bytes=4) == ["aaa span", "bbb span"]


def test_leased_state_never_goes():
    shelf = Shelf(SWA)
    node = shelf.saved("abcd", cuts=(2,))
    assert shelf.save_checkpoint(node)
    shelf.saved("abX", at=1)
    with shelf.cache.lease(node):
        assert shelf.order() == ["abX span"]
        with shelf.cache.lease(shelf.node("abX")):
            assert shelf.order() == []
    assert sorted(shelf.order()) == ["ab span", "abX span", "abcd checkpoint", "abcd span"]


# Split blobs


def test_a_split_blob_goes_whole_and_not_before_what_is_behind_any_part_of_it():
    shelf = Shelf()
    shelf.saved("abcdef", at=0)
    shelf.saved("zz", at=500)
    shelf.saved("abX", at=600)
    # It is the longest unused, but "X" stands behind its head.
    assert shelf.order() == ["zz span", "abX span", "abcdef span"]
    assert shelf.order(num_bytes=1) == ["zz span"]


def test_a_split_blob_is_worth_all_of_its_tokens_and_frees_all_of_its_bytes_at_once():
    shelf = Shelf()
    blob = shelf.saved("abcdef").span
    before = value(shelf, blob)
    shelf.cache.insert(tokens("abX"), ())
    shelf.cache.insert(tokens("abcdY"), ())
    assert value(shelf, blob) == pytest.approx(before) == pytest.approx(1.0)
    victims = shelf.victims("ram", 1)
    assert [piece.stored for piece in victims] == [blob]
    assert total_bytes(victims) == 6


def test_a_blob_of_which_any_part_is_leased_stays():
    shelf = Shelf()
    shelf.saved("abcdef")
    upper = shelf.cache.insert(tokens("abc"), ())
    with shelf.cache.lease(upper):
        assert shelf.order() == []
    assert shelf.order() == ["abcdef span"]


# Checkpoints


@WITHOUT_SPANS
def test_a_checkpoint_is_worth_the_way_from_the_one_before(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdefgh")
    shelf.saved("abcdefghi")
    shelf.saved("xxx")
    # Per four bytes: eight tokens, one token, three tokens.
    checkpoints = [shelf.node(prompt).checkpoint for prompt in ("abcdefgh", "abcdefghi", "xxx")]
    assert [value(shelf, checkpoint) for checkpoint in checkpoints] == [2.0, 0.25, 0.75]
    assert shelf.order() == ["abcdefghi checkpoint", "xxx checkpoint", "abcdefgh checkpoint"]


@WITHOUT_SPANS
def test_a_checkpoint_is_worth_more_where_it_stands_for_message_ends_that_have_none(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcd", cuts=(2,))
    shelf.cache.insert(tokens("abcdefgh"), (6,))
    # Four tokens each in four bytes; requests that go on from "abcdef" or "abcdefgh" would resume here as well.
    assert value(shelf, shelf.node("abcd").checkpoint) == 3.0
    shelf.saved("abcdef")
    assert value(shelf, shelf.node("abcd").checkpoint) == 1.0
    assert value(shelf, shelf.node("abcdef").checkpoint) == 2 * 2 / 4


@WITHOUT_SPANS
def test_the_worth_of_checkpoints_grows_as_those_around_them_go(traits: MemoryTraits):
    shelf = Shelf(traits)
    for stop in (2, 4, 6, 8):
        shelf.saved("abcdefgh"[:stop])
    shelf.saved("xxx")
    order = [(prefix(piece.stored.nodes[-1]), piece.value) for piece in shelf.victims("ram", 1_000_000)]
    # All four are two tokens from the one before. Where "ab" goes, "abcd" becomes four tokens from nothing; where
    # "abcdef" goes, its requests go on from "abcd", and "abcdefgh" is four tokens away.
    assert order == [("ab", 0.5), ("abcdef", 0.5), ("xxx", 0.75), ("abcdefgh", 1.0), ("abcd", 3.0)]


@WITHOUT_SPANS
@pytest.mark.parametrize("kind", ["head", "user", "tool", "assistant"])
def test_where_conversations_are_left_more_often_a_checkpoint_is_worth_more(traits: MemoryTraits, kind: CutKind):
    shelf = Shelf(traits)
    shelf.saved("aaaa")
    shelf.saved("aaaabbbb")
    plain = value(shelf, shelf.node("aaaa").checkpoint)
    shelf.node("aaaa").kind = kind
    assert value(shelf, shelf.node("aaaa").checkpoint) == pytest.approx(plain * KIND_WEIGHTS[kind])
    # A tip is gone on from whatever comes next.
    tip = value(shelf, shelf.node("aaaabbbb").checkpoint)
    shelf.node("aaaabbbb").kind = kind
    assert value(shelf, shelf.node("aaaabbbb").checkpoint) == tip


@BOTH
def test_checkpoints_go_apart_from_spans(traits: MemoryTraits):
    shelf = Shelf(traits, checkpoint_bytes=100)
    node = shelf.saved("abcd", cuts=(2,))
    assert shelf.save_checkpoint(node)
    # A big checkpoint is worth less per byte than the spans in front of it.
    assert shelf.order() == ["abcd checkpoint", "abcd span", "ab span"]


@BOTH
def test_spans_behind_the_last_checkpoint_are_worth_nothing(traits: MemoryTraits):
    shelf = Shelf(traits, checkpoint_bytes=1)
    shelf.saved("abcdef", cuts=(2, 4))
    assert shelf.save_checkpoint(shelf.node("ab"))
    assert [value(shelf, node.span) for node in shelf.nodes(["ab", "abcd", "abcdef"])] == [1.0, 0.0, 0.0]
    assert shelf.order()[:2] == ["abcdef span", "abcd span"]
    shelf.parked(0, "abcdef")
    # As long as it lives, its checkpoint may still be saved.
    assert value(shelf, shelf.node("abcdef").span) == 1.0


@BOTH
def test_a_checkpoint_whose_spans_are_gone_is_worth_nothing(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcd")
    assert shelf.save_checkpoint(node) and node.span
    before = value(shelf, node.checkpoint)
    shelf.cache.forget(node.span)
    assert before > 0 == value(shelf, node.checkpoint)
    shelf.parked(0, "abcd")
    assert value(shelf, node.checkpoint) > 0


@BOTH
def test_a_checkpoint_goes_right_after_the_span_in_front_of_it(traits: MemoryTraits):
    shelf = Shelf(traits, checkpoint_bytes=2)
    # Eight tokens in sixteen bytes, and a checkpoint that is worth far more per byte.
    node = shelf.cache.insert(tokens("abcdefgh"), ())
    assert shelf.save_span(node, 16) and shelf.save_checkpoint(node)
    other = shelf.saved("xxxx")
    assert shelf.save_checkpoint(other)
    assert shelf.order() == [
        "abcdefgh span",
        "abcdefgh checkpoint",
        "xxxx span",
        "xxxx checkpoint",
    ]


# RAM with a disk behind it


def test_what_is_on_disk_already_is_worth_only_what_loading_costs(tmp_path: Path):
    shelf = Shelf(folder=tmp_path)
    shelf.saved("aaaa", at=0)
    shelf.saved("bbbb", at=100)
    assert shelf.order() == ["aaaa span", "bbbb span"]
    newer = shelf.node("bbbb").span
    assert newer
    # As if it alone had been written.
    newer.disk_bytes = 165
    assert value(shelf, newer) == pytest.approx(FLAT.load_seconds(4, "disk") / 4)
    assert shelf.order() == ["bbbb span", "aaaa span"]


def test_what_is_in_ram_as_well_is_worth_no_less_on_disk(tmp_path: Path):
    shelf = Shelf(folder=tmp_path, rates=QUICK)
    shelf.saved("aaaa", at=0)
    shelf.saved("bbbb", at=100)
    assert shelf.write() == ["aaaa span", "bbbb span"]
    stored = shelf.node("aaaa").span
    assert stored
    before = shelf.appraisal().value(stored, "disk")
    shelf.cache.evict(Piece(stored, "ram", 0.0))
    assert shelf.appraisal().value(stored, "disk") == before > 0
    assert shelf.order("disk") == ["aaaa span", "bbbb span"]
    assert [piece.num_bytes for piece in shelf.victims("disk", 10_000)] == [
        shelf.path(prompt).stat().st_size for prompt in ("aaaa", "bbbb")
    ]


def test_on_disk_a_branch_goes_from_its_end_whatever_is_in_ram(tmp_path: Path):
    shelf = Shelf(folder=tmp_path, rates=QUICK)
    shelf.saved("abcdef", cuts=(2, 4))
    shelf.write()
    for prompt in ("abcdef", "abcd"):
        stored = shelf.node(prompt).span
        assert stored
        shelf.cache.evict(Piece(stored, "ram", 0.0))
    assert shelf.order("ram") == ["ab span"]
    assert shelf.order("disk") == ["abcdef span", "abcd span", "ab span"]


def test_what_takes_longer_to_load_than_to_compute_is_not_worth_writing():
    shelf = Shelf()
    policy = shelf.cache.policy
    node = shelf.cache.insert(tokens("abcd"), ())
    assert shelf.save_span(node, 39) and node.span
    assert policy.compute_seconds(node.span) == 4.0
    assert policy.is_worth_writing(node.span)
    assert shelf.save_span(node, 40) and node.span
    assert not policy.is_worth_writing(node.span)


@WITHOUT_SPANS
def test_the_record_of_a_path_goes_when_nothing_stands_on_it(traits: MemoryTraits, tmp_path: Path):
    shelf = Shelf(traits, folder=tmp_path, rates=QUICK)
    shelf.saved("aaaa")
    shelf.saved("aaaabbbb")
    shelf.write()
    assert shelf.on_disk() == ["aaaa checkpoint", "aaaa span", "aaaabbbb checkpoint", "aaaabbbb span"]
    order = shelf.order("disk")
    assert sorted(order) == shelf.on_disk()
    assert order.index("aaaabbbb checkpoint") < order.index("aaaabbbb span") < order.index("aaaa span")
    assert order.index("aaaa checkpoint") < order.index("aaaa span")
    assert shelf.order("ram") != []
    assert all(name.endswith("checkpoint") for name in shelf.order("ram"))


@WITHOUT_SPANS
def test_what_a_newcomer_will_stand_on_stays(traits: MemoryTraits, tmp_path: Path):
    shelf = Shelf(traits, folder=tmp_path, rates=QUICK)
    shelf.saved("aaaa")
    shelf.saved("cccc")
    shelf.write()
    stored = shelf.node("aaaa").checkpoint
    assert stored
    shelf.archive.evict(Piece(stored, "disk", 0.0))
    assert shelf.order("disk")[0] == "aaaa span"
    # The record of its own tokens is not there yet.
    shelf.now = 1000
    newcomer = shelf.saved("aaaabbbb").checkpoint
    assert shelf.order("disk", newcomer=newcomer) == ["cccc checkpoint", "cccc span"]


# Live branches


def test_a_live_branch_is_worth_the_tokens_that_only_it_holds():
    policy = Policy(ATTENTION, FLAT)
    shelf = Shelf()
    shelf.parked(0, "abcd")
    branch = shelf.parked(1, "abXYZ")
    assert policy.branch_value(branch, 3, 0.0) == pytest.approx(3 / 3)
    assert shelf.branch_value(branch) == pytest.approx(3 / 3)
    assert shelf.save_span(branch.node)
    assert shelf.branch_value(branch) == pytest.approx(FLAT.load_seconds(3, "ram") / 3)


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


def test_pieces_tell_the_bytes_they_free_where_they_are():
    shelf = Shelf()
    stored = shelf.saved("abcd").span
    assert stored
    stored.disk_bytes = 100
    assert Piece(stored, "ram", 1.0).num_bytes == 4
    assert Piece(stored, "disk", 1.0).num_bytes == 100
    assert total_bytes([Piece(stored, "ram", 1.0), Piece(stored, "disk", 1.0)]) == 104
