"""The machine on which the numbers were made."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from kvstet.bench import results
from kvstet.bench.software import num_usable_cores


def this_machine() -> results.Machine:
    return results.Machine(
        processor=_processor(),
        num_cores=num_usable_cores(),
        ram_bytes=psutil.virtual_memory().total,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
    )


def _processor() -> str:
    """Linux tells the processor's name in a file; elsewhere, what Python knows will do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
