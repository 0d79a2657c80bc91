"""`kvstet cache`, on folders written by hand and on one that a real server filled."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import re
import sqlite3
import stat
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tests.cache.records import FINGERPRINT, OTHER, assert_consistent, files
from tests.cache.shelf import tokens
from tests.cli.harness import Served, eventually
from tests.cli.test_restart import keeping
from tests.toys import toy_path

from kvstet.cache import bundle
from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.disk.packing import packed
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.inventory import Inventory
from kvstet.cache.tier import BlobKey
from kvstet.cache.tree import Node, Tree
from kvstet.cli.main import main
from kvstet.cli.selection import named
from kvstet.errors import BadExport, DiskUnavailable, NotKept

STATE_BYTES = 1000
DAY = 86400.0

FORKED = ("system prompt|first question|first answer", "system prompt|second question")
"""Two conversations; ``|`` is where nodes end."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `fsync` is for cannot be seen from here."""
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`kvstet cache ARGUMENTS` on ``tmp_path / "cache"``, in this process."""
    monkeypatch.setenv("KVSTET_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments: object, answer: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["kvstet", "cache", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the conversations `FORKED` of a model called toy."""
    remember(tmp_path / "cache", *FORKED)
    return tmp_path / "cache"


def span(node: Node, age_seconds: float = 0.0) -> Record:
    assert node.parent is not None
    key = BlobKey("span", node.id, node.start)
    return Record(key, node.parent.id, node.start, node.stop, node.data, 1.0, 2, time.time() - age_seconds)


def grow(tree: Tree, conversation: str) -> list[Node]:
    """The nodes at which the parts of a conversation end."""
    nodes: list[Node] = []
    for part in conversation.split("|"):
        data = tokens(part).astype("<i4").tobytes()
        nodes.append(tree.graft(nodes[-1] if nodes else tree.root, data, 0.0))
    return nodes


def remember(
    folder: Path, *conversations: str, fingerprint: bytes = FINGERPRINT, name: str = "toy", age_seconds: float = 0.0
) -> Tree:
    """Write the conversations' state into a cache folder, in their order, as servers would."""
    tree = Tree(fingerprint)
    with closing(DiskStore(folder)) as store:
        store.run(lambda index: index.register(fingerprint, name))
        for conversation in conversations:
            for node in grow(tree, conversation):
                write(store, fingerprint, span(node, age_seconds))
    return tree


def write(store: DiskStore, fingerprint: bytes, record: Record) -> None:
    path = store.path(fingerprint, record.key)
    if not path.exists():
        state = np.frombuffer(random.Random(record.key.prefix).randbytes(STATE_BYTES), np.uint8)
        num_bytes = blobfile.write(store.temp_folder, path, fingerprint, record, state)
        store.publish(fingerprint, replace(record, num_bytes=num_bytes), num_bytes)


def node_of(conversation: str, fingerprint: bytes = FINGERPRINT) -> Node:
    """The node at the end of a conversation."""
    return grow(Tree(fingerprint), conversation)[-1]


def id_of(conversation: str, fingerprint: bytes = FINGERPRINT) -> str:
    return node_of(conversation, fingerprint).id.hex()[:8]


def path_of(folder: Path, conversation: str, fingerprint: bytes = FINGERPRINT) -> Path:
    """The file of the conversation's last part."""
    with closing(DiskStore(folder)) as store:
        return store.path(fingerprint, span(node_of(conversation, fingerprint)).key)


def kept(folder: Path, fingerprint: bytes = FINGERPRINT) -> set[str]:
    """The conversations, up to each node that has state and whose path is whole, in letters."""
    with closing(DiskStore(folder)) as store:
        assert_consistent(store, tuple({model.fingerprint for model in store.models()}))
        entry = ModelEntry(fingerprint, "", 0, 0, 0.0)
        inventory = Inventory(entry, store.records(fingerprint))
    assert inventory.lost == []
    chains = [chain for root in inventory.roots for chain in root.walk()]
    ends = {record.key.prefix for chain in chains for record in chain.records}
    return {letters(node) for chain in chains for node in chain.nodes if node.id in ends}


def letters(node: Node) -> str:
    return "".join(bytes(step.tokens.astype(np.uint8)).decode() for step in [*node.path()][::-1])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


ALL_FORKED = {
    "system prompt",
    "system promptfirst question",
    "system promptfirst questionfirst answer",
    "system promptsecond question",
}


# ls and du


def test_a_line_per_conversation_from_fork_to_fork(run: Run, folder: Path):
    ended = run("ls")
    first, second = "system prompt|first question|first answer", "system prompt|second question"
    lines = [re.sub(r"[\d.]+ KiB", "# KiB", " ".join(line.split())) for line in ended.out.splitlines()]
    assert lines[0] == f"toy ({FINGERPRINT.hex()[:8]}) 4 files, # KiB"
    assert lines[1] == f"{id_of('system prompt')} 0-13 # KiB 1 span just now 2 hits"
    assert sorted(line[2:] for line in lines[2:]) == sorted(
        [
            f"{id_of(first)} 13-39 # KiB 2 spans just now 2 hits",
            f"{id_of(second)} 13-28 # KiB 1 span just now 2 hits",
        ]
    )
    assert [line[0] for line in lines[2:]] == ["├", "└"]
    assert ended.status == 0


def test_the_list_for_programs_has_what_the_lines_have(run: Run, folder: Path):
    (model,) = json.loads(run("ls", "--json", "--model", "toy").out)
    assert (model["fingerprint"], model["name"], model["num_blobs"]) == (FINGERPRINT.hex(), "toy", 4)
    chains = {chain["id"][:8]: chain for chain in model["conversations"]}
    assert len(chains) == 3
    top, leaf = chains[id_of("system prompt")], chains[id_of("system prompt|first question|first answer")]
    assert (top["parent"], leaf["parent"]) == (None, top["id"])
    assert (leaf["start"], leaf["stop"], leaf["num_spans"], leaf["num_checkpoints"]) == (13, 39, 2, 0)
    assert sum(chain["num_bytes"] for chain in chains.values()) == model["num_bytes"]


def test_paths_without_state_are_no_spans(run: Run, tmp_path: Path):
    folder = tmp_path / "cache"
    node = node_of("recurrent")
    path_only = span(node)
    checkpoint = Record(BlobKey("checkpoint", node.id, 0), node.id, node.stop, node.stop, b"", 1.0, 0, time.time())
    with closing(DiskStore(folder)) as store:
        for record, num_bytes in ((path_only, 0), (checkpoint, 500)):
            path = store.path(FINGERPRINT, record.key)
            size = blobfile.write(store.temp_folder, path, FINGERPRINT, record, np.zeros(num_bytes, np.uint8))
            store.publish(FINGERPRINT, replace(record, num_bytes=size), size)
    (chain,) = json.loads(run("ls", "--json").out)[0]["conversations"]
    assert (chain["num_spans"], chain["num_checkpoints"]) == (0, 1)


def test_what_leads_nowhere_is_told(run: Run, folder: Path):
    path_of(folder, "system prompt").unlink()
    ended = run("ls")
    assert re.search(r"^3 files, .* lead nowhere; the model's next start deletes them$", ended.out, re.MULTILINE)


def test_what_is_in_quarantine_is_counted_and_not_listed(run: Run, folder: Path):
    wrong = node_of("system prompt|second question").id
    with closing(DiskStore(folder)) as store:
        store.run(lambda index: index.quarantine(FINGERPRINT, [wrong], 1.0, 0.5))
    ended = run("ls")
    assert ended.out.endswith("\n1 state in quarantine\n")
    assert wrong.hex()[:8] not in ended.out


def test_sums_are_those_of_the_files(run: Run, folder: Path):
    remember(folder, "another", fingerprint=OTHER, name="other")
    lines = {line.split()[0]: line for line in run("du").out.splitlines()}
    num_bytes = sum(path.stat().st_size for path in files(folder))
    assert "4 files" in lines["toy"]
    assert "1 file " in lines["other"]
    assert "5 files" in lines["total"]
    num_other_bytes = path_of(folder, "another", OTHER).stat().st_size
    assert f"{(num_bytes - num_other_bytes) / 1024:.1f} KiB" in lines["toy"]
    assert f"{num_other_bytes / 1024:.1f} KiB" in lines["other"]
    shares = [float(lines[name].rpartition(" ")[2].removesuffix("%")) for name in ("toy", "other", "index")]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares[0] > shares[1] > 0


# rm and purge


def test_a_removed_conversation_leaves_the_others_whole(run: Run, folder: Path):
    ended = run("rm", id_of("system prompt|second question"), "--yes")
    assert f"{id_of('system prompt|second question')}  tokens 13-28  1 file" in ended.out
    assert ended.status == 0
    assert kept(folder) == ALL_FORKED - {"system promptsecond question"}


def test_any_id_within_a_line_means_the_line(run: Run, folder: Path):
    run("rm", id_of("system prompt|first question"), "--yes")
    assert kept(folder) == {"system prompt", "system promptsecond question"}


def test_all_that_goes_on_from_a_removed_line_goes_too(run: Run, folder: Path):
    run("rm", id_of("system prompt"), "--yes")
    assert kept(folder) == set()


def test_state_that_others_go_on_from_stays_and_is_told(run: Run, tmp_path: Path):
    folder = tmp_path / "cache"
    remember(folder, "shared and own", "shared and other")
    ended = run("rm", id_of("shared and own"), "--yes")
    assert ended.out.startswith("  stays: ")
    assert "hold tokens 0-14" in ended.out
    assert ended.out.endswith("Nothing to delete.\n")
    assert kept(folder) == {"shared and own", "shared and other"}
    (suggested,) = re.findall(r"kvstet cache rm (\w+)", ended.out)
    run("rm", suggested, "--yes")
    assert kept(folder) == set()


def test_nothing_is_deleted_unless_the_answer_is_yes(run: Run, folder: Path):
    for command in (["rm", id_of("system prompt")], ["rm", "--model", "toy"], ["purge"]):
        for answer in ("n\n", ""):
            assert run(*command, answer=answer).status == 1
    assert kept(folder) == ALL_FORKED
    assert run("rm", id_of("system prompt"), answer="y\n").status == 0
    assert kept(folder) == set()


def test_old_branches_go_and_what_newer_ones_need_stays(run: Run, folder: Path):
    remember(folder, "system prompt|old question", "forgotten|long ago", age_seconds=8 * DAY)
    assert "Nothing to delete." in run("rm", "--older-than", "9d", "--yes").out
    assert run("rm", "--older-than", "1w", "--yes").status == 0
    assert kept(folder) == ALL_FORKED


@pytest.mark.parametrize("model", ["toy", FINGERPRINT.hex(), FINGERPRINT.hex().upper()])
def test_a_model_is_removed_by_name_or_fingerprint(run: Run, folder: Path, model: str):
    remember(folder, "another", fingerprint=OTHER, name="other")
    assert run("rm", "--model", model, "--yes").status == 0
    assert kept(folder) == set()
    assert kept(folder, OTHER) == {"another"}


@pytest.mark.parametrize(
    "arguments",
    [["rm"], ["rm", "--model", ""], ["rm", "abcd", "--older-than", "7d"], ["rm", "--older-than", "7 moons"]],
)
def test_a_removal_that_names_nothing_ends_with_the_usage(run: Run, folder: Path, arguments: list[str]):
    ended = run(*arguments, "--yes")
    assert ended.status == 2
    assert "Usage:" in ended.err
    assert kept(folder) == ALL_FORKED


@pytest.mark.parametrize(
    "arguments", [["rm", "00000000"], ["rm", "nonsense"], ["rm", ""], ["ls", "--model", "nonesuch"]]
)
def test_what_is_not_there_is_one_sentence(run: Run, folder: Path, arguments: list[str]):
    ended = run(*arguments)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith("kvstet: No")
    assert kept(folder) == ALL_FORKED


def test_a_fingerprint_that_fits_two_models_is_refused(run: Run, folder: Path):
    remember(folder, "another", fingerprint=OTHER, name="other")
    ended = run("rm", "--model", FINGERPRINT.hex()[:20], "--yes")
    assert ended.status == 1
    assert "fits 2 models: " in ended.err
    assert kept(folder) == ALL_FORKED


def test_an_id_that_fits_two_conversations_is_refused():
    tree = Tree(FINGERPRINT)
    inventory = Inventory(
        ModelEntry(FINGERPRINT, "toy", 0, 0, 0.0), [span(grow(tree, chr(code))[-1]) for code in range(33, 53)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvstet.cli.selection.ID", re.compile(r"[0-9a-f]+"))
        digits = [chain.id.hex() for chain in inventory.roots]
        twice = next(one[:1] for one in digits if sum(other[0] == one[0] for other in digits) == 2)
        with pytest.raises(NotKept, match="fits 2 conversations: "):
            named([inventory], [twice])
        assert len(named([inventory], [digits[0]])[inventory]) == 1


def test_a_purge_leaves_no_trace_of_conversations(run: Run, folder: Path):
    secret = packed(tokens("first question").astype("<i4").tobytes())
    with closing(DiskStore(folder)) as store:
        store.run(lambda index: index.quarantine(FINGERPRINT, [b"p" * 16], 1.0, 0.5))
    (folder / "v1" / "temp" / "1-left-0.tmp").write_bytes(secret)
    assert any(secret in path.read_bytes() for path in folder.glob("v1/index*"))
    ended = run("purge", "--yes")
    assert (ended.status, ended.out[:15]) == (0, "Deleted 4 files")
    assert kept(folder) == set()
    assert {path.name for path in folder.glob("v1/*")} <= {
        "temp", "index.lock", "index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm"
    }  # fmt: skip
    assert not any(secret in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    with closing(DiskStore(folder)) as store:
        assert store.quarantined(FINGERPRINT) == []


def test_a_folder_of_something_else_is_left_alone(run: Run, tmp_path: Path):
    source = tmp_path / "project" / "v1" / "main" / "src" / "hello.c"
    source.parent.mkdir(parents=True)
    source.touch()
    before = sorted((tmp_path / "project").rglob("*"))
    for command in (["purge", "--yes"], ["ls"], ["du"], ["verify", "--delete"], ["rm", "--model", "a", "--yes"]):
        ended = run(*command, "--cache-dir", tmp_path / "project")
        assert (ended.status, ended.out) == (0, f"Nothing is kept in {tmp_path / 'project'}.\n")
    assert sorted((tmp_path / "project").rglob("*")) == before
    DiskStore(tmp_path / "project").close()
    run("purge", "--yes", "--cache-dir", tmp_path / "project")
    assert source.exists()


def test_programs_get_a_list_also_where_there_is_nothing(run: Run, tmp_path: Path):
    assert json.loads(run("ls", "--json").out) == []
    assert not (tmp_path / "cache").exists()


# verify


def spoil(folder: Path) -> tuple[Path, Path]:
    """Damage two files, of which one has another size than before."""
    flipped, cut = path_of(folder, "system prompt"), path_of(folder, "system prompt|second question")
    data = bytearray(flipped.read_bytes())
    data[-7] ^= 4
    flipped.write_bytes(data)
    os.truncate(cut, 600)
    return flipped, cut


def test_sound_files_verify(run: Run, folder: Path):
    ended = run("verify")
    assert ended.status == 0
    assert re.fullmatch(r"4 files, .* KiB: all sound\.\n", ended.out)


def test_damaged_files_are_told_and_left_where_they_are(run: Run, folder: Path):
    flipped, cut = spoil(folder)
    ended = run("verify")
    assert ended.status == 1
    assert f"{flipped} is damaged: its state does not match its checksum.\n" in ended.out
    assert f"{cut} is damaged: it has 600 bytes and not " in ended.out
    assert ended.out.endswith("2 of 4 files damaged.\n")
    assert len(files(folder)) == 4


def test_damaged_files_are_deleted_where_that_is_asked_for(run: Run, folder: Path):
    flipped, cut = spoil(folder)
    assert run("verify", "--delete").status == 1
    assert not flipped.exists()
    assert not cut.exists()
    assert run("verify").status == 0
    with closing(DiskStore(folder)) as store:
        assert_consistent(store)
        assert len(store.records(FINGERPRINT)) == 2


# export and import


@pytest.fixture
def exported(run: Run, folder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "all.tar"
    assert run("export", file).status == 0
    return file


def test_what_is_exported_and_imported_is_the_same(run: Run, folder: Path, exported: Path):
    before = contents(folder)
    run("purge", "--yes")
    ended = run("import", exported)
    assert ended.status == 0
    assert re.fullmatch(rf"toy \({FINGERPRINT.hex()[:8]}\): imported 4 files, .* KiB\.\n", ended.out)
    assert contents(folder) == before
    assert kept(folder) == ALL_FORKED
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(folder)} == {0o600}


def test_what_is_there_is_not_imported_again(run: Run, folder: Path, exported: Path):
    run("rm", id_of("system prompt|second question"), "--yes")
    before = {path: path.stat().st_ino for path in files(folder)}
    assert "imported 1 file, " in (out := run("import", exported).out)
    assert out.endswith("; 3 were there.\n")
    assert {path: path.stat().st_ino for path in before} == before
    assert kept(folder) == ALL_FORKED


def test_an_export_by_id_holds_the_way_there_and_all_behind(run: Run, tmp_path: Path, folder: Path):
    remember(folder, "another", fingerprint=OTHER, name="other")
    run("export", tmp_path / "one.tar", id_of("system prompt|first question"))
    run("import", tmp_path / "one.tar", "--cache-dir", tmp_path / "elsewhere")
    assert kept(tmp_path / "elsewhere") == ALL_FORKED - {"system promptsecond question"}
    assert kept(tmp_path / "elsewhere", OTHER) == set()
    run("export", tmp_path / "model.tar", "--model", "other")
    run("import", tmp_path / "model.tar", "--cache-dir", tmp_path / "again")
    assert kept(tmp_path / "again") == set()
    assert kept(tmp_path / "again", OTHER) == {"another"}


def test_an_export_by_id_takes_along_the_state_that_its_way_shares_with_others(run: Run, tmp_path: Path):
    remember(tmp_path / "cache", "shared and own|more", "shared and other")
    run("export", tmp_path / "one.tar", id_of("shared and other"))
    run("import", tmp_path / "one.tar", "--cache-dir", tmp_path / "elsewhere")
    assert kept(tmp_path / "elsewhere") == {"shared and own", "shared and other"}


def test_what_goes_on_from_what_is_there_can_be_imported_alone(run: Run, folder: Path, exported: Path, tmp_path: Path):
    path_of(folder, "system prompt").unlink()  # what is left leads nowhere
    with closing(DiskStore(folder)) as store:
        models = {model: store.records(FINGERPRINT) for model in store.models()}
        bundle.export(tmp_path / "rest.tar", store, models, lambda _: None)
    remember(tmp_path / "elsewhere", "system prompt")
    run("import", tmp_path / "rest.tar", "--cache-dir", tmp_path / "elsewhere")
    assert kept(tmp_path / "elsewhere") == ALL_FORKED
    nowhere = run("import", tmp_path / "rest.tar", "--cache-dir", tmp_path / "empty")
    assert nowhere.status == 1
    assert "imported 0 files, 0 bytes; 3 left out, since what they go on from is missing" in nowhere.out
    assert files(tmp_path / "empty") == []


def test_damaged_files_are_left_out_of_an_export(run: Run, folder: Path, tmp_path: Path):
    with path_of(folder, "system prompt|first question").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    ended = run("export", tmp_path / "all.tar")
    assert "Exported 3 files" in ended.out
    assert "Left out 1 file: damaged, or deleted meanwhile." in ended.out
    ended = run("import", tmp_path / "all.tar", "--cache-dir", tmp_path / "elsewhere")
    assert "imported 2 files" in ended.out
    assert "; 1 left out" in ended.out
    assert kept(tmp_path / "elsewhere") == {"system prompt", "system promptsecond question"}


def test_quarantined_state_is_not_imported(run: Run, exported: Path, tmp_path: Path):
    wrong = node_of("system prompt|first question").id
    with closing(DiskStore(tmp_path / "elsewhere")) as store:
        store.run(lambda index: index.quarantine(FINGERPRINT, [wrong], 1.0, 0.5))
    ended = run("import", exported, "--cache-dir", tmp_path / "elsewhere")
    assert "imported 2 files" in ended.out
    assert "; 2 left out" in ended.out
    assert kept(tmp_path / "elsewhere") == {"system prompt", "system promptsecond question"}


def test_an_export_that_fails_leaves_the_file_that_was_there(
    run: Run, folder: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
):
    before = exported.read_bytes()

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "close", fail)
    ended = run("export", exported)
    assert (ended.status, ended.err) == (1, f"kvstet: {exported} cannot be written: no space left on device.\n")
    assert exported.read_bytes() == before
    assert sorted(path.name for path in exported.parent.iterdir()) == ["all.tar", "cache"]


def test_an_export_to_nowhere_or_of_nothing_is_one_sentence(run: Run, folder: Path, tmp_path: Path):
    for file, words in (("no/file", "no such file or directory"), ("cache", "it is a folder")):
        ended = run("export", tmp_path / file)
        assert (ended.status, ended.err) == (1, f"kvstet: {tmp_path / file} cannot be written: {words}.\n")
    assert run("export", tmp_path / "x", "--cache-dir", tmp_path / "none").status == 1
    assert not (tmp_path / "none").exists()
    run("purge", "--yes")
    assert run("export", tmp_path / "x").status == 1
    assert not (tmp_path / "x").exists()


def refusal_of(file: Path, store: DiskStore) -> str | None:
    """Import a file; why that is refused."""
    try:
        bundle.publish(bundle.read_bundle(file, lambda _: None), store, lambda _: None)
    except BadExport as error:
        return str(error)
    return None


def test_a_file_that_is_torn_or_changed_anywhere_is_refused_or_harmless(exported: Path, folder: Path, tmp_path: Path):
    whole, before, generator = exported.read_bytes(), contents(folder), random.Random(3)
    end = whole.rindex(b"}") + 1
    num_refused = 0
    with closing(DiskStore(tmp_path / "elsewhere")) as store:
        for number in range(400):
            position = generator.randrange(end)
            torn = bytearray(whole[:position])
            flipped = bytearray(whole)
            flipped[position] ^= 1 << generator.randrange(8)
            exported.write_bytes(torn if number % 2 else flipped)
            refusal = refusal_of(exported, store)
            if refusal:
                num_refused += 1
                assert re.fullmatch(rf"{exported}.*[a-z]\.", refusal)
                assert files(store.folder) == []
            else:  # Of the head of a file in a tar, and between files, not every bit means something.
                assert number % 2 == 0
                assert contents(store.folder) == before
                store.purge(None)
    assert 350 < num_refused < 400


def test_what_is_no_export_is_one_sentence(run: Run, exported: Path, tmp_path: Path):
    foreign = tmp_path / "foreign.tar"
    with tarfile.open(foreign, "w") as tar:
        tar.add(exported, "a")
    later = tmp_path / "later.tar"
    later.write_bytes(exported.read_bytes().replace(b'"version":1}', b'"version":2}'))
    for file in (foreign, later, tmp_path / "missing", tmp_path, Path(__file__)):
        ended = run("import", file, "--cache-dir", tmp_path / "elsewhere")
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert str(file) in ended.err
    assert "written by" not in run("import", later).err
    assert not (tmp_path / "elsewhere").exists()


def rewritten(exported: Path, change: Callable[[tarfile.TarInfo], object]) -> Path:
    """The same file, with a change to the first blob's place in it, or without that blob (False)."""
    file = exported.with_name("rewritten.tar")
    with tarfile.open(exported) as source, tarfile.open(file, "w") as target:
        for number, member in enumerate(source.getmembers()):
            data = source.extractfile(member)
            if number != 1 or change(member) is not False:
                target.addfile(member, data)
    return file


def test_an_export_without_one_of_its_files_is_refused(run: Run, exported: Path, tmp_path: Path):
    ended = run("import", rewritten(exported, lambda _: False), "--cache-dir", tmp_path / "elsewhere")
    assert (ended.status, ended.err[-44:]) == (1, "rewritten.tar is damaged: it holds 3 files and not 4.\n"[-44:])


def test_no_name_leads_out_of_the_folder(run: Run, exported: Path, tmp_path: Path):
    def climb(member: tarfile.TarInfo) -> None:
        member.name = "../../outside/" + member.name

    def become_absolute(member: tarfile.TarInfo) -> None:
        member.name = str(tmp_path / "outside" / "x-0.s")

    def become_a_link(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = tarfile.SYMTYPE, str(tmp_path / "outside"), 0

    before = sorted(tmp_path.iterdir())
    for change in (climb, become_absolute, become_a_link):
        ended = run("import", rewritten(exported, change), "--cache-dir", tmp_path / "elsewhere")
        assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "rewritten.tar"])


def test_an_import_that_fails_half_way_takes_back_what_it_did(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remember(tmp_path / "elsewhere", "system prompt")
    calls: Iterator[int] = iter(range(9))
    write_blob = blobfile.write

    def fail_at_third(*arguments: object) -> int:
        if next(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_blob(*arguments)

    monkeypatch.setattr(blobfile, "write", fail_at_third)
    content = bundle.read_bundle(exported, lambda _: None)
    full = pytest.raises(DiskUnavailable, match="no space left on device")
    with closing(DiskStore(tmp_path / "elsewhere")) as store, full:
        bundle.publish(content, store, lambda _: None)
    assert kept(tmp_path / "elsewhere") == {"system prompt"}


def test_a_file_that_changes_while_it_is_imported_is_refused(exported: Path, tmp_path: Path):
    content = bundle.read_bundle(exported, lambda _: None)
    sound, item = exported.read_bytes(), content.items[-1]
    with exported.open("r+b") as file:
        file.seek(item.offset + item.num_bytes - 1)
        file.write(b"\0")
    # As if the file were another now, which is as sound.
    other = replace(content, items=[replace(item, header=content.items[0].header)])
    with closing(DiskStore(tmp_path / "elsewhere")) as store:
        for changed in (content, other):
            with pytest.raises(BadExport, match="was changed while it was imported"):
                bundle.publish(changed, store, lambda _: None)
            assert files(store.folder) == []
            exported.write_bytes(sound)


# A real server


@pytest.mark.timeout(400)
def test_a_server_finds_what_was_exported_purged_and_imported(run: Run, tmp_path: Path, smollm2_path: Path):
    model = toy_path("llama-dense", context_length=1024, vocabulary=smollm2_path)
    prompt = [7, 8, 9] * 60

    def ask(served: Served) -> dict[str, int]:
        return served.complete(prompt, max_tokens=2)["kvstet"]

    with keeping(tmp_path, model) as served:
        assert ask(served)["computed"] == len(prompt)
        assert eventually(lambda: json.loads(run("ls", "--json").out)[0]["num_blobs"])
        assert eventually(lambda: served.metric("kvstet_unwritten_blobs") == 0)
        assert run("verify").status == 0
        assert run("export", tmp_path / "all.tar").status == 0
    assert run("purge", "--yes").status == 0
    assert run("import", tmp_path / "all.tar").status == 0
    with keeping(tmp_path, model) as served:
        account = ask(served)
        assert (account["loaded"], account["computed"]) == (len(prompt) - 1, 1)
        assert run("rm", "--model", json.loads(run("ls", "--json").out)[0]["name"], "--yes").status == 0
        assert ask(served)["computed"] == 1  # What is live stays live.


def test_commands_wait_for_a_server_that_writes_to_the_index(run: Run, folder: Path):
    writer = sqlite3.connect(folder / "v1" / "index.sqlite3", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    ended = run("rm", "--model", "toy", "--yes")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "database is locked" in ended.err
    writer.execute("ROLLBACK")
    writer.close()
    assert run("rm", "--model", "toy", "--yes").status == 0
