"""What of the tree is on disk, and how it is found again: on a real cache folder."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.cache.shelf import FLAT, NOW, OTHER_MODEL, QUICK, Shelf, memory_folder, outline, prefix, tokens

from kvstet.cache.archive import HEADER_BYTES
from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.tier import PAUSE_SECONDS
from kvstet.cache.policy import IDLE_SECONDS, Piece
from kvstet.cache.tree import Stored
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.types import MemoryTraits

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)
BOTH = pytest.mark.parametrize("traits", [SWA, HYBRID], ids=lambda t: t.kind)
WITHOUT_SPANS = pytest.mark.parametrize("traits", [RECURRENT, OPAQUE], ids=lambda t: t.kind)

Opener = Callable[..., Shelf]

FILE_BYTES = 117
"""A span's file has so many bytes besides tokens and state."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


@pytest.fixture
def opened(folder: Path) -> Iterator[Opener]:
    """Opens a cache over the folder; as often as one likes, also beside one that is open."""
    shelves: list[Shelf] = []

    def open_shelf(traits: MemoryTraits = ATTENTION, **options) -> Shelf:
        shelves.append(Shelf(traits, **{"folder": folder, "rates": QUICK, **options}))
        shelves[-1].cache.check()
        return shelves[-1]

    yield open_shelf
    for shelf in shelves:
        shelf.archive.disk.close()
        shelf.store.close()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("v1/*/*/*") if path.is_file())


def num_file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def give_up_ram(shelf: Shelf) -> None:
    """Evict all that RAM has."""
    for piece in shelf.victims("ram", 1_000_000):
        shelf.cache.evict(piece)
    shelf.cache.check()
    assert shelf.kept("ram") == []


def span(shelf: Shelf, prompt: str) -> Stored:
    stored = shelf.node(prompt).span
    assert stored is not None
    return stored


def checkpoint(shelf: Shelf, prompt: str) -> Stored:
    stored = shelf.node(prompt).checkpoint
    assert stored is not None
    return stored


def saved_whole(shelf: Shelf, prompt: str, *, cuts: tuple[int, ...] = (), at: float | None = None) -> None:
    """All that the kind of memory can have of a prompt's end."""
    node = shelf.saved(prompt, cuts=cuts, at=at)
    if shelf.cache.traits.has_checkpoints:
        assert shelf.save_checkpoint(node)


# Writing


def test_what_is_in_ram_is_written_behind_and_stays_there(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    assert files(folder) == []
    assert shelf.write() == ["ab span", "abcd span"]
    assert shelf.kept("ram") == shelf.kept("disk") == shelf.kept()
    assert len(files(folder)) == 2
    assert not shelf.cache.write_step()
    assert shelf.archive.num_unwritten_blobs == 0


def test_one_blob_at_a_time_is_handed_to_the_writer(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    assert shelf.cache.write_step()
    assert shelf.cache.is_writing
    shelf.archive.disk.wait()
    assert shelf.on_disk() == []
    # It is noted with the next step, which begins with the next one.
    assert shelf.cache.write_step()
    assert shelf.on_disk() == ["ab span"]
    shelf.archive.disk.wait()
    assert not shelf.cache.write_step()
    assert not shelf.cache.is_writing
    assert shelf.on_disk() == ["ab span", "abcd span"]


def test_parents_are_written_first(opened: Opener):
    shelf = opened()
    node = shelf.cache.insert(tokens("abcdef"), (2, 4))
    for step in node.path():
        assert shelf.save_span(step)
    assert shelf.write() == ["ab span", "abcd span", "abcdef span"]


def test_what_stands_behind_a_gap_waits_for_it(opened: Opener):
    shelf = opened()
    branch = shelf.parked(0, "abcdef", cuts=(2, 4))
    first, middle, last = shelf.cache.unsaved(branch)
    assert shelf.save_span(first) and shelf.save_span(last)
    assert shelf.write() == ["ab span"]
    assert shelf.save_span(middle)
    assert shelf.write() == ["abcd span", "abcdef span"]


@BOTH
def test_a_checkpoint_waits_for_the_spans_in_front_of_it(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    branch = shelf.parked(0, "abcd", cuts=(2,))
    assert shelf.save_checkpoint(branch.node)
    assert shelf.write() == []
    for node in shelf.cache.unsaved(branch):
        assert shelf.save_span(node)
    assert shelf.write() == ["ab span", "abcd span", "abcd checkpoint"]


@WITHOUT_SPANS
def test_a_memory_without_spans_has_records_of_the_path_instead(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    node = shelf.cache.insert(tokens("abcdef"), (2, 4))
    assert shelf.save_checkpoint(node)
    shelf.write()
    assert shelf.on_disk() == ["ab span", "abcd span", "abcdef checkpoint", "abcdef span"]
    for prompt in ("ab", "abcd", "abcdef"):
        header = blobfile.read_header(shelf.path(prompt))
        assert header.num_payload_bytes == 0
        assert header.record.tokens == tokens(prompt[-2:]).tobytes()
    header = blobfile.read_header(shelf.path("abcdef", "checkpoint"))
    assert (header.num_payload_bytes, header.record.tokens) == (4, b"")
    assert shelf.kept("ram") == ["abcdef checkpoint"]


@ALL_KINDS
def test_only_what_is_new_is_written(traits: MemoryTraits, opened: Opener, folder: Path):
    shelf = opened(traits)
    saved_whole(shelf, "abcdefgh", cuts=(4,))
    shelf.write()
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    saved_whole(shelf, "abcdefghij")
    written = shelf.write()
    assert {name.split()[0] for name in written} == {"abcdefghij"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    record = blobfile.read_header(shelf.path("abcdefghij")).record
    assert record.tokens == tokens("ij").tobytes()


def test_a_record_says_what_the_state_is_of_and_what_it_is_worth(opened: Opener):
    shelf = opened()
    shelf.saved("abcdef", cuts=(4,), at=100)
    for _ in range(3):
        shelf.cache.touch(shelf.node("abcdef"))
    shelf.now = 400
    shelf.write()
    path, upper = shelf.path("abcdef"), shelf.node("abcd")
    assert blobfile.read_header(path).record == Record(
        span(shelf, "abcdef").key,
        parent=upper.id,
        origin=4,
        stop=6,
        tokens=tokens("ef").tobytes(),
        seconds=2.0,
        num_hits=shelf.node("abcdef").num_hits,
        last_used=pytest.approx(NOW + 100),
        num_bytes=path.stat().st_size,
    )


def test_a_blob_whose_nodes_were_cut_meanwhile_is_written_whole(opened: Opener):
    shelf = opened()
    shelf.saved("abcdef")
    assert shelf.cache.write_step()
    shelf.cache.insert(tokens("abX"), ())
    shelf.archive.disk.wait()
    assert not shelf.cache.write_step()
    assert shelf.on_disk() == ["ab span", "abcdef span"]
    shelf.saved("abY")
    shelf.cache.insert(tokens("abcQ"), ())
    assert shelf.write() == ["abY span"]
    assert blobfile.read_header(shelf.path("abY")).record.parent == shelf.node("ab").id


def test_what_loads_slower_than_it_computes_is_not_written(opened: Opener):
    shelf = opened(rates=FLAT)
    branch = shelf.parked(0, "abcd", cuts=(2,))
    first, second = shelf.cache.unsaved(branch)
    assert shelf.save_span(first, 2) and shelf.save_span(second, 30)
    assert shelf.write() == ["ab span"]
    give_up_ram(shelf)
    assert shelf.kept() == ["ab span"]


def test_a_blob_that_goes_while_it_is_written_does_not_come_back(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("abcd")
    assert shelf.cache.write_step()
    shelf.cache.forget(span(shelf, "abcd"))
    shelf.cache.check()
    assert not shelf.write()
    assert shelf.kept() == [] and files(folder) == []
    shelf.saved("abcd")
    assert shelf.write() == ["abcd span"]


def test_a_blob_that_is_saved_anew_while_it_is_written_ends_on_disk(opened: Opener):
    shelf = opened(RECURRENT)
    node = shelf.saved("abcd")
    shelf.write()
    assert shelf.save_checkpoint(node, 7)
    assert shelf.cache.write_step()
    assert shelf.save_checkpoint(node, 9)
    shelf.write()
    give_up_ram(shelf)
    blob = shelf.cache.fetch(checkpoint(shelf, "abcd"))
    assert blob is not None and blob.num_bytes == 9


def failing(monkeypatch: pytest.MonkeyPatch, code: int) -> list[int]:
    """Every write fails; how many were tried is the length of the answer."""
    tried: list[int] = []

    def fail(*args: object) -> int:
        tried.append(code)
        raise OSError(code, "it is broken")

    monkeypatch.setattr(blobfile, "write", fail)
    return tried


@ALL_KINDS
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_is_made_up_for_later(
    traits: MemoryTraits, code: int, opened: Opener, monkeypatch: pytest.MonkeyPatch
):
    shelf = opened(traits)
    saved_whole(shelf, "abcd", cuts=(2,))
    known = shelf.kept()
    with monkeypatch.context() as patch:
        tried = failing(patch, code)
        assert shelf.write() == []
        assert (len(tried), shelf.kept()) == (1, known)
        # Nor does anything hang when RAM must let go.
        give_up_ram(shelf)
        assert (len(tried), shelf.kept()) == (1, [])
    saved_whole(shelf, "abcd", cuts=(2,))
    assert shelf.write() == []
    shelf.now += PAUSE_SECONDS
    shelf.write()
    assert set(known) <= set(shelf.on_disk())


@ALL_KINDS
def test_what_failed_while_it_was_in_ram_is_written_when_the_disk_works_again(
    traits: MemoryTraits, opened: Opener, monkeypatch: pytest.MonkeyPatch
):
    shelf = opened(traits)
    saved_whole(shelf, "abcdef", cuts=(2, 4))
    known = shelf.kept()
    with monkeypatch.context() as patch:
        failing(patch, errno.ENOSPC)
        assert shelf.write() == []
    shelf.now += PAUSE_SECONDS
    shelf.write()
    assert set(known) <= set(shelf.on_disk())


@ALL_KINDS
def test_without_a_write_budget_all_stays_in_ram(traits: MemoryTraits, opened: Opener, folder: Path):
    shelf = opened(traits)
    shelf.archive.disk._write_bytes_per_hour = 0
    saved_whole(shelf, "abcd", cuts=(2,))
    known = shelf.kept()
    assert shelf.write() == []
    assert (shelf.kept(), files(folder)) == (known, [])


def test_the_write_budget_is_spent_on_what_comes_first_and_refilled(opened: Opener):
    shelf = opened()
    shelf.archive.disk._write_bytes_per_hour = 2 * (FILE_BYTES + 10) + HEADER_BYTES
    shelf.saved("abcdef", cuts=(2, 4))
    assert shelf.write() == ["ab span", "abcd span"]
    shelf.now += 3700
    assert shelf.write() == ["abcdef span"]


# RAM lets go


def test_what_ram_lets_go_is_written_first_with_all_that_leads_there(opened: Opener):
    shelf = opened()
    shelf.saved("abcdef", cuts=(2, 4))
    last = span(shelf, "abcdef")
    shelf.cache.evict(Piece(last, "ram", 0.0))
    shelf.cache.check()
    assert (shelf.kept("ram"), shelf.kept("disk")) == (
        ["ab span", "abcd span"],
        ["ab span", "abcd span", "abcdef span"],
    )
    assert shelf.plan("abcdefg").resume == 6


@WITHOUT_SPANS
def test_a_checkpoint_that_ram_lets_go_is_written_first_with_its_path(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    shelf.saved("abcdef", cuts=(2, 4))
    give_up_ram(shelf)
    assert shelf.on_disk() == ["ab span", "abcd span", "abcdef checkpoint", "abcdef span"]


def test_what_is_on_disk_goes_from_ram_first(opened: Opener):
    shelf = opened(ram_bytes=9)
    shelf.saved("aaa", at=0)
    shelf.saved("bbb", at=1000)
    shelf.write()
    shelf.saved("ccc", at=1000)
    # It is worth computing, and the others only loading.
    assert shelf.order() == ["aaa span", "bbb span", "ccc span"]
    shelf.saved("ddd", at=2000)
    assert (shelf.kept("ram"), shelf.on_disk()) == (["bbb span", "ccc span", "ddd span"], ["aaa span", "bbb span"])
    shelf.saved("eee", at=2000)
    assert (shelf.kept("ram"), shelf.on_disk()) == (["ccc span", "ddd span", "eee span"], ["aaa span", "bbb span"])
    shelf.saved("fff", at=2000)
    # Now one had to go that was not written yet.
    assert shelf.kept("ram") == ["ddd span", "eee span", "fff span"]
    assert shelf.on_disk() == ["aaa span", "bbb span", "ccc span"]
    assert len(shelf.kept()) == 6


@ALL_KINDS
def test_without_any_ram_state_goes_straight_to_disk(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits, ram_bytes=0)
    saved_whole(shelf, "abcdef", cuts=(2, 4))
    assert shelf.kept("ram") == []
    assert shelf.plan("abcdefg").resume == 6
    blob = shelf.cache.fetch(shelf.node("abcdef").checkpoint or span(shelf, "abcdef"))
    assert blob is not None
    assert shelf.kept("ram") == []


def test_what_no_tier_has_room_for_is_not_kept(opened: Opener):
    shelf = opened(ram_bytes=0, disk_bytes=300)
    branch = shelf.parked(0, "abcd" * 100)
    assert not shelf.save_span(branch.node)
    assert shelf.kept() == []


def test_while_the_disk_is_at_work_ram_waits_for_it(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    assert shelf.cache.write_step()
    give_up_ram(shelf)
    assert shelf.on_disk() == ["ab span", "abcd span"]


# Bringing back


@ALL_KINDS
def test_what_left_ram_comes_back_from_disk_and_is_in_ram_again(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    saved_whole(shelf, "abcdef", cuts=(4,))
    shelf.write()
    give_up_ram(shelf)
    plan = shelf.plan("abcdefg")
    assert plan.resume == 6
    for stored in [load.stored for load in plan.loads] + [plan.checkpoint] * traits.has_checkpoints:
        assert stored is not None
        blob = shelf.cache.fetch(stored)
        assert blob is not None and (blob.start, blob.stop) == (stored.start, stored.stop)
        assert stored.in_ram and stored.on_disk
        shelf.cache.check()
    assert not shelf.cache.write_step()


def test_what_comes_back_drives_out_only_what_is_worth_less(opened: Opener):
    shelf = opened(ram_bytes=6)
    shelf.saved("aaa", at=0)
    shelf.write()
    give_up_ram(shelf)
    shelf.saved("bbb", at=0)
    shelf.saved("ccc", at=0)
    blob = shelf.cache.fetch(span(shelf, "aaa"))
    # It is on disk in any case, and they are not.
    assert blob is not None and shelf.kept("ram") == ["bbb span", "ccc span"]
    shelf.write()
    shelf.now = 10
    shelf.cache.touch(shelf.node("aaa"))
    assert shelf.cache.fetch(span(shelf, "aaa")) is not None
    assert "aaa span" in shelf.kept("ram")


@pytest.mark.parametrize("is_damaged", [False, True])
@ALL_KINDS
def test_what_disk_has_lost_is_forgotten_and_the_plan_does_without(
    traits: MemoryTraits, is_damaged: bool, opened: Opener
):
    shelf = opened(traits)
    saved_whole(shelf, "abcd")
    saved_whole(shelf, "abcdef")
    shelf.write()
    give_up_ram(shelf)
    kind = "checkpoint" if traits.has_checkpoints else "span"
    lost: Stored = getattr(shelf.node("abcdef"), kind)
    path = shelf.path("abcdef", kind)
    if is_damaged:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    assert shelf.plan("abcdefg").resume == 6
    assert shelf.cache.fetch(lost) is None
    shelf.cache.forget(lost)
    shelf.cache.check()
    assert shelf.plan("abcdefg").resume == 4
    assert not path.exists()
    # It is kept again when it has been computed again.
    saved_whole(shelf, "abcdef")
    shelf.write()
    assert f"abcdef {kind}" in shelf.on_disk()


def test_a_blob_that_ram_lost_comes_from_disk(opened: Opener):
    shelf = opened()
    shelf.saved("abcd")
    shelf.write()
    stored = span(shelf, "abcd")
    shelf.cache.tier.drop(stored.key)
    assert shelf.cache.fetch(stored) is not None
    assert stored.in_ram
    shelf.cache.check()


def test_a_blob_that_ram_lost_is_not_written_empty(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    shelf.cache.tier.drop(span(shelf, "ab").key)
    assert not shelf.cache.write_step()
    shelf.cache.evict(Piece(span(shelf, "abcd"), "ram", 0.0))
    assert files(folder) == []


# Restart


@ALL_KINDS
@pytest.mark.parametrize("is_killed", [False, True])
def test_after_a_restart_all_is_known_again(traits: MemoryTraits, is_killed: bool, opened: Opener):
    shelf = opened(traits)
    for prompt, cuts in (("abcdefgh", (2, 4)), ("abcdXY", ()), ("abQ", ()), ("zzzz", (1,))):
        saved_whole(shelf, prompt, cuts=cuts)
    shelf.write()
    known, tree = shelf.kept(), outline(shelf.cache.tree)
    plans = {prompt: shelf.plan(prompt).resume for prompt in ("abcdefghi", "abcdXYZ", "abQ!", "zzzzz", "abcdQ", "a")}
    (shelf.kill if is_killed else shelf.close)()
    again = opened(traits)
    assert again.kept() == again.on_disk() == known
    assert again.kept("ram") == []
    assert outline(again.cache.tree) == tree
    assert {prompt: again.plan(prompt).resume for prompt in plans} == plans


@ALL_KINDS
def test_what_was_in_the_writers_hands_is_found_after_a_kill(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    saved_whole(shelf, "abcd")
    assert shelf.cache.write_step()
    shelf.kill()
    assert opened(traits).kept() == ["abcd span"]


def test_what_the_writer_has_in_hand_is_finished_before_the_end(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    assert shelf.cache.write_step()
    shelf.close()
    assert opened().kept() == ["ab span"]


def test_spans_that_were_cut_are_found_whole(opened: Opener):
    shelf = opened()
    shelf.saved("abcdefgh")
    # These hang from the middle of it, and were written after it, but end before.
    for prompt in ("abX", "abcdY", "abcdYZ"):
        shelf.saved(prompt)
    shelf.write()
    shelf.close()
    again = opened()
    assert again.kept() == ["ab span", "abX span", "abcd span", "abcdY span", "abcdYZ span", "abcdefgh span"]
    assert span(again, "ab") is span(again, "abcdefgh")
    for prompt in ("abcdefgh!", "abX!", "abcdY!", "abcdYZ!"):
        assert again.plan(prompt).resume == len(prompt) - 1


@BOTH
def test_checkpoints_within_a_span_are_found(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    saved_whole(shelf, "abcdefgh")
    for stop in (2, 5):
        assert shelf.save_checkpoint(shelf.cache.insert(tokens("abcdefgh"[:stop]), ()))
    shelf.write()
    shelf.close()
    again = opened(traits)
    assert [again.plan(prompt).resume for prompt in ("abcdefghi", "abcdeX", "abX", "aX")] == [8, 5, 2, 0]


@WITHOUT_SPANS
def test_checkpoints_within_the_record_of_a_path_are_found(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    shelf.saved("abcdefgh")
    shelf.write()
    for stop in (2, 5):
        shelf.saved("abcdefgh"[:stop])
    shelf.write()
    shelf.close()
    again = opened(traits)
    assert [again.plan(prompt).resume for prompt in ("abcdefghi", "abcdeX", "abX", "aX")] == [8, 5, 2, 0]


def test_how_often_and_when_a_prefix_was_used_survives(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,), at=0)
    shelf.saved("zz", at=50)
    shelf.write()
    shelf.now = 100
    for _ in range(5):
        shelf.cache.touch(shelf.node("abcd"))
    used = {prefix(node): (node.num_hits, node.last_used) for node in shelf.cache.tree.nodes()}
    assert not shelf.cache.flush_step()
    # From then on, it may be killed.
    shelf.kill()
    again = opened(now=400.0)
    for node in again.cache.tree.nodes():
        num_hits, last_used = used[prefix(node)]
        assert node.num_hits == num_hits
        assert node.last_used == pytest.approx(last_used, abs=1e-3)
    assert again.order("disk") == ["zz span", "abcd span", "ab span"]


def test_a_prefix_was_used_whenever_something_behind_it_was(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", at=0)
    shelf.write()
    shelf.now = 500
    shelf.saved("abcdef", at=500)
    shelf.write()
    # Killed before the index heard that "abcd" was used again.
    shelf.kill()
    again = opened(now=600.0)
    assert again.node("abcd").last_used == pytest.approx(500.0)


def test_use_that_seems_to_lie_in_the_future_was_now(opened: Opener):
    shelf = opened(now=10_000.0)
    shelf.saved("abcd", at=10_000)
    shelf.write()
    shelf.close()
    # The clock was set back.
    again = opened(now=500.0)
    assert again.node("abcd").last_used == pytest.approx(500.0)


def test_a_clock_that_is_set_while_the_cache_runs_makes_nothing_older_than_it_is(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
):
    shelf = opened()
    shelf.saved("abcd", at=100)
    offset = 1e6
    monkeypatch.setattr(shelf.archive, "_unix_clock", lambda: NOW + shelf.now + offset)
    shelf.now = 160
    shelf.write()
    # A minute before it was written, whatever the time was called then.
    assert blobfile.read_header(shelf.path("abcd")).record.last_used == pytest.approx(NOW + 100 + offset)


def test_what_hangs_in_the_air_is_deleted(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("abcdefgh", cuts=(2, 4))
    shelf.saved("xy")
    shelf.write()
    shelf.path("abcd").unlink()
    shelf.close()
    again = opened()
    assert again.kept() == ["ab span", "xy span"]
    assert outline(again.cache.tree) == {"ab": {}, "xy": {}}
    assert len(files(folder)) == 2


@pytest.mark.parametrize("kind", ["header", "state"])
def test_damage_that_shows_only_when_it_is_read_does_no_harm_at_a_restart(kind: str, opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    shelf.write()
    path = shelf.path("ab")
    content = bytearray(path.read_bytes())
    content[20 if kind == "header" else -1] ^= 0xFF
    path.write_bytes(content)
    shelf.close()
    again = opened()
    lost = span(again, "ab")
    assert again.cache.fetch(lost) is None
    again.cache.forget(lost)
    assert again.plan("abcde").resume == 0
    # What stands behind it is good still, once this was computed again.
    again.saved("ab")
    assert again.plan("abcde").resume == 4
    again.write()
    again.close()
    assert opened().plan("abcde").resume == 4


@ALL_KINDS
def test_a_restart_without_the_index_finds_the_same(traits: MemoryTraits, opened: Opener, folder: Path):
    shelf = opened(traits)
    for prompt, cuts in (("abcdefgh", (2, 4)), ("abcdXY", ()), ("zzzz", (1,))):
        saved_whole(shelf, prompt, cuts=cuts)
    shelf.write()
    known = shelf.kept()
    shelf.close()
    for path in (folder / "v1").glob("index.sqlite3*"):
        path.unlink()
    assert opened(traits).kept() == known


def test_another_models_state_is_not_ours(opened: Opener):
    shelf = opened()
    shelf.saved("abcd")
    shelf.write()
    shelf.close()
    other = opened(model=OTHER_MODEL)
    assert other.kept() == []
    other.saved("abcd")
    assert other.write() == ["abcd span"]
    other.close()
    assert opened().kept() == ["abcd span"]


# Warming


def warmed(shelf: Shelf) -> list[str]:
    """What idle time brings to RAM, in order."""
    order: list[str] = []
    before: list[str] = []
    while shelf.cache.warm_step():
        shelf.cache.check()
        after = shelf.kept("ram")
        order += [name for name in after if name not in before]
        before = after
    return order


def test_idle_time_brings_back_the_likeliest_paths_from_their_tops(opened: Opener):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,), at=100)
    shelf.saved("abQQ", at=200)
    shelf.saved("zzzz", cuts=(2,), at=300)
    shelf.write()
    shelf.close()
    again = opened(now=400.0)
    assert warmed(again) == ["zz span", "zzzz span", "ab span", "abQQ span", "abcd span"]
    assert not again.cache.write_step()
    assert again.cache.num_evicted_blobs == 0


@BOTH
def test_of_a_conversation_its_tip_is_warmed_before_the_places_on_the_way(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    saved_whole(shelf, "ab", at=0)
    saved_whole(shelf, "abcd", at=100)
    shelf.write()
    shelf.close()
    again = opened(traits, now=200.0)
    assert warmed(again) == ["abcd checkpoint", "ab span", "abcd span", "ab checkpoint"]


def test_warming_ends_where_ram_is_full_and_drives_nothing_out(opened: Opener):
    shelf = opened(ram_bytes=1 << 20)
    for now, prompt in enumerate(["aaaa", "bbbb", "cccc"]):
        shelf.now = float(now)
        assert shelf.save_span(shelf.cache.insert(tokens(prompt), ()), 1000)
    shelf.write()
    shelf.close()
    again = opened(now=400.0, ram_bytes=2900)
    assert warmed(again) == ["cccc span", "bbbb span"]
    assert not again.cache.warm_step()
    assert again.cache.num_evicted_blobs == 0
    assert len(again.kept()) == 3


def test_warming_goes_on_past_what_is_damaged_gone_or_there_already(opened: Opener):
    shelf = opened()
    for now, prompt in enumerate(["aaaa", "bbbb", "cccc", "dddd", "eeee"]):
        shelf.saved(prompt, at=float(now))
    shelf.write()
    shelf.close()
    again = opened(now=400.0)
    again.path("eeee").write_bytes(b"not a blob")
    again.path("dddd").unlink()
    again.cache.forget(span(again, "cccc"))
    assert again.cache.fetch(span(again, "bbbb")) is not None
    assert warmed(again) == ["bbbb span", "aaaa span"]
    assert again.kept() == ["aaaa span", "bbbb span"]


def test_there_is_nothing_to_warm_without_a_disk():
    assert not Shelf().cache.warm_step()
    assert not Shelf().cache.write_step()
    assert not Shelf().cache.is_writing
    assert not Shelf().cache.flush_step()


# A full disk


def room_for(count: int) -> int:
    """Bytes for so many files of spans of four tokens, as the archive estimates the size of the last, and no more."""
    return (count - 1) * (FILE_BYTES + 20) + HEADER_BYTES + 20


def test_the_size_of_a_file_is_never_underestimated(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("aaaa")
    shelf.write()
    assert num_file_bytes(folder) == FILE_BYTES + 20 < HEADER_BYTES + 20


def test_a_full_disk_lets_the_least_valuable_go(opened: Opener, folder: Path):
    capacity = room_for(3)
    shelf = opened(disk_bytes=capacity)
    for now, prompt in enumerate(["aaaa", "bbbb", "cccc"]):
        shelf.saved(prompt, at=100.0 * now)
    assert shelf.write() == ["aaaa span", "bbbb span", "cccc span"]
    shelf.now = 300
    for _ in range(9):
        shelf.cache.touch(shelf.node("aaaa"))
    shelf.saved("dddd", at=400)
    assert shelf.write() == ["dddd span"]
    assert shelf.on_disk() == ["aaaa span", "cccc span", "dddd span"]
    shelf.saved("eeee", at=500)
    shelf.saved("ffff", at=600)
    shelf.write()
    assert shelf.on_disk() == ["aaaa span", "eeee span", "ffff span"]
    assert num_file_bytes(folder) <= capacity
    assert shelf.archive.num_evicted_blobs == 3
    # RAM has them still.
    assert len(shelf.kept()) == 6
    give_up_ram(shelf)
    assert shelf.kept() == shelf.on_disk()


def test_a_branch_goes_from_disk_from_its_end(opened: Opener):
    shelf = opened(disk_bytes=room_for(4))
    shelf.saved("abcdefghijkl", cuts=(4, 8), at=0)
    shelf.saved("zzzz", at=0)
    shelf.write()
    evicted: list[str] = []
    for now, prompt in ((1000, "wwww"), (2000, "xxxx"), (3000, "yyyy")):
        before = shelf.on_disk()
        shelf.saved(prompt, at=now)
        shelf.cache.touch(shelf.node("zzzz"))
        shelf.write()
        evicted += [name for name in before if name not in shelf.on_disk()]
    assert evicted == ["abcdefghijkl span", "abcdefgh span", "abcd span"]


def test_what_is_worth_less_than_what_is_there_is_not_written_and_nothing_goes(opened: Opener):
    shelf = opened(disk_bytes=room_for(2))
    for prompt in ("aaaa", "bbbb"):
        shelf.saved(prompt, at=0)
        for _ in range(5):
            shelf.cache.touch(shelf.node(prompt))
    shelf.write()
    branch = shelf.parked(0, "cccc")
    assert shelf.save_span(branch.node)
    shelf.now = 10_000
    for prompt in ("aaaa", "bbbb"):
        shelf.cache.touch(shelf.node(prompt))
    assert shelf.write() == []
    assert shelf.on_disk() == ["aaaa span", "bbbb span"]
    assert "cccc span" in shelf.kept("ram")


def test_what_there_is_no_room_for_keeps_no_other_from_being_written(opened: Opener):
    shelf = opened(disk_bytes=room_for(2), ram_bytes=1 << 20)
    big = shelf.cache.insert(tokens("aaaa"), ())
    assert shelf.save_span(big, 1000)
    for now, prompt in enumerate(["bbbb", "cccc"]):
        shelf.saved(prompt, at=float(now))
    assert shelf.write() == ["bbbb span", "cccc span"]


def test_leased_state_stays_on_disk(opened: Opener):
    shelf = opened(disk_bytes=room_for(2))
    shelf.saved("aaaa", at=0)
    shelf.saved("bbbb", at=100)
    shelf.write()
    with shelf.cache.lease(shelf.node("aaaa")):
        shelf.saved("cccc", at=2000)
        assert shelf.write() == ["cccc span"]
    assert shelf.on_disk() == ["aaaa span", "cccc span"]


@WITHOUT_SPANS
def test_a_checkpoint_goes_from_disk_with_the_record_of_its_path(traits: MemoryTraits, opened: Opener, folder: Path):
    shelf = opened(traits, checkpoint_bytes=1000, ram_bytes=1 << 20, disk_bytes=4150)
    for now, prompt in enumerate(["aaaa", "bbbb", "cccc", "dddd", "eeee"]):
        shelf.saved(prompt, at=1000.0 * now)
        shelf.write()
        assert num_file_bytes(folder) <= 4150
    kept = [f"{prompt} {kind}" for prompt in ("cccc", "dddd", "eeee") for kind in ("checkpoint", "span")]
    assert shelf.on_disk() == kept


@WITHOUT_SPANS
@pytest.mark.parametrize("disk_bytes", [500, 700, 1000, 1400, 1800, 2200])
def test_no_records_of_paths_are_written_for_what_there_is_no_room_for(
    traits: MemoryTraits, disk_bytes: int, opened: Opener, folder: Path
):
    shelf = opened(traits, checkpoint_bytes=600, ram_bytes=1 << 20, disk_bytes=disk_bytes)
    for prompt in ("aaaabbbbcccc", "aaaadddd", "eeeeffff", "gggg"):
        shelf.saved(prompt, cuts=(4, 8))
    # It used to go on for ever: the records of each path drove out those of another.
    shelf.write()
    assert num_file_bytes(folder) <= disk_bytes
    checkpoints = [name for name in shelf.on_disk() if name.endswith("checkpoint")]
    assert bool(checkpoints) == bool(files(folder)) == (disk_bytes >= 1400)


@WITHOUT_SPANS
def test_the_record_of_a_path_stays_as_long_as_anything_stands_on_it(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    shelf.saved("aaaa")
    shelf.saved("aaaabbbb")
    shelf.write()
    give_up_ram(shelf)
    shelf.now = 1000
    shelf.cache.touch(shelf.node("aaaabbbb"))
    shelf.archive.evict(Piece(checkpoint(shelf, "aaaa"), "disk", 0.0))
    assert shelf.order("disk") == ["aaaabbbb checkpoint", "aaaabbbb span", "aaaa span"]
    shelf.close()
    assert opened(traits).plan("aaaabbbbc").resume == 8


def test_a_disk_that_may_take_less_than_before_is_relieved_at_once(opened: Opener, folder: Path):
    shelf = opened()
    for now, prompt in enumerate(["aaaa", "bbbb", "cccc", "dddd"]):
        shelf.saved(prompt, at=100.0 * now)
    shelf.write()
    shelf.close()
    again = opened(disk_bytes=2 * (FILE_BYTES + 20), now=1000.0)
    assert again.kept() == ["cccc span", "dddd span"]
    assert len(files(folder)) == 2


# Other models in the folder


def fill_as_other_model(opened: Opener, *uses: tuple[str, float, int]) -> None:
    """Prompts, when each was used last, and how often."""
    other = opened(model=OTHER_MODEL)
    for prompt, at, num_hits in uses:
        other.saved(prompt, at=at)
        for _ in range(num_hits):
            other.cache.touch(other.node(prompt))
    other.write()
    other.close()


def foreign_left(opened: Opener) -> list[str]:
    return opened(model=OTHER_MODEL).kept()


def test_other_models_state_goes_first_where_it_is_less_likely_to_be_asked_for(opened: Opener, folder: Path):
    capacity = room_for(4)
    fill_as_other_model(opened, ("pppp", 0.0, 0), ("qqqq", 500.0, 0), ("rrrr", 1000.0, 0))
    shelf = opened(disk_bytes=capacity, now=1000.0)
    shelf.saved("aaaa", at=750)
    shelf.write()
    order: list[list[str]] = []
    for now, prompt in ((1000, "bbbb"), (1001, "cccc"), (1002, "dddd")):
        shelf.saved(prompt, at=now)
        shelf.write()
        assert num_file_bytes(folder) <= capacity
        order.append([*foreign_left(opened), *shelf.on_disk()])
    assert order == [
        ["qqqq span", "rrrr span", "aaaa span", "bbbb span"],
        ["rrrr span", "aaaa span", "bbbb span", "cccc span"],
        ["rrrr span", "bbbb span", "cccc span", "dddd span"],
    ]


def test_other_models_branches_go_from_their_ends(opened: Opener):
    fill_as_other_model(opened, ("pppp", 0.0, 0), ("ppppqqqq", 0.0, 0), ("ppppqqqqrrrr", 0.0, 0))
    # The shorter a prefix the more often it was used; that alone keeps it longer.
    shelf = opened(disk_bytes=room_for(3), now=5000.0)
    for now, prompt in ((5000, "aaaa"), (5001, "bbbb")):
        shelf.saved(prompt, at=now)
        shelf.write()
    assert foreign_left(opened) == ["pppp span"]


def test_state_that_was_used_often_survives_a_model_that_is_new(opened: Opener):
    fill_as_other_model(opened, ("pppp", 0.0, 50))
    shelf = opened(disk_bytes=room_for(2), now=IDLE_SECONDS)
    shelf.saved("aaaa", at=0)
    shelf.write()
    shelf.now = IDLE_SECONDS
    shelf.saved("bbbb", at=IDLE_SECONDS)
    shelf.write()
    assert (foreign_left(opened), shelf.on_disk()) == (["pppp span"], ["bbbb span"])


# Two processes


@ALL_KINDS
def test_what_another_process_wrote_is_found_with_the_next_request(traits: MemoryTraits, opened: Opener):
    one, other = opened(traits), opened(traits)
    saved_whole(one, "abcdef", cuts=(2,))
    one.write()
    assert other.plan("abcdefg").resume == 0
    match = other.cache.look_up(tokens("abcdefg"))
    other.cache.check()
    assert match.length == 6
    assert other.kept() == one.on_disk()
    assert other.plan("abcdefg").resume == 6
    assert other.cache.look_up(tokens("abcdefg")).length == 6
    for load in other.plan("abcdefg").loads:
        assert other.cache.fetch(load.stored) is not None


def test_what_hangs_from_something_that_was_written_before_is_found(opened: Opener):
    one = opened()
    one.saved("abcd")
    one.write()
    other = opened()
    one.saved("abcdef")
    one.saved("abX")
    one.write()
    other.cache.look_up(tokens("a"))
    assert other.kept() == ["ab span", "abX span", "abcd span", "abcdef span"]


def test_equal_state_that_both_have_is_one(opened: Opener, folder: Path):
    one, other = opened(), opened()
    for shelf in (one, other):
        shelf.saved("abcd", cuts=(2,))
        shelf.write()
    assert len(files(folder)) == 2
    other.cache.look_up(tokens("a"))
    one.cache.look_up(tokens("a"))
    for shelf in (one, other):
        shelf.cache.check()
        assert shelf.kept() == shelf.on_disk() == ["ab span", "abcd span"]


def test_state_that_is_here_already_need_not_be_written_when_another_has(opened: Opener):
    one, other = opened(), opened()
    for shelf in (one, other):
        shelf.saved("abcd", cuts=(2,))
    one.write()
    other.cache.look_up(tokens("a"))
    assert other.on_disk() == ["ab span", "abcd span"]
    assert other.write() == []


def test_spans_that_were_cut_in_other_places_do_not_get_into_each_others_way(opened: Opener):
    one, other = opened(), opened()
    one.saved("abcdefgh", cuts=(3,))
    other.saved("abcdefgh", cuts=(4,))
    for shelf in (one, other):
        shelf.write()
    for shelf in (one, other):
        shelf.cache.look_up(tokens("a"))
        shelf.cache.check()
        assert shelf.plan("abcdefghi").resume == 8
        shelf.close()
    again = opened()
    assert again.plan("abcdefghi").resume == 8
    for load in again.plan("abcdefghi").loads:
        assert again.cache.fetch(load.stored) is not None


def test_what_another_process_wrote_of_other_spans_is_not_taken_for_ours(opened: Opener):
    one, other = opened(), opened()
    one.saved("abcdefgh", cuts=(3,))
    other.saved("abcdefgh", cuts=(4,))
    other.write()
    one.cache.look_up(tokens("a"))
    assert one.on_disk() == []
    assert one.write() == ["abc span", "abcd span", "abcdefgh span"]


def test_what_another_process_let_go_is_a_miss(opened: Opener):
    one = opened()
    one.saved("abcd", cuts=(2,))
    one.write()
    other = opened()
    one.archive.evict(Piece(span(one, "abcd"), "disk", 0.0))
    assert other.plan("abcde").resume == 4
    lost = span(other, "abcd")
    assert other.cache.fetch(lost) is None
    other.cache.forget(lost)
    other.cache.check()
    assert other.plan("abcde").resume == 2


def test_one_that_waits_for_nobody_does_not_see_its_own_writes_as_news(opened: Opener):
    shelf = opened()
    shelf.saved("abcd")
    shelf.write()
    stored = span(shelf, "abcd")
    shelf.cache.look_up(tokens("abcd"))
    assert span(shelf, "abcd") is stored
    assert shelf.on_disk() == ["abcd span"]


# Quarantine


@ALL_KINDS
def test_quarantined_state_leaves_the_disk_and_is_never_restored(traits: MemoryTraits, opened: Opener, folder: Path):
    shelf = opened(traits)
    for prompt in ("ab", "abcd", "abcdef"):
        saved_whole(shelf, prompt)
    shelf.write()
    shelf.cache.quarantine(shelf.node("abcd"), 1.0, 0.1)
    shelf.cache.check()
    left = shelf.kept()
    assert {name.split()[0] for name in left} == {"ab"}
    assert len(files(folder)) == len(left)
    assert shelf.write() == []
    shelf.close()
    again = opened(traits)
    assert again.kept() == left
    assert again.plan("abcdefg").resume == 2


def test_state_that_is_quarantined_while_it_is_written_does_not_come_back(opened: Opener, folder: Path):
    shelf = opened()
    shelf.saved("abcd")
    assert shelf.cache.write_step()
    shelf.cache.quarantine(shelf.node("abcd"), 1.0, 0.1)
    assert shelf.write() == []
    shelf.cache.check()
    assert files(folder) == []
    shelf.kill()
    assert opened().kept() == []


def test_what_a_killed_process_was_writing_of_quarantined_state_is_deleted_at_the_next_start(
    opened: Opener, folder: Path
):
    shelf = opened()
    shelf.saved("abcd", cuts=(2,))
    assert shelf.cache.write_step()
    shelf.archive.disk.wait()
    assert shelf.cache.write_step()
    shelf.cache.quarantine(shelf.node("abcd"), 1.0, 0.1)
    # Nobody has deleted the file, since nobody has heard that it was written.
    shelf.kill()
    again = opened()
    assert again.kept() == ["ab span"]
    assert files(folder) == [again.path("ab")]
    assert again.archive.disk.used_bytes == num_file_bytes(folder)


@ALL_KINDS
def test_quarantined_state_is_not_kept_after_a_restart_either(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    for prompt in ("ab", "abcd", "abcdef"):
        saved_whole(shelf, prompt)
    shelf.write()
    shelf.cache.quarantine(shelf.node("abcd"), 1.0, 0.1)
    shelf.close()
    again = opened(traits)
    branch = again.parked(0, "abcdef", cuts=(2, 4))
    for node in again.nodes(["abcd", "abcdef"]):
        assert not (again.save_span(node) if traits.has_spans else again.save_checkpoint(node))
    again.cache.close(branch)
    assert again.plan("abcdefg").resume == 2


@ALL_KINDS
def test_what_the_disk_refuses_is_not_offered_for_ever(traits: MemoryTraits, opened: Opener):
    shelf = opened(traits)
    for prompt in ("ab", "abcd", "abcdef"):
        saved_whole(shelf, prompt)
    shelf.write()
    shelf.cache.quarantine(shelf.node("abcd"), 1.0, 0.1)
    shelf.close()
    again = opened(traits)
    # As if another process had found it since: the disk knows of it, and the cache does not.
    again.cache._quarantined.clear()
    saved_whole(again, "abcdefgh", cuts=(2, 4, 6))
    saved_whole(again, "abX")
    written = again.write()
    assert {name.split()[0] for name in written} == {"abX"}
    assert not again.cache.write_step()
    give_up_ram(again)
