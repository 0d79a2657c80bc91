"""Writes a trace while requests are served: in a thread of its own, so that nothing waits for it.

A line is written as soon as it is known, whole or not at all, so a server that is killed leaves a trace that can be
read. What cannot be written is lost, told once and counted; requests are served all the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread

from kvstet import __version__
from kvstet.errors import InvalidRequest
from kvstet.traces.answers import Answer, plain, response_of
from kvstet.traces.format import VERSION, Header, Line, Request
from kvstet.traces.keys import without_keys
from kvstet.traces.writing import PRIVATE, encoded

logger = logging.getLogger("kvstet.traces")

MAX_WAITING_BYTES = 256 * 1024**2
"""Of lines that wait to be written; what comes beyond that is lost."""

_PRIVATE_FOLDER = 0o700


class TraceFile:
    """A file of one's own, to which whole lines are appended."""

    def __init__(self, path: Path) -> None:
        """Another trace may be there already. InvalidRequest: it cannot be written, or another process does that."""
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._file)
            raise InvalidRequest(f"Another process records into {path}.") from error
        except OSError as error:
            raise InvalidRequest(f"Cannot record into {path}: {error.strerror}.") from error
        self._num_bytes = os.fstat(self._file).st_size
        if self._num_bytes and os.pread(self._file, 1, self._num_bytes - 1) != b"\n":
            self.write(b"")  # The last line was torn; it ends here.

    def __repr__(self) -> str:
        return f"TraceFile({self.path}, {self._num_bytes:,} bytes)"

    def write(self, line: bytes) -> None:
        """OSError: nothing of it was written."""
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # A device has no size; nothing stays there either.
                os.ftruncate(self._file, self._num_bytes)
            raise
        self._num_bytes += len(line) + 1

    def close(self) -> None:
        os.close(self._file)


class Recorder:
    """Takes requests and answers, in any thread, and returns at once."""

    def __init__(self, path: Path, name: str) -> None:
        """``path`` is a file, or a folder for one of the name and the time. InvalidRequest: it cannot be written."""
        self.num_lost = 0
        """Lines that could not be written."""
        self._started_at = time.monotonic()
        self._file = TraceFile(file_in(path, name))
        self._numbers = count(1)
        self._waiting: SimpleQueue[tuple[Callable[[], Line], int] | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._lock = Lock()
        header = Header(kvstet_trace=VERSION, by=f"kvstet {__version__} {name}", wall=time.time())
        self._put(lambda: header, 0)
        self._writer = Thread(target=self._write_all, name="kvstet-recorder", daemon=True)
        self._writer.start()

    def __repr__(self) -> str:
        return f"Recorder({self._file!r}, {self.num_lost} lost)"

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def begin(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes) -> int:
        """A request has come, whole; ``path`` with its query. Its number."""
        seq, t = next(self._numbers), self._seconds()
        fields = list(headers)
        self._put(
            lambda: Request(seq=seq, t=t, method=method, path=path, headers=fields, body_raw=_body_of(fields, body)),
            len(body),
        )
        return seq

    def end(self, seq: int, answer: Answer) -> None:
        """It is over."""
        t = self._seconds()
        self._put(lambda: response_of(answer, seq, t), answer.num_bytes)

    def close(self) -> None:
        """Once all is written that can be. May be called more than once."""
        if self._writer.is_alive():
            self._waiting.put(None)
            self._writer.join()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started_at, 6)

    def _put(self, make: Callable[[], Line], num_bytes: int) -> None:
        """To be made and written in the thread."""
        with self._lock:
            has_room = self._waiting_bytes + num_bytes <= MAX_WAITING_BYTES
            self._waiting_bytes += num_bytes if has_room else 0
        if has_room:
            self._waiting.put((make, num_bytes))
        else:
            self._lose("too much waits to be written")

    def _write_all(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            make, num_bytes = waiting
            try:
                self._file.write(encoded(without_keys(make())))
            except OSError as error:
                self._lose(error.strerror or str(error))
            except Exception as error:
                # What others' errors say may quote the request, and prompts do not belong into logs.
                self._lose(type(error).__name__)
            with self._lock:
                self._waiting_bytes -= num_bytes
        self._file.close()

    def _lose(self, reason: str) -> None:
        with self._lock:
            self.num_lost += 1
            is_first = self.num_lost == 1
        if is_first:
            logger.warning("%s is not complete: %s. Requests are served all the same.", self.path, reason)


def _body_of(headers: Iterable[tuple[str, str]], body: bytes) -> str:
    """What cannot be unpacked is not kept."""
    encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "")
    return (plain(body, encoding) or b"").decode("utf-8", "replace")


def file_in(path: Path, name: str) -> Path:
    """The path itself, or in a folder a new file. InvalidRequest: the folder cannot be made."""
    if path.suffix == ".xz":
        raise InvalidRequest("A trace is packed when it is complete: record into a .jsonl file, then use xz.")
    if not path.is_dir() and (path.exists() or path.suffix):
        return path
    try:
        path.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"Cannot record into {path}: {error.strerror}.") from error
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}{f'-{number}' if number else ''}.jsonl" for number in count())
    return next(path / name for name in names if not (path / name).exists())
