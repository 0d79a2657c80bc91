"""The files of a workspace in one order, without what git ignores. Links are named, and never followed."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from kvstet.agent.tools.ignore import Ignored
from kvstet.agent.tools.workspace import Parts, Workspace, child_folder, read_at
from kvstet.errors import ToolFailed

_MAX_IGNORE_BYTES = 100_000
_MAX_DEPTH = 40
"""Deeper folders are not looked into: each takes an open file."""


@dataclass(frozen=True, slots=True)
class FoundEntry:
    """A file, a folder or a link."""

    path: str
    """From the workspace on."""
    is_folder: bool
    is_link: bool
    folder: int
    """Descriptor of the folder that it lies in, open until the next one is asked for."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def depth(self) -> int:
        return self.path.count("/")


def walk(workspace: Workspace, parts: Parts, *, max_depth: int = _MAX_DEPTH) -> Iterator[FoundEntry]:
    """What lies below a folder, sorted by name, a folder before what is in it. ToolFailed: it is none."""
    ignored = _ignored_above(workspace, parts)
    with workspace.folder(parts) as folder:
        yield from _below(folder, "".join(f"{part}/" for part in parts), ignored, max_depth)


def _below(folder: int, prefix: str, ignored: Ignored, depth: int) -> Generator[FoundEntry]:
    ignored = _with_file(folder, prefix, ignored)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, is_folder = prefix + entry.name, entry.is_dir(follow_symlinks=False)
        if ignored.has(path, is_folder=is_folder):
            continue
        yield FoundEntry(path, is_folder, entry.is_symlink(), folder)
        if is_folder and depth > 1:
            yield from _inside(folder, entry.name, path, ignored, depth)


def _inside(folder: int, name: str, path: str, ignored: Ignored, depth: int) -> Generator[FoundEntry]:
    try:
        child = child_folder(folder, name)
    except OSError:
        # It may not be read, or is gone: it is named, and that is all that can be said.
        return
    try:
        yield from _below(child, f"{path}/", ignored, depth - 1)
    finally:
        os.close(child)


def _ignored_above(workspace: Workspace, parts: Parts) -> Ignored:
    ignored = Ignored()
    for length in range(len(parts)):
        with workspace.folder(parts[:length]) as folder:
            ignored = _with_file(folder, "".join(f"{part}/" for part in parts[:length]), ignored)
    return ignored


def _with_file(folder: int, prefix: str, ignored: Ignored) -> Ignored:
    try:
        found = read_at(folder, ".gitignore", max_bytes=_MAX_IGNORE_BYTES)
    except ToolFailed:
        # There is none, or none that can be read.
        return ignored
    return ignored.with_file(prefix, found.data.decode(errors="replace"))
