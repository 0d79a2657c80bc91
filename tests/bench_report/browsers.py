"""Where this machine has a browser for tests, if it has one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
NONE = f"There is no browser: none of {', '.join(NAMES)} is on PATH, and KVSTET_BROWSER names none."
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)


def browser_path() -> Path:
    """`KVSTET_BROWSER`, or what is on PATH. Without one the test is skipped; where ``CI`` is set, it fails."""
    named = os.environ.get("KVSTET_BROWSER")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI"):
        pytest.fail(NONE)
    if found is None:
        pytest.skip(NONE)
    return Path(found)
