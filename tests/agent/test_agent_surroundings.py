"""What is told of a folder, and that looking at it runs nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvstet.agent.surroundings import PROJECT_FILE, around
from kvstet.agent.tools.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one changed file."""
    git(tmp_path, "init", "--quiet", "--initial-branch", "trunk")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "First")
    (tmp_path / "a.txt").write_text("two\n")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", str(folder), *words], check=True)


async def look(folder: Path) -> Mapping[str, str]:
    return await around(Workspace(folder), dict(os.environ))()


async def test_the_state_of_git_is_told(folder: Path) -> None:
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "remote.origin.url", "https://example.org/x.git")
    git(folder, "config", "branch.trunk.remote", "origin")
    git(folder, "config", "core.hooksPath", ".husky")
    assert (await look(folder))["git status"] == "## trunk\n M a.txt"


async def test_a_long_state_of_git_is_cut(folder: Path) -> None:
    for number in range(60):
        (folder / f"new-{number:02d}").touch()
    lines = (await look(folder))["git status"].splitlines()
    assert (len(lines), lines[-1]) == (41, "(22 more)")


async def test_the_name_of_a_folder_need_not_be_text(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (await look(folder))["workspace"].encode()


async def test_where_there_is_no_repository_none_is_told(tmp_path: Path) -> None:
    assert "git status" not in await look(tmp_path)


@pytest.mark.parametrize("key", ["filter.evil.clean", "filter.evil.process", "filter.a=b.clean"])
@pytest.mark.parametrize("is_included", [False, True])
async def test_a_repository_whose_settings_name_commands_is_not_looked_at(
    folder: Path, key: str, is_included: bool
) -> None:
    """Git runs a filter to see whether a file has changed. Such settings come with a folder that was packed whole."""
    filter_name = key.removeprefix("filter.").rpartition(".")[0]
    (folder / ".git" / "info").mkdir(exist_ok=True)
    (folder / ".git" / "info" / "attributes").write_text(f"* filter={filter_name}\n")
    config = folder / ".git" / ("more" if is_included else "config")
    git(folder, "config", "--file", str(config), key, f"touch {folder}/ran; cat")
    if is_included:
        git(folder, "config", "include.path", "more")
    assert "git status" not in await look(folder)
    assert not (folder / "ran").exists()


async def test_a_repository_that_would_fetch_what_is_missing_is_not_looked_at(folder: Path) -> None:
    git(folder, "config", "remote.origin.promisor", "true")
    git(folder, "config", "remote.origin.uploadpack", f"touch {folder}/ran")
    assert "git status" not in await look(folder)
    assert not (folder / "ran").exists()


async def test_what_a_project_says_is_told_and_a_long_one_is_cut(tmp_path: Path) -> None:
    assert PROJECT_FILE not in await look(tmp_path)
    (tmp_path / PROJECT_FILE).write_text("Use tabs.\n")
    assert (await look(tmp_path))[PROJECT_FILE] == "Use tabs."
    (tmp_path / PROJECT_FILE).write_text("Use tabs.\n" * 10_000)
    told = (await look(tmp_path))[PROJECT_FILE]
    assert told.startswith("Use tabs.")
    assert "characters left out" in told
    assert len(told) < 33_000
