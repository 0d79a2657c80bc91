"""Run one step of the checks under a headline, and say how long it took: ``step.py NAME COMMAND...``."""

from __future__ import annotations

import subprocess
import sys
import time


def main() -> int:
    name, *command = sys.argv[1:]
    print(f"==> {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = subprocess.run(command, check=False).returncode
    verdict = "ok" if code == 0 else f"failed with exit code {code}"
    print(f"    {name} {verdict} after {time.monotonic() - start:.1f} s", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
