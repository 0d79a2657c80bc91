from __future__ import annotations

import pytest
from tests.cache.shelf import Shelf, outline, prefix, tokens

from kvstet.cache.plan import Fork
from kvstet.cache.tree import Node, Tree
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits, SeqId

WITH_CHECKPOINTS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)
ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


def snapshot(shelf: Shelf) -> list[object]:
    """All that a cache knows, as values."""
    tree = shelf.cache.tree

    def node(n: Node) -> object:
        stored = [(s.key, s.start, s.stop, s.num_bytes, s.num_nodes) if s else None for s in (n.span, n.checkpoint)]
        branches = sorted((b.seq, b.length, b.is_running, b.cells()) for b in n.branches)
        below = {first: node(child) for first, child in n.children.items()}
        return (n.tokens.tolist(), n.start, n.id, stored, branches, n.num_leases, n.num_hits, n.last_used, below)

    return [node(tree.root), tree.num_nodes, repr(shelf.cache.tier), shelf.cache.num_live_cells]


# Planning


@ALL_KINDS
def test_planning_changes_nothing(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcdef", cuts=(2,))
    assert shelf.save_checkpoint(node) if traits.has_checkpoints else True
    shelf.parked(0, "abcX")
    shelf.start(1, "abcdefgh", length=7)
    before = snapshot(shelf)
    for prompt in ("abcdefghi", "abcdefg", "abcX", "abQ", "Q", "a"):
        shelf.plan(prompt)
    assert snapshot(shelf) == before


# Live branches and cells


def test_a_branch_is_on_all_nodes_of_its_path():
    shelf = Shelf()
    branch = shelf.run(0, "abcdef", cuts=(2,))
    shelf.cache.insert(tokens("abcX"), ())
    assert [node.branches for node in shelf.nodes(["ab", "abc", "abcdef"])] == [{branch}] * 3
    assert shelf.node("abcX").branches == set()
    shelf.cache.close(branch)
    shelf.cache.check()
    assert all(not node.branches for node in shelf.cache.tree.nodes())


def test_cells_of_a_shared_prefix_count_once():
    shelf = Shelf()
    first = shelf.parked(0, "abcdef")
    second = shelf.parked(1, "abcXYZ")
    third = shelf.parked(2, "abcXQ")
    assert shelf.cache.num_live_cells == 6 + 3 + 1
    assert [shelf.cache.num_own_cells()[branch] for branch in (first, second, third)] == [3, 2, 1]
    shelf.cache.close(first)
    assert shelf.cache.num_live_cells == 3 + 3 + 1
    shelf.cache.close(second)
    assert shelf.cache.num_live_cells == 3 + 1 + 1
    shelf.cache.close(third)
    assert shelf.cache.num_live_cells == 0


def test_equal_tokens_that_were_loaded_twice_take_cells_twice():
    shelf = Shelf()
    node = shelf.cache.insert(tokens("abcd"), ())
    for seq in (0, 1):
        shelf.cache.open(SeqId(seq), node, 4, None)
    assert shelf.cache.num_live_cells == 8


def test_a_fork_does_not_grow_with_the_branch_it_came_from():
    shelf = Shelf()
    source = shelf.start(0, "abcdef", length=2)
    node = shelf.cache.insert(tokens("abX"), ())
    fork = shelf.cache.open(SeqId(1), node, 2, Fork(source, 2))
    source.length = 6
    fork.length = 3
    assert shelf.cache.num_live_cells == 6 + 1
    assert shelf.cache.num_own_cells()[fork] == 1
    assert shelf.cache.num_own_cells()[source] == 4


def test_forks_of_forks_do_not_add_up():
    shelf = Shelf()
    prompt = "abcd"
    former = shelf.parked(0, prompt)
    for i in range(50):
        prompt = prompt[:-1] + "xy"
        branch = shelf.parked(1 + i, prompt)
        shelf.cache.close(former)
        assert shelf.cache.num_live_cells == len(prompt)
        former = branch
    assert len(former.cells()) == 1


def test_the_longest_hold_on_a_closed_branch_goes_on():
    shelf = Shelf()
    first = shelf.parked(0, "abcdef")
    short, long = shelf.parked(1, "abcdXY"), shelf.parked(2, "abcdefgh")
    shelf.cache.close(first)
    assert [len(branch.cells()) for branch in (short, long)] == [2, 1]
    assert shelf.cache.num_live_cells == 8 + 2
    assert [shelf.cache.num_own_cells()[branch] for branch in (short, long)] == [2, 4]
    shelf.cache.close(long)
    assert (len(short.cells()), shelf.cache.num_live_cells) == (1, 6)


def test_a_branch_that_may_still_grow_keeps_its_cells_to_itself():
    shelf = Shelf()
    stem, fork = shelf.parked(0, "abcd"), shelf.parked(1, "abcdXY")
    shelf.cache.close(shelf.parked(2, "Q"))
    assert shelf.cache.num_live_cells == 4 + 2
    shelf.cache.reopen(stem, shelf.cache.insert(tokens("abcdef"), ()))
    stem.length = 6
    assert shelf.cache.num_live_cells == 6 + 2
    assert [shelf.cache.num_own_cells()[branch] for branch in (stem, fork)] == [2, 2]


def test_a_parked_branch_forgets_the_part_of_its_path_that_it_never_computed():
    shelf = Shelf()
    branch = shelf.start(0, "abcdef", cuts=(2, 4), length=3)
    shelf.park(branch)
    assert outline(shelf.cache.tree) == {"ab": {"c": {}}}
    assert (prefix(branch.node), branch.is_running) == ("abc", False)
    assert repr(branch) == "<Branch seq=0 3/3 parked>"


def test_a_part_that_others_want_is_not_forgotten():
    shelf = Shelf()
    branch = shelf.start(0, "abcdef", length=3)
    waiting = shelf.cache.insert(tokens("abcdefgh"), ())
    with shelf.cache.lease(waiting):
        shelf.park(branch)
        assert outline(shelf.cache.tree) == {"abc": {"def": {"gh": {}}}}
    shelf.cache.forget_path(waiting)
    assert outline(shelf.cache.tree) == {"abc": {}}


def test_a_reply_becomes_a_node():
    shelf = Shelf()
    branch = shelf.run(0, "abcd")
    branch.length = 7
    shelf.cache.extend(branch, tokens("abcdefg"))
    shelf.park(branch)
    assert outline(shelf.cache.tree) == {"abcd": {"efg": {}}}
    assert shelf.plan("abcdefgh").fork == Fork(branch, 7)


def test_a_reply_that_another_prompt_goes_through_is_cut_out_of_it():
    shelf = Shelf()
    branch = shelf.run(0, "ab")
    shelf.parked(1, "abcdef")
    branch.length = 4
    shelf.cache.extend(branch, tokens("abcd"))
    shelf.park(branch)
    assert outline(shelf.cache.tree) == {"ab": {"cd": {"ef": {}}}}


def test_a_parked_branch_runs_on():
    shelf = Shelf()
    branch = shelf.parked(0, "abcd")
    shelf.cache.reopen(branch, shelf.cache.insert(tokens("abcdef"), ()))
    shelf.cache.check()
    assert branch.is_computing_prompt
    assert repr(branch) == "<Branch seq=0 4/6 runs>"
    branch.length = 6
    shelf.park(branch)
    assert shelf.cache.num_live_cells == 6


# Saving


@pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID], ids=lambda t: t.kind)
def test_spans_are_unsaved_from_the_top_where_no_other_branch_holds_them(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef", cuts=(2, 4), length=5)
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["ab", "abcd"]
    assert shelf.save_span(shelf.node("ab"))
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcd"]
    branch.length = 6
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcd", "abcdef"]
    other = shelf.start(1, "abcdX", length=4)
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcdef"]
    other.length = 3
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcd", "abcdef"]


@WITHOUT_SPANS
def test_memory_without_spans_has_none_to_save(traits: MemoryTraits):
    shelf = Shelf(traits)
    assert shelf.cache.unsaved(shelf.parked(0, "abcd")) == []


@WITH_CHECKPOINTS
def test_a_tip_lacks_its_checkpoint_until_it_is_saved(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcd", length=3)
    assert not shelf.cache.lacks_checkpoint(branch)
    branch.length = 4
    assert shelf.cache.lacks_checkpoint(branch)
    assert shelf.save_checkpoint(branch.node)
    assert not shelf.cache.lacks_checkpoint(branch)


def test_attention_lacks_no_checkpoint():
    shelf = Shelf()
    assert not shelf.cache.lacks_checkpoint(shelf.parked(0, "abcd"))


def test_a_split_blob_is_accounted_once():
    shelf = Shelf()
    node = shelf.saved("abcdef")
    for prompt in ("abX", "abcdX", "aX"):
        shelf.cache.insert(tokens(prompt), ())
        shelf.cache.check()
    spans = {n.span for n in shelf.nodes(["a", "ab", "abcd", "abcdef"])}
    assert spans == {node.span}
    assert node.span and node.span.num_nodes == 4
    assert repr(shelf.cache.tier) == "<RamTier 1 blobs, 6/1000 bytes>"


def test_a_split_blob_is_dropped_with_its_last_part():
    shelf = Shelf()
    shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    for prompt, used_bytes in (("abcdef", 6), ("ab", 0)):
        piece = shelf.cache.policy.span_piece(shelf.node(prompt), 0.0)
        assert piece
        shelf.cache.evict(piece)
        shelf.cache.check()
        assert shelf.cache.tier.used_bytes == used_bytes
    assert shelf.cache.num_evicted_blobs == 2


def test_a_lost_blob_is_forgotten_by_all_of_its_nodes():
    shelf = Shelf()
    node = shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    assert node.span and shelf.cache.fetch(node.span) is not None
    shelf.cache.tier.drop(node.span.key)
    assert shelf.cache.fetch(node.span) is None
    shelf.cache.forget(node.span)
    shelf.cache.check()
    assert shelf.kept() == []


@WITHOUT_SPANS
def test_a_checkpoint_stays_at_its_end_where_a_node_is_cut(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    shelf.cache.check()
    assert shelf.kept() == ["abcdef checkpoint"]


def test_a_checkpoint_saved_again_takes_the_place_of_the_old_one():
    shelf = Shelf(RECURRENT)
    node = shelf.saved("abcd")
    assert shelf.save_checkpoint(node, 9)
    assert repr(shelf.cache.tier) == "<RamTier 1 blobs, 9/1000 bytes>"


# Eviction


def test_whole_eviction_order_as_the_tier_fills():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa", at=0)
    shelf.saved("bbb", at=100)
    assert (shelf.kept(), shelf.evicted) == (["aaa span", "bbb span"], [])
    shelf.saved("ccc", at=200)
    assert (shelf.kept(), shelf.evicted) == (["bbb span", "ccc span"], ["aaa span"])
    shelf.now = 300
    for _ in range(9):
        shelf.cache.touch(shelf.node("bbb"))
    shelf.saved("dd", at=400)
    assert (shelf.kept(), shelf.evicted) == (["bbb span", "dd span"], ["aaa span", "ccc span"])
    shelf.saved("e", at=500)
    assert shelf.evicted == ["aaa span", "ccc span"]
    shelf.saved("fff", at=600)
    assert shelf.kept() == ["bbb span", "fff span"]
    assert shelf.evicted == ["aaa span", "ccc span", "dd span", "e span"]


def test_one_big_blob_takes_the_place_of_a_whole_branch():
    shelf = Shelf(ram_bytes=8)
    shelf.saved("abcdefgh", cuts=(2, 4, 6), at=0)
    shelf.saved("xxxxxx", at=1000)
    assert shelf.kept() == ["ab span", "xxxxxx span"]


def test_a_blob_that_is_worth_less_than_what_is_kept_is_refused_and_nothing_goes():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa", at=0)
    shelf.saved("bbb", at=0)
    shelf.now = 1000
    for prompt in ("aaa", "bbb") * 3:
        shelf.cache.touch(shelf.node(prompt))
    branch = shelf.parked(0, "xxx")
    shelf.now = 9000
    for prompt in ("aaa", "bbb"):
        shelf.cache.touch(shelf.node(prompt))
    assert not shelf.save_span(branch.node)
    assert shelf.kept() == ["aaa span", "bbb span"]
    assert branch.node.span is None


def test_where_only_a_part_of_the_room_could_be_made_nothing_is_evicted():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aa", at=0)
    shelf.saved("bbbb", at=0)
    shelf.now = 5000
    with shelf.cache.lease(shelf.node("bbbb")):
        branch = shelf.parked(0, "xxxx")
        assert not shelf.save_span(branch.node)
        assert shelf.kept() == ["aa span", "bbbb span"]
        assert shelf.save_span(shelf.parked(1, "yy").node)
    assert shelf.kept() == ["bbbb span", "yy span"]


def test_half_a_split_blob_makes_no_room():
    shelf = Shelf(ram_bytes=6)
    node = shelf.saved("abcdef", at=0)
    upper = shelf.cache.insert(tokens("abc"), ())
    shelf.now = 5000
    with shelf.cache.lease(upper):
        branch = shelf.parked(0, "xx")
        assert not shelf.save_span(branch.node)
        assert shelf.kept() == ["abc span", "abcdef span"]
    assert shelf.save_span(branch.node)
    assert node.span is None and shelf.kept() == ["xx span"]


def test_a_blob_bigger_than_the_tier_is_refused():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa", at=0)
    shelf.now = 9000
    assert not shelf.save_span(shelf.parked(0, "x" * 7).node)
    assert shelf.kept() == ["aaa span"]


def test_a_tier_without_room_keeps_nothing():
    shelf = Shelf(ram_bytes=0)
    assert not shelf.save_span(shelf.parked(0, "a").node)


def test_what_a_running_request_needs_is_worth_any_price_but_not_what_others_need():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa")
    shelf.saved("bbb")
    for _ in range(9):
        shelf.cache.touch(shelf.node("aaa"))
    needed = shelf.run(0, "xxxxx")
    with shelf.cache.lease(needed.node), shelf.cache.lease(shelf.node("bbb")):
        assert not shelf.save_span(needed.node)
        assert shelf.kept() == ["aaa span", "bbb span"]
        assert shelf.save_span(needed.node, 3)
        assert shelf.kept() == ["bbb span", "xxxxx span"]


@pytest.mark.parametrize("traits", [SWA, HYBRID], ids=lambda t: t.kind)
def test_dead_parts_go_first(traits: MemoryTraits):
    shelf = Shelf(traits, ram_bytes=16, checkpoint_bytes=2)
    # Behind its checkpoint, this prompt's spans bring nothing back, however often it was asked for.
    shelf.saved("abcdefgh", cuts=(4,), at=0)
    assert shelf.save_checkpoint(shelf.node("abcd"))
    shelf.saved("old", at=0)
    assert shelf.save_checkpoint(shelf.node("old"))
    shelf.now = 1000
    for _ in range(9):
        shelf.cache.touch(shelf.node("abcdefgh"))
    assert shelf.save_span(shelf.parked(0, "xxxx").node)
    assert shelf.evicted == ["abcdefgh span"]
    assert shelf.save_span(shelf.parked(1, "yyyy").node)
    # Its spans went, and with them the use of its checkpoint.
    assert shelf.evicted == ["abcdefgh span", "old span"]
    assert shelf.save_span(shelf.parked(2, "zz").node)
    assert shelf.evicted == ["abcdefgh span", "old span", "old checkpoint"]


def test_a_lease_ends_with_its_block_even_when_it_fails():
    shelf = Shelf()
    node = shelf.cache.insert(tokens("abcd"), (2,))

    def fail_on_lease() -> None:
        with shelf.cache.lease(node):
            assert [n.num_leases for n in shelf.cache.tree.nodes()] == [1, 1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_on_lease()
    assert [n.num_leases for n in shelf.cache.tree.nodes()] == [0, 0]


def test_a_lease_holds_on_both_sides_of_a_cut():
    shelf = Shelf()
    node = shelf.cache.insert(tokens("abcd"), ())
    with shelf.cache.lease(node):
        shelf.cache.insert(tokens("abX"), ())
        assert [shelf.node(p).num_leases for p in ("ab", "abcd", "abX")] == [1, 1, 0]
        shelf.cache.check()
    assert all(n.num_leases == 0 for n in shelf.cache.tree.nodes())


# Memory of what was seen


def test_the_longest_unused_bare_nodes_are_forgotten_when_there_are_too_many():
    shelf = Shelf(max_nodes=10)
    for now, prompt in enumerate("abcdefghijk"):
        shelf.now = float(now)
        shelf.cache.insert(tokens(prompt), ())
    assert sorted(outline(shelf.cache.tree)) == list("abcdefghijk")
    shelf.cache.insert(tokens("l"), ())
    assert sorted(outline(shelf.cache.tree)) == list("bcdefghijkl")
    for now, prompt in enumerate("mnopq"):
        shelf.now = 100.0 + now
        shelf.cache.insert(tokens(prompt), ())
    assert sorted(outline(shelf.cache.tree)) == list("ghijklmnopq")
    shelf.cache.check()


def test_forgetting_a_prompt_takes_the_path_that_only_led_there():
    shelf = Shelf(max_nodes=3)
    shelf.cache.insert(tokens("abcdef"), (1, 2, 4))
    shelf.now = 1
    shelf.cache.insert(tokens("x"), ())
    assert outline(shelf.cache.tree) == {"x": {}}
    assert shelf.cache.tree.num_nodes == 1


def test_nodes_with_state_are_never_forgotten():
    shelf = Shelf(max_nodes=2)
    shelf.saved("aa")
    shelf.parked(0, "bb")
    leased = shelf.cache.insert(tokens("cc"), ())
    with shelf.cache.lease(leased):
        for prompt in "xyz":
            shelf.cache.insert(tokens(prompt), ())
        assert sorted(outline(shelf.cache.tree)) == ["aa", "bb", "cc", "z"]
    shelf.cache.check()


def test_the_tree_of_a_fresh_cache_is_empty():
    shelf = Shelf()
    assert repr(shelf.cache.tree) == repr(Tree()) == "<Tree 0 nodes>"
    shelf.cache.check()
