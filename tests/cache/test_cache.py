from __future__ import annotations

from pathlib import Path

import pytest
from tests.cache.shelf import Shelf, outline, prefix, tokens

from kvstet.cache.placement import EditDepths
from kvstet.cache.plan import Fork
from kvstet.cache.policy import Appraisal, Piece
from kvstet.cache.rates import TierName
from kvstet.cache.tree import Branch, Node, Stored, Tree
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits, SeqId

WITH_CHECKPOINTS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)
ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


def snapshot(shelf: Shelf) -> list[object]:
    """All that a cache knows, as values."""
    tree = shelf.cache.tree

    def node(n: Node) -> object:
        stored = [
            (s.key, s.start, s.stop, s.num_bytes, len(s.nodes), repr(s)) if s else None for s in (n.span, n.checkpoint)
        ]
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
def test_spans_are_unsaved_from_the_top_also_where_other_branches_hold_them(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef", cuts=(2, 4), length=5)
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["ab", "abcd"]
    assert shelf.save_span(shelf.node("ab"))
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcd"]
    branch.length = 6
    assert [prefix(node) for node in shelf.cache.unsaved(branch)] == ["abcd", "abcdef"]
    other = shelf.start(1, "abcdX", length=4)
    assert [prefix(node) for node in shelf.cache.unsaved(other)] == ["abcd"]
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
    assert node.span and [prefix(n) for n in node.span.nodes] == ["a", "ab", "abcd", "abcdef"]
    assert repr(shelf.cache.tier) == "<RamTier 1 blobs, 6/1000 bytes>"


def test_a_split_blob_is_dropped_whole():
    shelf = Shelf()
    shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    (piece,) = shelf.victims("ram", 1)
    shelf.cache.evict(piece)
    shelf.cache.check()
    assert shelf.kept() == []
    assert shelf.cache.tier.used_bytes == 0
    assert shelf.cache.num_evicted_blobs == 1


def test_a_lost_blob_is_forgotten_by_all_of_its_nodes():
    shelf = Shelf()
    node = shelf.saved("abcdef")
    shelf.cache.insert(tokens("abX"), ())
    lost = node.span
    assert lost and shelf.cache.fetch(lost) is not None
    shelf.cache.tier.drop(lost.key)
    assert shelf.cache.fetch(lost) is None
    assert shelf.kept() == [] == lost.nodes
    shelf.cache.forget(lost)
    shelf.cache.check()


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


def test_a_split_blob_of_which_a_part_is_leased_makes_no_room():
    shelf = Shelf(ram_bytes=6)
    node = shelf.saved("abcdef", at=0)
    upper = shelf.cache.insert(tokens("abc"), ())
    shelf.now = 5000
    with shelf.cache.lease(upper):
        branch = shelf.parked(0, "xx")
        assert not shelf.save_span(branch.node)
        assert shelf.kept() == ["abc span", "abcdef span"]
    # That there is no room is known for a moment.
    shelf.now += 1
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


def test_what_a_request_under_way_needs_is_not_for_sale():
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa")
    shelf.saved("bbb")
    branch = shelf.run(0, "xxxxx")
    shelf.now = 100_000
    with shelf.cache.lease(shelf.node("bbb")):
        assert not shelf.save_span(branch.node)
        assert shelf.save_span(branch.node, 3)
        assert shelf.kept() == ["bbb span", "xxxxx span"]


def test_for_a_moment_after_a_search_for_room_found_none_no_other_is_made(monkeypatch: pytest.MonkeyPatch):
    shelf = Shelf(ram_bytes=6)
    shelf.saved("aaa")
    shelf.saved("bb")
    searches: list[int] = []
    victims = Appraisal.victims

    def counted(self: Appraisal, tier: TierName, num_bytes: int, newcomer: Stored | None = None) -> list[Piece]:
        searches.append(num_bytes)
        return victims(self, tier, num_bytes, newcomer)

    monkeypatch.setattr(Appraisal, "victims", counted)
    with shelf.cache.lease(shelf.node("aaa")), shelf.cache.lease(shelf.node("bb")):
        for seq, prompt in enumerate(["xxx", "yyyy"]):
            assert not shelf.save_span(shelf.run(seq, prompt).node)
        assert searches == [2]
        # Less may find room; and what there is room for needs no search.
        assert not shelf.save_span(shelf.run(2, "zz").node)
        assert shelf.save_span(shelf.run(3, "e").node)
        assert searches == [2, 1]
        shelf.now += 1
        assert not shelf.save_span(shelf.run(4, "ttt").node)
    assert searches == [2, 1, 3]


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


# What a request tells


def test_what_stands_behind_message_ends_is_noted_on_known_nodes_too():
    shelf = Shelf()
    shelf.cache.insert(tokens("abcdef"), ())
    shelf.cache.insert(tokens("abcdefgh"), {2: "head", 4: "user"})
    assert {prefix(node): node.kind for node in shelf.cache.tree.nodes()} == {
        "ab": "head",
        "abcd": "user",
        "abcdef": "other",
        "abcdefgh": "other",
    }
    shelf.cache.insert(tokens("abcX"), {2: "head", 3: "tool"})
    assert [node.kind for node in shelf.nodes(["abc", "abcd", "abcX"])] == ["tool", "user", "other"]


@pytest.mark.parametrize(
    ("asked", "depth"),
    [
        ("abcdefghX", 0),
        ("abcdefgh", 0),
        ("abcdefX", 1),
        ("abcdefgX", 1),
        ("abcdX", 2),
        ("abX", 3),
        ("aX", 4),
    ],
)
def test_how_far_back_a_conversation_is_gone_on_from_is_observed(asked: str, depth: int):
    shelf = Shelf()
    depths = RecordedDepths()
    shelf.cache.policy.depths = depths
    shelf.cache.insert(tokens("abcdefgh"), (2, 4, 6))
    shelf.cache.look_up(tokens(asked))
    assert depths.observed == [depth]


def test_the_tip_that_was_used_last_is_the_one_that_was_left():
    shelf = Shelf()
    depths = RecordedDepths()
    shelf.cache.policy.depths = depths
    shelf.cache.insert(tokens("abcdefgh"), (2, 4, 6))
    shelf.now = 1
    shelf.cache.insert(tokens("abcX"), ())
    shelf.cache.look_up(tokens("abcY"))
    shelf.cache.touch(shelf.node("abcdefgh"))
    shelf.now = 2
    shelf.cache.touch(shelf.node("abcdefgh"))
    shelf.cache.look_up(tokens("abcY"))
    assert depths.observed == [1, 3]


@pytest.mark.parametrize("asked", ["", "X", "Xabcdefgh", "abXYZabc"])
def test_a_conversation_of_its_own_edits_none(asked: str):
    shelf = Shelf()
    depths = RecordedDepths()
    shelf.cache.policy.depths = depths
    shelf.cache.insert(tokens("abcdefgh"), (2, 4, 6))
    shelf.cache.look_up(tokens(asked))
    assert depths.observed == []


class RecordedDepths(EditDepths):
    def __init__(self) -> None:
        super().__init__()
        self.observed: list[int] = []

    def observe(self, depth: int) -> None:
        self.observed.append(depth)


# Room for checkpoints


def test_how_many_checkpoints_fit_is_known_from_the_first_one_on():
    shelf = Shelf(HYBRID, ram_bytes=40)
    node = shelf.cache.insert(tokens("abcd"), (2,))
    assert shelf.cache.num_checkpoints_that_fit is None
    assert shelf.save_span(node)
    assert shelf.cache.num_checkpoints_that_fit is None
    assert shelf.save_checkpoint(node, 4)
    assert shelf.cache.num_checkpoints_that_fit == 10
    # A few compete with others for room in any case.
    assert shelf.save_checkpoint(node, 30)
    assert shelf.cache.num_checkpoints_that_fit == 4


def test_a_part_of_the_disk_counts_as_room_for_checkpoints(tmp_path: Path):
    shelf = Shelf(HYBRID, ram_bytes=40, folder=tmp_path, disk_bytes=4000)
    assert shelf.save_checkpoint(shelf.cache.insert(tokens("abcd"), ()), 4)
    assert shelf.cache.num_checkpoints_that_fit == (40 + 1000) // 4


# Quarantine


def quarantined(shelf: Shelf, prompt: str) -> list[Branch]:
    branches = shelf.cache.quarantine(shelf.node(prompt), 1.0, 0.1)
    shelf.cache.check()
    return branches


@ALL_KINDS
def test_quarantined_state_is_dropped_with_all_that_stands_on_it(traits: MemoryTraits):
    shelf = Shelf(traits)
    for prompt in ("ab", "abcd", "abcdef", "abcdXY", "abQ"):
        node = shelf.saved(prompt, cuts=(2, 4))
        if traits.has_checkpoints:
            assert shelf.save_checkpoint(node)
    assert quarantined(shelf, "abcd") == []
    kinds = [kind for kind, has in (("checkpoint", traits.has_checkpoints), ("span", traits.has_spans)) if has]
    assert shelf.kept() == sorted(f"{prompt} {kind}" for prompt in ("ab", "abQ") for kind in kinds)
    assert shelf.cache.num_quarantined_nodes == 3


@ALL_KINDS
def test_quarantined_state_is_never_planned_forked_waited_for_or_saved_again(traits: MemoryTraits):
    shelf = Shelf(traits)
    below = shelf.parked(0, "abcdef", cuts=(2, 4))
    tip = shelf.parked(1, "ab")
    runs = shelf.start(2, "abcdefghijkl", length=6)
    assert set(quarantined(shelf, "abcd")) == {below}
    for prompt in ("abcdefX", "abcdX", "abcd", "abcdefghijklm"):
        plan = shelf.plan(prompt)
        assert (plan.resume, plan.wait) == (2, None)
        assert plan.fork == Fork(tip if traits.has_checkpoints else below, 2)
        node = shelf.cache.insert(tokens(prompt), ())
        assert shelf.cache.plan_to(node) == shelf.plan(prompt)
    for branch in (below, runs):
        assert shelf.cache.unsaved(branch) == []
    for node in shelf.nodes(["abcd", "abcdef", "abcdefX"]):
        assert not (shelf.save_span(node) if traits.has_spans else shelf.save_checkpoint(node))
    assert shelf.kept() == []
    # In front of it, all is as it was.
    node = shelf.node("ab")
    assert shelf.save_span(node) if traits.has_spans else shelf.save_checkpoint(node)


def test_a_blob_that_reaches_into_what_is_quarantined_goes_whole():
    shelf = Shelf()
    shelf.saved("abcdef")
    shelf.cache.insert(tokens("abcd"), ())
    quarantined(shelf, "abcdef")
    assert shelf.kept() == []
    branch = shelf.run(0, "abcd")
    assert shelf.save_span(branch.node)
    assert shelf.plan("abcdef").resume == 4


def test_a_running_branch_is_not_closed_for_a_quarantine_but_nobody_forks_it():
    shelf = Shelf()
    branch = shelf.run(0, "abcd")
    assert quarantined(shelf, "abcd") == []
    assert shelf.plan("abcde").resume == 0
    shelf.park(branch)
    assert shelf.plan("abcde").resume == 0
