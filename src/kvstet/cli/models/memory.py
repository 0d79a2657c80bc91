"""How much memory this machine, or the container on it, has for another model."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from kvstet.cli.stack import needed_bytes
from kvstet.config import ServedOptions

KIB = 1024


class MachineMemory:
    """Implements `kvstet.cli.models.pool.Memory`.

    Two measures, of which the smaller counts: what the system calls available, and the whole less what models that are
    loaded should take. The system counts their mapped files as available, though they cannot do without them.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        """``root`` is where proc and sys are; elsewhere in tests."""
        self._root = root

    def needed_bytes(self, options: ServedOptions) -> int | None:
        return needed_bytes(options)

    def free_bytes(self, taken_bytes: int) -> int | None:
        total, available = self._total_bytes(), self._available_bytes()
        measures = [*([] if total is None else [total - taken_bytes]), *([] if available is None else [available])]
        return max(0, min(measures)) if measures else None

    def _total_bytes(self) -> int | None:
        found = [self._meminfo_bytes("MemTotal") or _physical_bytes(), self._number("sys/fs/cgroup/memory.max")]
        return min((number for number in found if number is not None), default=None)

    def _available_bytes(self) -> int | None:
        found = [self._meminfo_bytes("MemAvailable"), self._container_bytes()]
        return min((number for number in found if number is not None), default=None)

    def _container_bytes(self) -> int | None:
        """What the container may still take; None where it has no limit."""
        most, used = self._number("sys/fs/cgroup/memory.max"), self._number("sys/fs/cgroup/memory.current")
        if most is None or used is None:
            return None
        # Files that were read count as used, though they make way.
        files = re.search(r"^inactive_file (\d+)$", self._text("sys/fs/cgroup/memory.stat"), re.MULTILINE)
        return max(0, most - used + (int(files[1]) if files else 0))

    def _meminfo_bytes(self, name: str) -> int | None:
        found = re.search(rf"^{name}: +(\d+) kB$", self._text("proc/meminfo"), re.MULTILINE)
        return int(found[1]) * KIB if found else None

    def _number(self, path: str) -> int | None:
        text = self._text(path).strip()
        return int(text) if text.isdigit() else None

    def _text(self, path: str) -> str:
        """Empty where there is no such file."""
        with contextlib.suppress(OSError):
            return (self._root / path).read_text()
        return ""


def _physical_bytes() -> int | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
