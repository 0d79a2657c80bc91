"""Running a command: for a time, in a process group of its own, without input, and with an end for all of its children.

A child can leave its group. So every command has a mark in its environment, which its children inherit, and whoever
bears it is ended with the command. Only a child that leaves its group *and* clears its environment lives on, or one
that runs as another user, such as root.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from asyncio.subprocess import DEVNULL
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from kvstet.errors import ToolFailed

_MARK = "KVSTET_COMMAND"
_PIPE_SECONDS = 0.2
"""How long what is left in the pipe is waited for, once all processes have ended."""
_ROUNDS = 5
"""A child may start another one while the children are ended."""
_END_SECONDS = 5.0
"""How long a command that was killed is waited for: one of another user is not ended by it."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    status: int | None
    """Exit status, negative for a signal; None: it ran out of time."""
    text: str = field(repr=False)
    """What it wrote, to standard output and standard error as it came; a note stands where some was left out."""


class _Output:
    """Keeps the beginning and the end of what is written."""

    def __init__(self, max_bytes: int) -> None:
        self._max_half = max_bytes // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._num_left_out_bytes = 0
        self.is_at_end = asyncio.Event()

    def add(self, data: bytes) -> None:
        taken = self._max_half - len(self._head)
        self._head += data[:taken]
        self._tail += data[taken:]
        excess = len(self._tail) - self._max_half
        if excess > 0:
            del self._tail[:excess]
            self._num_left_out_bytes += excess

    @property
    def text(self) -> str:
        head, tail = self._head.decode(errors="replace"), self._tail.decode(errors="replace")
        if not self._num_left_out_bytes:
            return (self._head + self._tail).decode(errors="replace")
        return f"{head}\n[... {self._num_left_out_bytes:,} bytes left out ...]\n{tail}"


async def run(
    command: Sequence[str], *, folder: str, environment: Mapping[str, str], max_seconds: float, max_bytes: int
) -> Finished:
    """Run it to its end. ToolFailed: it does not start. Cancelled, the command is ended too."""
    mark = secrets.token_hex(16)
    with _pipe(_Output(max_bytes)) as (output, write_end):
        process = await _started(command, folder, {**environment, _MARK: mark}, write_end)
        try:
            async with asyncio.timeout(max_seconds):
                status = await process.wait()
        except TimeoutError:
            status = None
        finally:
            _end_all(process, mark)
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await asyncio.shield(process.wait())
        with suppress(TimeoutError):
            async with asyncio.timeout(_PIPE_SECONDS):
                await output.is_at_end.wait()
    return Finished(status, output.text)


async def _started(
    command: Sequence[str], folder: str, environment: Mapping[str, str], write_end: int
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=environment, stdin=DEVNULL, stdout=write_end, stderr=write_end,
            start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ToolFailed(f"The command cannot be started: {error}.") from None
    finally:
        os.close(write_end)


@contextmanager
def _pipe(output: _Output) -> Generator[tuple[_Output, int]]:
    """What is written into the descriptor is added to the output, as long as the block runs.

    A pipe of our own, and not asyncio's: it can be let go of while some process still holds its other end.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with suppress(BlockingIOError):
            data = os.read(read_end, 1 << 16)
            output.add(data)
            if not data:
                loop.remove_reader(read_end)
                output.is_at_end.set()

    loop.add_reader(read_end, read)
    try:
        yield output, write_end
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)


def _end_all(process: asyncio.subprocess.Process, mark: str) -> None:
    """The command, its group, and whoever bears its mark."""
    # Even where the command itself has ended: in its group, children may fork faster than anybody can look. Numbers are
    # given out in turn, so that nobody else has this one yet. Not permitted: all that is left runs as another user.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(_ROUNDS):
        left = list(_marked(mark))
        if not left:
            return
        for child in left:
            with suppress(psutil.Error):
                child.kill()


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                yield process
