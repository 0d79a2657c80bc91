"""The command line: puts the layers together."""

import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


@contextmanager
def _left_at_once() -> Generator[None]:
    """By Ctrl-C while all is imported: there is nothing to clean up, and a traceback through whatever is just being
    imported would tell nothing. Not by an exception, which some module might swallow."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_ours:
        signal.signal(signal.SIGINT, _leave)
    yield
    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)


with _left_at_once():
    from kvstet.cli.main import main

__all__ = ["main"]
