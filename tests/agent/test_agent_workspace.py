"""Nothing outside of the workspace is read or written, whatever a path looks like."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstet.agent.tools.workspace import Workspace
from kvstet.errors import ToolFailed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A workspace beside a secret; ``work-too`` begins with its name."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "work-too").mkdir()
    (tmp_path / "work-too" / "secret.txt").write_text("secret")
    work = tmp_path / "work"
    (work / "src").mkdir(parents=True)
    (work / "src" / "a.py").write_text("a = 1\n")
    return work


@pytest.fixture
def workspace(folder: Path) -> Workspace:
    return Workspace(folder)


ESCAPES = [
    "../secret.txt",
    "src/../../secret.txt",
    "./src/./../../secret.txt",
    "src//..//..//secret.txt",
    "../work-too/secret.txt",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "/proc/self/root/etc/passwd",
    "/proc/self/cwd/../../../../../../etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "src/../../work-too/secret.txt",
    "../../../../../../../../../../etc/passwd",
    "..",
    "../",
    "/",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_a_path_that_leads_out_is_refused_for_reading_and_writing(workspace: Workspace, path: str) -> None:
    with pytest.raises(ToolFailed, match="outside the workspace"):
        workspace.read(path)
    with pytest.raises(ToolFailed, match="outside the workspace"):
        workspace.write(path, b"x")


@pytest.mark.parametrize(
    "path", ["a\0b", "\0", "\ud800", "x" * 5000, "src/a.py/b", "~/x", "file:///etc/passwd", "", "."]
)
def test_what_is_no_path_to_a_file_is_refused_in_words(workspace: Workspace, path: str) -> None:
    with pytest.raises(ToolFailed):
        workspace.read(path)


def test_an_absolute_path_into_the_workspace_is_fine(workspace: Workspace, folder: Path) -> None:
    assert workspace.read(str(folder / "src" / "a.py")).data == b"a = 1\n"


@pytest.mark.parametrize("target", ["../secret.txt", "/etc/passwd", "/proc/self/environ"])
def test_a_link_that_leads_out_is_not_followed(workspace: Workspace, folder: Path, target: str) -> None:
    (folder / "link").symlink_to(target)
    with pytest.raises(ToolFailed, match="outside"):
        workspace.read("link")
    with pytest.raises(ToolFailed, match="outside"):
        workspace.write("link", b"x")
    assert (folder.parent / "secret.txt").read_text() == "secret"


def test_a_linked_folder_that_leads_out_is_not_entered(workspace: Workspace, folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "chain").symlink_to("up")
    for path in ("up/secret.txt", "chain/secret.txt", "up/work-too/secret.txt"):
        with pytest.raises(ToolFailed, match="outside"):
            workspace.read(path)
    with pytest.raises(ToolFailed, match="outside"):
        workspace.write("up/new.txt", b"x")
    assert not (folder.parent / "new.txt").exists()


def test_a_link_within_the_workspace_leads_to_its_file(workspace: Workspace, folder: Path) -> None:
    (folder / "link.py").symlink_to("src/a.py")
    assert workspace.read("link.py").data == b"a = 1\n"
    workspace.write("link.py", b"a = 2\n")
    assert (folder / "link.py").is_symlink()
    assert (folder / "src" / "a.py").read_text() == "a = 2\n"


def test_links_in_a_circle_are_refused(workspace: Workspace, folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(ToolFailed):
        workspace.read("a")


def test_a_folder_swapped_for_a_link_after_it_was_checked_is_not_entered(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = workspace.parts("src/secret.txt")
    (folder / "src").rename(folder / "old")
    (folder / "src").symlink_to("../work-too")
    monkeypatch.setattr(Workspace, "parts", lambda self, path: resolved)
    with pytest.raises(ToolFailed):
        workspace.read("src/secret.txt")
    with pytest.raises(ToolFailed):
        workspace.write("src/secret.txt", b"x")
    assert (folder.parent / "work-too" / "secret.txt").read_text() == "secret"


def test_while_links_are_swapped_all_the_time_nothing_outside_is_ever_read(workspace: Workspace, folder: Path) -> None:
    (folder / "src" / "secret.txt").write_text("harmless")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            os.rename(folder / "src", folder / "kept")
            os.symlink("../work-too", folder / "src")
            os.unlink(folder / "src")
            os.rename(folder / "kept", folder / "src")

    swapping = threading.Thread(target=swap)
    swapping.start()
    read: list[bytes] = []
    try:
        for _ in range(2000):
            try:
                read.append(workspace.read("src/secret.txt").data)
            except ToolFailed:
                continue
    finally:
        done.set()
        swapping.join()
    assert set(read) <= {b"harmless"}


def test_a_workspace_that_is_replaced_is_not_entered(workspace: Workspace, folder: Path) -> None:
    folder.rename(folder.parent / "moved")
    (folder.parent / "work-too").rename(folder)
    with pytest.raises(ToolFailed, match="replaced"):
        workspace.read("secret.txt")


def test_a_workspace_reached_through_a_link_is_the_folder_behind_it(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    workspace = Workspace(link)
    assert workspace.root == folder
    assert workspace.read(str(link / "src" / "a.py")).data == b"a = 1\n"


@pytest.fixture
def special(folder: Path) -> Iterator[Path]:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)
        server.bind("socket")
        os.chdir(here)
        yield folder


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["pipe", "socket", "src"])
@pytest.mark.usefixtures("special")
def test_what_is_no_regular_file_is_refused_at_once(workspace: Workspace, name: str) -> None:
    with pytest.raises(ToolFailed):
        workspace.read(name)
    with pytest.raises(ToolFailed):
        workspace.write(name, b"x")


@pytest.mark.parametrize("path", [".git/config", ".git/hooks/pre-commit", ".GIT/config", "src/.git/config"])
def test_what_git_runs_is_not_written(workspace: Workspace, folder: Path, path: str) -> None:
    with pytest.raises(ToolFailed, match="git"):
        workspace.write(path, b"x")
    assert not (folder / ".git").exists()


def test_a_file_is_written_whole_and_keeps_its_permissions(workspace: Workspace, folder: Path) -> None:
    script = folder / "run.sh"
    script.write_text("old")
    script.chmod(0o751)
    workspace.write("run.sh", b"new", mode=stat.S_IMODE(script.stat().st_mode))
    assert script.read_text() == "new"
    assert stat.S_IMODE(script.stat().st_mode) == 0o751
    assert sorted(path.name for path in folder.iterdir()) == ["run.sh", "src"]


def test_a_new_file_gets_the_permissions_that_the_umask_leaves(workspace: Workspace, folder: Path) -> None:
    before = os.umask(0o027)
    try:
        workspace.write("deep/er/new.txt", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "deep/er/new.txt").stat().st_mode) == 0o640
    assert stat.S_IMODE((folder / "deep").stat().st_mode) == 0o750


def test_another_name_of_the_same_file_keeps_what_it_had(workspace: Workspace, folder: Path) -> None:
    (folder / "inside").hardlink_to(folder.parent / "secret.txt")
    workspace.write("inside", b"new")
    assert (folder.parent / "secret.txt").read_text() == "secret"


def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ToolFailed, match="no space left"):
        workspace.write("new.txt", b"new")
    assert [path.name for path in folder.iterdir()] == ["src"]


def test_a_large_file_is_not_read(workspace: Workspace, folder: Path) -> None:
    (folder / "large").write_bytes(b"x" * 101)
    with pytest.raises(ToolFailed, match="larger than 100 bytes"):
        workspace.read("large", max_bytes=100)
    assert len(workspace.read("large", max_bytes=101).data) == 101


def test_a_workspace_has_to_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Workspace(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(ToolFailed):
        Workspace(tmp_path / "file")
