"""Runs a client as a child in the foreground, with its files in a private folder that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kvstet.cli.clients.client import FOLDER, Setup

FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
"""A terminal sends these to all processes in its foreground, so that the client has them already."""

PASSED = (*FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP)

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def run(command: Sequence[str], setup: Setup, environment: Mapping[str, str]) -> int:
    """Start ``command`` as a setup says, wait for it, and give its exit status; 128 + N if signal N ended it.

    ``environment`` is what it gets unless the setup says otherwise. Raises OSError if it cannot be started.
    """
    child = _Child()
    with child.receiving_signals(), _placed(setup) as folder:
        variables = {name: value for name, value in environment.items() if name not in setup.hidden}
        variables |= {name: value.replace(FOLDER, folder) for name, value in setup.environment.items()}
        return child.run([word.replace(FOLDER, folder) for word in command], variables)


def past_proxies(environment: Mapping[str, str], host: str) -> dict[str, str]:
    """Variables that keep a client from asking a proxy for the server, where it would ask one."""
    if not any(name in environment or name.upper() in environment for name in PROXIES):
        return {}
    present = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = ",".join(filter(None, (present, host)))
    return {"no_proxy": hosts, "NO_PROXY": hosts}


@contextmanager
def _placed(setup: Setup) -> Generator[str]:
    """Write the setup's files; yields where they are. The folder is the user's alone."""
    if not setup.files:
        yield ""
        return
    folder = tempfile.mkdtemp(prefix="kvstet-launch-")
    try:
        for name, content in setup.files.items():
            path = Path(folder, name)
            path.touch(mode=0o600)
            path.write_text(content, encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Child:
    """A process, and the signals that are meant for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []

    @contextmanager
    def receiving_signals(self) -> Generator[None]:
        """Within, no signal ends this process before the child has ended."""
        previous: dict[int, Any] = {}
        for number in PASSED:
            # What is ignored (nohup) stays so, here and in the child.
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        if self._early:
            return 128 + self._early[0]
        self._process = subprocess.Popen(command, env=environment)
        for number in self._early:
            self._process.send_signal(number)
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in FROM_TERMINAL and _is_in_foreground():
            return
        if self._process is None:
            self._early.append(number)
        else:
            self._process.send_signal(number)


def _is_in_foreground() -> bool:
    """Whether a terminal's Ctrl-C goes to this process and its children."""
    for descriptor in (0, 1, 2):
        with suppress(OSError):  # Not a terminal, or closed.
            return os.tcgetpgrp(descriptor) == os.getpgrp()
    return False
