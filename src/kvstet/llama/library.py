"""libllama itself: started once per process, its log lines in Python's logging, and which build it is."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version

import llama_cpp.llama_cpp as lib

logger = logging.getLogger("kvstet.llama")

LOG_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.WARNING, 4: logging.ERROR}
"""`enum ggml_log_level`, without NONE (0) and CONT (5). libllama's INFO is hundreds of lines per model: our DEBUG."""

CONTINUED = 5
"""GGML_LOG_LEVEL_CONT: the text goes on from the one before."""


class LibraryLog:
    """Receives libllama's log texts, joins them to lines, and passes these to `logger`.

    libllama calls it from C, where no exception may pass: what is raised meanwhile (Ctrl-C runs its handler in
    whatever Python code comes next, which may be this) is kept for `take_interrupt`.
    """

    def __init__(self) -> None:
        self._text = ""
        self._level = logging.DEBUG
        self._collectors: list[list[str]] = []
        self._interrupt: BaseException | None = None

    def receive(self, level: int, text: bytes | None, _: object) -> None:
        """One text as libllama logs it: a line, several lines, or a part of one."""
        try:
            self._join(level, (text or b"").decode("utf-8", "replace"))
        except BaseException as error:
            self._interrupt = error

    @contextmanager
    def errors(self) -> Generator[list[str], None, None]:
        """The error lines that are logged inside the block, by any thread."""
        lines: list[str] = []
        self._collectors.append(lines)
        try:
            yield lines
        finally:
            # By identity: two empty lists are equal.
            self._collectors = [collector for collector in self._collectors if collector is not lines]

    def take_interrupt(self) -> BaseException | None:
        """What was raised while libllama logged, once."""
        interrupt, self._interrupt = self._interrupt, None
        return interrupt

    def _join(self, level: int, text: str) -> None:
        if level != CONTINUED:
            self._level = LOG_LEVELS.get(level, logging.DEBUG)
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if line.strip():
                self._emit(line.rstrip())

    def _emit(self, line: str) -> None:
        if self._level == logging.ERROR:
            for collector in self._collectors:
                collector.append(line)
        logger.log(self._level, "%s", line)


log = LibraryLog()
_callback = lib.llama_log_callback(log.receive)
"""Lives as long as libllama may call it."""


@functools.cache
def initialize() -> None:
    """Start libllama's backends and take over its log; only the first call does anything."""
    lib.llama_log_set(_callback, ctypes.c_void_p(0))
    lib.llama_backend_init()


@functools.cache
def build_id() -> str:
    """Identifies the build and its state formats; saved state is only good for the build that wrote it.

    libllama has no build number of its own that is exported, so the release of the bindings that carry it stands in.
    """
    parts = (
        f"llama_cpp_python {version('llama_cpp_python')}",
        f"llama.cpp {lib.llama_version().decode()}",
        f"session {lib.LLAMA_SESSION_VERSION}",
        f"sequence {lib.LLAMA_STATE_SEQ_VERSION}",
    )
    return "; ".join(parts)
