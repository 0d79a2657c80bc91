"""Recorded requests of real clients, in all three dialects."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "data" / "traces"
NAMES = sorted(path.name.removesuffix(".jsonl.xz") for path in FOLDER.glob("*.jsonl.xz"))


def recorded(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path and body of each request."""
    with lzma.open(FOLDER / f"{name}.jsonl.xz", "rt") as file:
        entries = [json.loads(line) for line in file]
    for entry in entries:
        if "body_raw" in entry:
            yield entry["path"], json.loads(entry["body_raw"])
        elif "body" in entry and "path" in entry:
            body = entry["body"]
            yield entry["path"], json.loads(body) if isinstance(body, str) else body
        elif "input" in entry:
            yield "/v1/responses", entry


def plans(name: str) -> Iterator[dict[str, Any]]:
    """What the replies said."""
    with lzma.open(FOLDER / f"{name}.jsonl.xz", "rt") as file:
        yield from (entry["plan"] for line in file if (entry := json.loads(line)).get("plan"))
