"""A process that writes into a cache folder, to be killed or to run beside another one.

Reads lines ``folder seed count function call``. For each it forks a child, which spares the time for the imports. The
child prints its process id when it begins to write, and kills itself before the so manieth call of the named function
of `blobfile` or `os` (0: never); its exit code is printed when it is done, negative where a signal ended it.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import traceback
from pathlib import Path

from tests.cache.records import FINGERPRINT, record, state

from kvstet.cache.disk import blobfile, database
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.disk.tier import DiskTier

NUM_NAMES = 100
"""Few enough that writers meet."""


def write_blobs(folder: Path, seed: int, count: int) -> None:
    """Write ``count`` blobs, and drop one in five of them again."""
    rng = random.Random(seed)
    store = DiskStore(folder)
    tier = DiskTier(store, FINGERPRINT, capacity_bytes=1 << 40, write_bytes_per_hour=None)
    print(os.getpid(), flush=True)
    for _ in range(count):
        name = rng.randrange(NUM_NAMES)
        blob = record(str(name), start=name)
        tier.write(blob, state(name, 20_000 * (name % 7)))
        tier.wait()
        (written,) = tier.finished()
        assert written.error is None, written
        if rng.random() < 0.2:
            tier.drop([blob.key])
    tier.close()
    store.close()


def die_at(function: str, call: int) -> None:
    """Let the process end as if by ``kill -9`` before the so manieth call of a function."""
    module = blobfile if hasattr(blobfile, function) else os
    inner, calls = getattr(module, function), itertools.count(1)

    def outer(*arguments: object) -> object:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments)

    setattr(module, function, outer)


def main() -> None:
    os.fsync = lambda _file: None  # What it is for cannot be seen by those who start this.
    database.BUSY_SECONDS = 60.0  # Of two that write at once, either may stand still for a while.
    for line in sys.stdin:
        folder, seed, count, function, call = line.split()
        pid = os.fork()
        if pid == 0:
            try:
                die_at(function, int(call))
                write_blobs(Path(folder), int(seed), int(count))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
