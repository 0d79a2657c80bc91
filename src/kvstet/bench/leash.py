"""Runs one command, and lets nothing of it live on: ``python -m kvstet.bench.leash COMMAND...``.

Started as the leader of a session of its own, with a pipe as its standard input. When the command ends, or when the
pipe closes because whoever held it is gone (also by SIGKILL, and also while the command is stopped), the whole process
group is killed. It imports nothing but the standard library, to be there at once and to take little memory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def hold(command: Sequence[str]) -> None:
    """Returns never: it ends with its group."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_when_let_go, daemon=True).start()
    process.wait()
    os.killpg(0, signal.SIGKILL)


def _kill_when_let_go() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    hold(sys.argv[1:])
