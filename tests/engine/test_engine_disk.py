"""The engine with a disk behind it: what is there after a restart, and what it does in idle time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cache.shelf import memory_folder
from tests.engine.harness import Harness, words

from kvstet.cache.disk import blobfile
from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.idle import WRITING_SECONDS
from kvstet.types import MemoryTraits

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


@pytest.fixture
def folder() -> Iterator[Path]:
    with memory_folder() as path:
        yield path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("v1/*/*/*") if path.is_file())


@ALL_KINDS
@pytest.mark.parametrize("is_killed", [False, True])
def test_after_a_restart_the_next_turn_computes_only_what_is_new(traits: MemoryTraits, is_killed: bool, folder: Path):
    h = Harness(traits, folder=folder)
    session = h.ask("a", words(300), cuts=(100, 200))
    h.idle()
    h.restart(is_killed=is_killed)
    h.ask("b", session + words(20, 1), cuts=(100, 200, 300))
    assert h.reuse("b").num_loaded_tokens == len(session) - 1
    assert h.reuse("b").num_known_tokens == len(session) - 1
    h.end_process()


@ALL_KINDS
def test_after_a_restart_an_edit_computes_from_the_message_it_is_in(traits: MemoryTraits, folder: Path):
    h = Harness(traits, folder=folder)
    prompt = words(300)
    h.ask("a", prompt, cuts=(100, 200))
    h.idle()
    h.restart(is_killed=True)
    h.ask("b", prompt[:230] + words(70, 1), cuts=(100, 200))
    assert h.reuse("b").num_computed_tokens == (70 if traits.kind == "attention" else 100)
    h.end_process()


@ALL_KINDS
@pytest.mark.parametrize("ram_bytes", [0, 300])
def test_with_next_to_no_ram_a_session_is_kept_on_disk(traits: MemoryTraits, ram_bytes: int, folder: Path):
    h = Harness(traits, folder=folder, ram_bytes=ram_bytes, num_cells=500, max_length=500)
    session = h.ask("a", words(200), cuts=(50, 100))
    h.ask("another, which needs the cells", words(400, 1))
    h.ask("b", session + words(20, 2), cuts=(50, 100, 200))
    assert h.reuse("b").num_loaded_tokens == len(session) - 1
    h.idle()
    h.restart()
    h.ask("c", session + words(20, 3), cuts=(50, 100, 200))
    assert h.reuse("c").num_computed_tokens <= 21
    h.end_process()


@ALL_KINDS
def test_what_was_written_once_is_not_written_again(traits: MemoryTraits, folder: Path):
    h = Harness(traits, folder=folder)
    session = h.ask("a", words(300), cuts=(100, 200))
    h.idle()
    before = {path: path.stat().st_mtime_ns for path in files(folder)}
    h.ask("b", session + words(20, 1), cuts=(100, 200, 300))
    h.idle()
    after = {path: path.stat().st_mtime_ns for path in files(folder)}
    assert before.items() < after.items()
    h.end_process()


@ALL_KINDS
@pytest.mark.parametrize("fault", ["gone", "cut off", "bit flipped"])
def test_what_is_wrong_on_disk_is_computed_again(traits: MemoryTraits, fault: str, folder: Path):
    h = Harness(traits, folder=folder)
    session = h.ask("a", words(300), cuts=(100, 200))
    h.idle()
    h.end_process()
    paths = [path for path in files(folder) if blobfile.read_header(path).num_payload_bytes]
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        match fault:
            case "gone":
                path.unlink()
            case "cut off":
                path.write_bytes(content[:-1])
            case _:
                path.write_bytes(content)
    h.start_process()
    h.ask("b", session + words(20, 1), cuts=(100, 200, 300))
    assert h.reuse("b").num_computed_tokens == len(session) + 20
    h.idle()
    h.restart()
    h.ask("c", session + words(20, 1), cuts=(100, 200, 300))
    assert h.reuse("c").num_computed_tokens == 1
    h.end_process()


@ALL_KINDS
def test_two_engines_share_what_either_computed(traits: MemoryTraits, folder: Path):
    one, other = Harness(traits, folder=folder), Harness(traits, folder=folder)
    session = one.ask("a", words(300), cuts=(100, 200))
    one.idle()
    other.ask("b", session + words(20, 1), cuts=(100, 200, 300))
    assert other.reuse("b").num_loaded_tokens == len(session) - 1
    for h in (one, other):
        h.end_process()


def test_idle_time_saves_writes_and_then_waits_for_the_next_request(folder: Path):
    h = Harness(folder=folder)
    h.ask("a", words(100))
    # Saved to RAM first, and handed to the writer then.
    assert h.engine.idle_step() == 0.0
    assert h.tier.used_bytes > 0
    pauses: list[float | None] = []
    while not pauses or pauses[-1] is not None:
        pauses.append(h.engine.idle_step())
        if pauses[-1] == WRITING_SECONDS:
            assert h.cache.is_writing
            h.wait_for_disk()
    assert set(pauses) <= {0.0, WRITING_SECONDS, None}
    assert not h.cache.is_writing
    assert h.engine.idle_step() is None
    assert len(files(folder)) > 0
    h.end_process()


def test_without_a_disk_idle_time_ends_when_all_is_saved():
    h = Harness()
    h.ask("a", words(100))
    assert h.engine.idle_step() == 0.0
    h.idle()
    assert h.engine.idle_step() is None


def test_after_a_restart_idle_time_brings_the_session_to_ram(folder: Path):
    h = Harness(folder=folder)
    session = h.ask("a", words(300), cuts=(100, 200))
    h.idle()
    used_bytes = h.tier.used_bytes
    h.restart()
    assert h.tier.used_bytes == 0
    h.idle()
    assert h.tier.used_bytes == used_bytes
    h.ask("b", session + words(20, 1))
    assert h.reuse("b").num_loaded_tokens == len(session) - 1
    h.end_process()


def test_writing_goes_on_behind_other_requests(folder: Path):
    h = Harness(folder=folder)
    h.ask("a", words(200))
    h.ask("b", words(300, 9), new=200)
    # Idle time never came: it was parked beside another, saved and written.
    assert len(files(folder)) > 0
    h.end_process()


@ALL_KINDS
def test_a_server_that_stops_writes_what_a_kill_would_lose(traits: MemoryTraits, folder: Path):
    h = Harness(traits, folder=folder)
    session = h.ask("a", words(300), cuts=(100, 200))
    h.submit("under way", words(500, 1))
    h.engine.step()
    h.engine.finish(seconds=20)
    assert h.cache.num_unwritten_blobs == 0
    h.prompts.clear()
    h.restart(is_killed=True)
    h.ask("b", session + words(20, 1), cuts=(100, 200, 300))
    assert h.reuse("b").num_loaded_tokens == len(session) - 1
    h.end_process()
