"""The command line: puts the layers together."""

import os
import signal
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


# Ctrl-C while all this is imported: there is nothing to clean up, and a traceback through whatever is just being
# imported would tell nothing. Not by an exception, which some module might swallow.
_is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
if _is_ours:
    signal.signal(signal.SIGINT, _leave)

from kvstet.cli.main import main  # noqa: E402

if _is_ours:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["main"]
