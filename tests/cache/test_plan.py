from __future__ import annotations

from pathlib import Path

import pytest
from tests.cache.shelf import Shelf, tokens

from kvstet.cache.plan import Fork, Load, Plan, Wait, plan
from kvstet.cache.rates import Rates
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits

WITH_SPANS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID], ids=lambda t: t.kind)
WITH_CHECKPOINTS = pytest.mark.parametrize("traits", [SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
BOTH = pytest.mark.parametrize("traits", [SWA, HYBRID], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)
ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


def planned(shelf: Shelf, prompt: str, resume: int, **parts: object) -> None:
    """The whole plan is the expected one."""
    match = shelf.cache.tree.match(tokens(prompt))
    assert shelf.plan(prompt) == Plan(match, resume, **parts)


# Any memory


@ALL_KINDS
def test_nothing_is_known_of_the_first_prompt(traits: MemoryTraits):
    planned(Shelf(traits), "abcd", 0)


@ALL_KINDS
def test_what_was_only_seen_must_be_computed(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.cache.insert(tokens("abcd"), (2,))
    planned(shelf, "abcdef", 0)


@ALL_KINDS
def test_an_append_forks_the_parked_tip(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcd")
    planned(shelf, "abcdef", 4, fork=Fork(branch, 4))


@ALL_KINDS
def test_the_deepest_live_branch_is_forked(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.parked(0, "ab")
    deep = shelf.start(1, "abcd", length=4)
    shelf.park(deep)
    shelf.parked(2, "abX")
    planned(shelf, "abcdef", 4, fork=Fork(deep, 4))


@ALL_KINDS
def test_the_last_token_is_always_computed(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abc")
    shelf.park(shelf.run(1, "abcd"))
    planned(shelf, "abcd", 3, fork=Fork(branch, 3))


@ALL_KINDS
def test_a_prompt_of_one_token_is_computed(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.parked(0, "a")
    planned(shelf, "a", 0)


@ALL_KINDS
def test_the_tip_of_a_branch_that_generates_is_its_own(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.run(0, "abcd")
    branch.length = 6
    # What it generated is in no node yet: only attention can fork it at the prompt's end.
    if traits.has_checkpoints:
        planned(shelf, "abcdef", 0)
    else:
        planned(shelf, "abcdef", 4, fork=Fork(branch, 4))


# Attention


def test_attention_forks_a_branch_in_the_middle_of_a_node():
    shelf = Shelf()
    branch = shelf.parked(0, "abcdef")
    planned(shelf, "abcX", 3, fork=Fork(branch, 3))


def test_a_parked_branch_is_forked_before_a_running_one_and_the_lowest_sequence_first():
    shelf = Shelf()
    shelf.run(0, "abcX")
    shelf.run(1, "abcY")
    parked = [shelf.parked(seq, f"abc{seq}") for seq in (4, 3)]
    planned(shelf, "abcd", 3, fork=Fork(parked[1], 3))


def test_attention_loads_what_is_not_live():
    shelf = Shelf()
    node = shelf.saved("abcdef", cuts=(2,))
    first, second = shelf.node("ab").span, node.span
    assert first and second
    planned(shelf, "abcdefgh", 6, loads=(Load(first, 0, 2), Load(second, 2, 6)))
    planned(shelf, "abcdX", 4, loads=(Load(first, 0, 2), Load(second, 2, 4)))


def test_loads_of_a_split_blob_are_one():
    shelf = Shelf()
    blob = shelf.saved("abcdef").span
    assert blob
    shelf.cache.insert(tokens("abX"), ())
    shelf.cache.insert(tokens("abcdY"), ())
    planned(shelf, "abcdefgh", 6, loads=(Load(blob, 0, 6),))
    planned(shelf, "abcdY", 4, loads=(Load(blob, 0, 4),))


def test_a_fork_goes_on_with_a_part_of_a_blob():
    shelf = Shelf()
    blob = shelf.saved("abcdef").span
    assert blob
    branch = shelf.parked(0, "abX")
    planned(shelf, "abcdefgh", 6, fork=Fork(branch, 2), loads=(Load(blob, 2, 6),))


def test_a_fork_within_a_node_goes_on_with_the_rest_of_its_blob():
    shelf = Shelf()
    blob = shelf.saved("abcdef").span
    assert blob
    branch = shelf.start(0, "abcdef", length=3)
    branch.length = 3
    planned(shelf, "abcdefgh", 6, fork=Fork(branch, 3), loads=(Load(blob, 3, 6),))


def test_loads_end_at_a_gap():
    shelf = Shelf()
    shelf.saved("abcdef", cuts=(2, 4))
    gap, first = shelf.node("abcd").span, shelf.node("ab").span
    assert gap and first
    shelf.cache.forget(gap)
    shelf.cache.check()
    planned(shelf, "abcdef", 2, loads=(Load(first, 0, 2),))


def test_a_live_branch_bridges_the_gap():
    shelf = Shelf()
    shelf.saved("abcdef", cuts=(2, 4))
    gap, last = shelf.node("abcd").span, shelf.node("abcdef").span
    assert gap and last
    shelf.cache.forget(gap)
    branch = shelf.parked(0, "abcdX")
    planned(shelf, "abcdefgh", 6, fork=Fork(branch, 4), loads=(Load(last, 4, 6),))


# Checkpoints beside spans


@BOTH
def test_spans_alone_bring_nothing_back(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdef")
    planned(shelf, "abcdefgh", 0)


@BOTH
def test_a_checkpoint_alone_brings_nothing_back(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.cache.insert(tokens("abcdef"), ())
    assert shelf.save_checkpoint(node)
    planned(shelf, "abcdefgh", 0)


@BOTH
def test_the_spans_are_loaded_up_to_the_deepest_checkpoint(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdef", cuts=(2, 4))
    first, second, _ = (node.span for node in shelf.nodes(["ab", "abcd", "abcdef"]))
    for node in shelf.nodes(["ab", "abcd"]):
        assert shelf.save_checkpoint(node)
    assert first and second
    planned(
        shelf,
        "abcdefgh",
        4,
        loads=(Load(first, 0, 2), Load(second, 2, 4)),
        checkpoint=shelf.node("abcd").checkpoint,
    )
    planned(shelf, "abcd", 2, loads=(Load(first, 0, 2),), checkpoint=shelf.node("ab").checkpoint)


@BOTH
def test_a_checkpoint_behind_a_gap_is_out_of_reach(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.saved("abcdef", cuts=(2, 4))
    first, gap, _ = (node.span for node in shelf.nodes(["ab", "abcd", "abcdef"]))
    for node in shelf.nodes(["ab", "abcdef"]):
        assert shelf.save_checkpoint(node)
    assert first and gap
    shelf.cache.forget(gap)
    planned(shelf, "abcdefgh", 2, loads=(Load(first, 0, 2),), checkpoint=shelf.node("ab").checkpoint)


@BOTH
def test_a_live_branch_lends_its_tokens_to_a_checkpoint_that_it_has_passed(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcdef", cuts=(4,))
    assert shelf.save_checkpoint(shelf.node("abcd"))
    planned(shelf, "abcdX", 4, fork=Fork(branch, 4), checkpoint=shelf.node("abcd").checkpoint)


@BOTH
def test_a_branch_and_a_blob_together_reach_the_checkpoint(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcdef", cuts=(2,))
    assert shelf.save_checkpoint(node) and node.span
    branch = shelf.parked(0, "abX")
    planned(
        shelf,
        "abcdefgh",
        6,
        fork=Fork(branch, 2),
        loads=(Load(node.span, 2, 6),),
        checkpoint=node.checkpoint,
    )


# Checkpoints alone


@WITHOUT_SPANS
def test_a_checkpoint_is_all_that_is_needed(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.parked(0, "abX")
    node = shelf.saved("abcdef")
    planned(shelf, "abcdefgh", 6, checkpoint=node.checkpoint)
    planned(shelf, "abcdX", 0)


# Tip or checkpoint


@WITH_CHECKPOINTS
def test_a_tip_is_better_than_a_checkpoint_at_the_same_place(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcd")
    assert shelf.save_checkpoint(branch.node)
    planned(shelf, "abcdef", 4, fork=Fork(branch, 4))


@WITH_CHECKPOINTS
def test_a_deeper_checkpoint_is_better_than_a_tip(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "ab")
    node = shelf.saved("abcdef")
    assert shelf.save_checkpoint(node)
    made = shelf.plan("abcdefgh")
    assert (made.resume, made.checkpoint) == (6, node.checkpoint)
    if traits.has_spans:
        assert made.fork == Fork(branch, 2) and [load.stop for load in made.loads] == [6]


@WITH_CHECKPOINTS
def test_a_deeper_tip_is_better_than_a_checkpoint(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcd", cuts=(2,))
    assert shelf.save_checkpoint(shelf.node("ab"))
    planned(shelf, "abcdX", 4, fork=Fork(branch, 4))


@WITH_CHECKPOINTS
def test_a_parked_tip_is_taken_before_a_running_one_and_the_lowest_sequence_first(traits: MemoryTraits):
    shelf = Shelf(traits)
    branches = [shelf.run(seq, "abcd") for seq in (5, 3, 4, 1)]
    for branch in branches[:3]:
        shelf.park(branch)
    planned(shelf, "abcdef", 4, fork=Fork(branches[1], 4))


@WITH_CHECKPOINTS
def test_a_tip_within_a_node_can_be_forked(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef", length=3)
    # The rest of its node is worth waiting for.
    planned(
        shelf,
        "abcdefgh",
        3,
        fork=Fork(branch, 3),
        wait=Wait(branch, 6),
    )
    planned(shelf, "abcX", 3, fork=Fork(branch, 3))
    planned(shelf, "abX", 0)


@WITH_CHECKPOINTS
def test_a_branch_that_went_on_has_no_tip_here(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.parked(0, "abcdef", cuts=(4,))
    planned(shelf, "abcdX", 0)


# Waiting


def test_attention_waits_for_the_tokens_that_a_running_branch_will_bring():
    shelf = Shelf()
    branch = shelf.start(0, "abcdef", length=1)
    planned(shelf, "abcdefgh", 1, fork=Fork(branch, 1), wait=Wait(branch, 6))
    planned(shelf, "abcdX", 1, fork=Fork(branch, 1), wait=Wait(branch, 4))
    planned(shelf, "abcdef", 1, fork=Fork(branch, 1), wait=Wait(branch, 5))
    planned(shelf, "abX", 1, fork=Fork(branch, 1), wait=Wait(branch, 2))
    planned(shelf, "aX", 1, fork=Fork(branch, 1))


def test_nobody_waits_for_what_is_live_or_saved_already():
    shelf = Shelf()
    node = shelf.saved("abcdef")
    runs = shelf.start(0, "abcdef")
    runs.length = 2
    assert node.span
    planned(shelf, "abcdefgh", 6, fork=Fork(runs, 2), loads=(Load(node.span, 2, 6),))
    other = shelf.start(1, "abcdeX", length=3)
    shelf.park(other)
    shelf.cache.forget(node.span)
    planned(shelf, "abcX", 3, fork=Fork(other, 3))


def test_nobody_waits_for_a_branch_that_is_parked_or_generates():
    shelf = Shelf()
    branch = shelf.start(0, "abcdef", length=2)
    shelf.park(branch)
    shelf.cache.insert(tokens("abcdef"), ())
    planned(shelf, "abcdef", 2, fork=Fork(branch, 2))
    generates = shelf.run(1, "abcd")
    assert not generates.is_computing_prompt
    planned(shelf, "abcdef", 4, fork=Fork(generates, 4))


def test_the_branch_that_has_come_farthest_is_waited_for():
    shelf = Shelf()
    shelf.start(0, "abcdeX").length = 0
    fast = shelf.start(1, "abcdeY")
    fast.length = 3
    assert shelf.plan("abcdeZ").wait == Wait(fast, 5)
    shelf.start(2, "abcdeW").length = 3
    assert shelf.plan("abcdeZ").wait == Wait(fast, 5)


@WITH_CHECKPOINTS
def test_checkpoints_come_at_node_ends_so_that_is_where_one_waits_for_them(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef", cuts=(2, 4), length=1)
    planned(shelf, "abcdefgh", 1, fork=Fork(branch, 1), wait=Wait(branch, 6))
    planned(shelf, "abcdeX", 1, fork=Fork(branch, 1), wait=Wait(branch, 4))
    planned(shelf, "abcd", 1, fork=Fork(branch, 1), wait=Wait(branch, 2))
    planned(shelf, "abX", 1, fork=Fork(branch, 1), wait=Wait(branch, 2))
    planned(shelf, "aX", 1, fork=Fork(branch, 1))


@WITH_CHECKPOINTS
def test_a_node_end_that_was_passed_is_not_waited_for(traits: MemoryTraits):
    shelf = Shelf(traits)
    shelf.start(0, "abcdef", cuts=(2,), length=3)
    planned(shelf, "abX", 0)


@ALL_KINDS
def test_waiting_is_over_when_the_branch_is_there_or_stops(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef", cuts=(4,), length=1)
    wait = shelf.plan("abcdX").wait
    assert wait == Wait(branch, 4) and not wait.is_over
    branch.length = 4
    assert wait.is_over
    branch.length = 3
    shelf.park(branch)
    assert wait.is_over


@ALL_KINDS
def test_waiting_is_over_when_the_branch_is_closed(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.start(0, "abcdef")
    wait = shelf.plan("abcdefgh").wait
    assert wait == Wait(branch, 6)
    shelf.cache.close(branch)
    assert wait.is_over


# Reports


@WITH_SPANS
def test_reused_and_loaded_tokens_add_up_to_what_is_resumed(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcdef", cuts=(2,))
    if traits.has_checkpoints:
        assert shelf.save_checkpoint(node)
    shelf.parked(0, "abX")
    made = shelf.plan("abcdefgh")
    assert (made.num_reused_tokens, made.num_loaded_tokens, made.resume) == (2, 4, 6)


# What takes longer to load than to compute


def rated(shelf: Shelf, prompt: str, **rates: float) -> Plan:
    """The plan with a second per token, and these rates of loading."""
    match = shelf.cache.tree.match(tokens(prompt))
    return plan(match, len(prompt), shelf.cache.traits, Rates(1.0, 0.0, **rates))


def test_attention_loads_as_long_as_loading_is_faster_than_computing():
    shelf = Shelf()
    # Two tokens each, in two, ten, two and forty bytes.
    node = shelf.cache.insert(tokens("abcdefgh"), (2, 4, 6))
    for step, num_bytes in zip(reversed([*node.path()]), (2, 10, 2, 40), strict=True):
        assert shelf.save_span(step, num_bytes)
    for bytes_per_second, resume in ((100.0, 8), (21.0, 8), (19.0, 6), (3.1, 6), (2.9, 2), (1.1, 2), (0.9, 0)):
        made = rated(shelf, "abcdefghi", ram_bytes_per_second=bytes_per_second)
        assert (made.resume, made.num_loaded_tokens) == (resume, resume), bytes_per_second
        assert [load.stop for load in made.loads] == [stop for stop in (2, 4, 6, 8) if stop <= resume]


def test_a_load_that_is_dear_is_made_where_it_leads_to_cheap_ones():
    shelf = Shelf()
    node = shelf.cache.insert(tokens("abcdefgh"), (2, 4))
    for step, num_bytes in zip(reversed([*node.path()]), (30, 30, 1), strict=True):
        assert shelf.save_span(step, num_bytes)
    # Alone, two tokens are not worth three seconds each, nor are all eight worth six.
    assert rated(shelf, "abcdefghi", ram_bytes_per_second=10.0).resume == 8
    assert rated(shelf, "abcdefghi", ram_bytes_per_second=7.0).resume == 0
    # A live branch spares the dear ones.
    branch = shelf.parked(0, "abcdX")
    made = rated(shelf, "abcdefghi", ram_bytes_per_second=1.0)
    assert (made.resume, made.fork, len(made.loads)) == (8, Fork(branch, 4), 1)


def test_of_a_blob_only_the_part_that_is_loaded_is_paid_for():
    shelf = Shelf()
    node = shelf.cache.insert(tokens("abcdefgh"), ())
    assert shelf.save_span(node, 80)
    shelf.parked(0, "abcdef")
    for asked in ("abcdefghi", "abcX"):
        assert rated(shelf, asked, ram_bytes_per_second=11.0).num_loaded_tokens == (2 if asked == "abcdefghi" else 0)
    assert rated(shelf, "abcdefghi", ram_bytes_per_second=9.0).resume == 6


def test_a_blob_on_disk_takes_the_disks_time(tmp_path: Path):
    shelf = Shelf(folder=tmp_path)
    blob = shelf.saved("abcd").span
    assert blob
    rates = {"ram_bytes_per_second": 100.0, "disk_bytes_per_second": 0.5}
    assert rated(shelf, "abcde", **rates).resume == 4
    # As if it had been written, and left RAM.
    blob.in_ram, blob.disk_bytes = False, 200
    assert rated(shelf, "abcde", **rates).resume == 0
    assert rated(shelf, "abcde", ram_bytes_per_second=0.5, disk_bytes_per_second=100.0).resume == 4


@BOTH
def test_spans_and_checkpoint_are_loaded_both_or_none(traits: MemoryTraits):
    shelf = Shelf(traits)
    node = shelf.saved("abcdefgh", cuts=(4,))
    assert shelf.save_checkpoint(node, 8)
    # Eight bytes of spans and eight of summary, for eight tokens.
    assert rated(shelf, "abcdefghi", ram_bytes_per_second=2.1).resume == 8
    made = rated(shelf, "abcdefghi", ram_bytes_per_second=1.9)
    assert (made.resume, made.loads, made.checkpoint) == (0, (), None)


@WITH_CHECKPOINTS
def test_instead_of_what_is_dear_to_load_the_deepest_tip_is_forked(traits: MemoryTraits):
    shelf = Shelf(traits)
    for seq, length in ((3, 2), (4, 3), (1, 3), (2, 3), (5, 1)):
        shelf.start(seq, "abcX", length=length)
    parked = shelf.start(0, "abc", length=3)
    shelf.park(parked)
    node = shelf.cache.insert(tokens("abcdefgh"), ())
    assert shelf.save_checkpoint(node, 80)
    if traits.has_spans:
        assert shelf.save_span(node)
    # Its eighty bytes are worth five tokens, and a few more for what stands in front of them.
    assert rated(shelf, "abcdefghi", ram_bytes_per_second=100.0).checkpoint is node.checkpoint
    made = rated(shelf, "abcdefghi", ram_bytes_per_second=10.0)
    assert (made.resume, made.fork, made.loads, made.checkpoint) == (3, Fork(parked, 3), (), None)


@ALL_KINDS
def test_what_is_live_is_never_dear(traits: MemoryTraits):
    shelf = Shelf(traits)
    branch = shelf.parked(0, "abcd")
    made = rated(shelf, "abcdef", ram_bytes_per_second=1e-9)
    assert (made.resume, made.fork) == (4, Fork(branch, 4))


def test_who_would_not_load_waits_for_who_computes():
    shelf = Shelf()
    shelf.saved("abcdef")
    runs = shelf.start(0, "abcdef")
    runs.length = 1
    assert rated(shelf, "abcdefgh", ram_bytes_per_second=100.0).wait is None
    made = rated(shelf, "abcdefgh", ram_bytes_per_second=0.1)
    assert (made.resume, made.wait) == (1, Wait(runs, 6))
