"""The folder that the agent works in, and the only way to its files.

A path is first resolved with all its symbolic links, and has to lie in the folder then. The resolved path is opened
one part after the other, from the folder's descriptor on, and no link is followed any more: whoever swaps a part for a
link in between gets an error, and not another file.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvstet.errors import ToolFailed

MAX_FILE_BYTES = 10_000_000
"""Larger files are not read whole."""

Parts = tuple[str, ...]
"""A resolved path from the workspace on, part by part; the workspace itself has none."""

_PRIVATE = ".git"
"""Whoever writes there has commands run by git: hooks, filters, a file system monitor."""

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE_MODE = 0o666
_NEW_FOLDER_MODE = 0o777
"""Of what was not there before; the user's umask takes its bits from them."""


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file's content as it was read."""

    data: bytes = field(repr=False)
    mode: int
    """Permission bits."""


class Workspace:
    """One folder. Every method raises ToolFailed where a path leads out of it, or is none."""

    def __init__(self, folder: Path) -> None:
        """OSError where it is no folder."""
        self.root = Path(os.path.realpath(folder, strict=True))
        self._identity = _identity(os.stat(self.root))
        with self.folder(()):
            pass

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    def parts(self, path: str) -> Parts:
        """Where a path leads; relative ones begin at the workspace. Nothing need be there."""
        try:
            real = os.path.realpath(os.path.join(self.root, path))
        except (ValueError, OSError) as error:
            raise ToolFailed(f"{path!r} is not a path: {error}.") from None
        inside = os.path.join(self.root, "")
        if real != str(self.root) and not real.startswith(inside):
            raise ToolFailed(f"{path!r} is outside the workspace, and nothing is read or written there.")
        return tuple(part for part in real[len(inside) :].split(os.sep) if part)

    def writable_parts(self, path: str) -> Parts:
        """The same, for what is to be written."""
        parts = self.parts(path)
        if not parts:
            raise ToolFailed(f"{path!r} is the workspace itself, not a file.")
        # Some file systems make no difference between .git and .GIT.
        if any(part.casefold() == _PRIVATE for part in parts):
            raise ToolFailed(f"{path!r} belongs to git, and is not written: use git's own commands.")
        return parts

    @contextmanager
    def folder(self, parts: Parts, *, creating: bool = False) -> Generator[int]:
        """A descriptor of the folder, open for the time of the block."""
        with _translated("/".join(parts) or "."):
            descriptor = self._opened_root()
            try:
                for part in parts:
                    descriptor = _entered(descriptor, part, creating=creating)
                yield descriptor
            finally:
                os.close(descriptor)

    def is_folder(self, path: str) -> bool:
        parts = self.parts(path)
        if not parts:
            return True
        with self.folder(parts[:-1]) as folder:
            found = _stat(parts[-1], folder)
        if found is None:
            raise ToolFailed(f"There is no {path!r}.")
        return stat.S_ISDIR(found.st_mode)

    def read(self, path: str, *, max_bytes: int = MAX_FILE_BYTES) -> FoundFile:
        """A regular file's content; devices, pipes and folders are refused."""
        parts = self.parts(path)
        if not parts:
            raise ToolFailed(f"{path!r} is a folder.")
        with self.folder(parts[:-1]) as folder:
            return read_at(folder, parts[-1], max_bytes=max_bytes)

    def read_if_there(self, path: str) -> FoundFile | None:
        """None where there is no file of this name yet."""
        parts = self.writable_parts(path)
        try:
            with self.folder(parts[:-1]) as folder:
                is_there = _stat(parts[-1], folder) is not None
        except ToolFailed as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return self.read(path) if is_there else None

    def write(self, path: str, data: bytes, *, mode: int | None = None) -> None:
        """Put the file there whole or not at all. A file that has other names (hard links) keeps them out of it."""
        parts = self.writable_parts(path)
        with self.folder(parts[:-1], creating=True) as folder, _translated(path):
            _refuse_special(_stat(parts[-1], folder), path)
            # Not secret, but free: nobody can have put a file or a link there.
            temporary = f".kvstet-{secrets.token_hex(8)}"
            try:
                _write_new(folder, temporary, data, mode)
                os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                _remove(folder, temporary)
                raise

    def _opened_root(self) -> int:
        descriptor = os.open(self.root, _FOLDER_FLAGS)
        if _identity(os.fstat(descriptor)) != self._identity:
            os.close(descriptor)
            raise ToolFailed("The workspace was replaced by another folder.")
        return descriptor


def read_at(folder: int, name: str, *, max_bytes: int) -> FoundFile:
    """A regular file in an open folder. ToolFailed."""
    with _translated(name):
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            _refuse_special(found, name)
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ToolFailed(f"{name!r} is larger than {max_bytes:,} bytes. Search it, or cut out what is needed.")
    return FoundFile(data, stat.S_IMODE(found.st_mode))


def child_folder(folder: int, name: str) -> int:
    """A descriptor of a folder in an open one, to be closed. OSError: it is none, or a link."""
    return os.open(name, _FOLDER_FLAGS, dir_fd=folder)


def is_binary(data: bytes) -> bool:
    return b"\0" in data[:8192]


def _entered(folder: int, part: str, *, creating: bool) -> int:
    """Into a folder of an open one, which is closed once that has worked."""
    if creating and _stat(part, folder) is None:
        os.mkdir(part, _NEW_FOLDER_MODE, dir_fd=folder)
    entered = child_folder(folder, part)
    os.close(folder)
    return entered


def _refuse_special(found: os.stat_result | None, name: str) -> None:
    if found is None or stat.S_ISREG(found.st_mode):
        return
    what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a pipe, a socket or a link"
    raise ToolFailed(f"{name!r} is {what}, not a regular file.")


def _write_new(folder: int, name: str, data: bytes, mode: int | None) -> None:
    """With these permissions; None: as new files have them."""
    descriptor = os.open(name, _NEW_FILE_FLAGS, _NEW_FILE_MODE if mode is None else 0o600, dir_fd=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)


def _remove(folder: int, name: str) -> None:
    if _stat(name, folder) is not None:
        os.unlink(name, dir_fd=folder)


def _stat(name: str, folder: int) -> os.stat_result | None:
    """Of what is called so, be it a link; None where nothing is."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


@contextmanager
def _translated(path: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise ToolFailed(f"{path!r}: {(error.strerror or str(error)).lower()}.") from error
    except ValueError as error:
        raise ToolFailed(f"{path!r} is not a path: {error}.") from None
