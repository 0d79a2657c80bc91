"""Session files that real clients wrote, and what they sent meanwhile. See tests/data/sessions/README.md."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kvstet.traces.format import Header, Line, Plan, Request, Response
from kvstet.traces.importing.importers import Imported, import_file
from kvstet.traces.reading import exchanges

FOLDER = Path(__file__).parents[1] / "data" / "sessions"

CLAUDE, CODEX, PI = "claude-code/{}.jsonl", "codex/{}.jsonl", "pi/{}.jsonl"
OPENCODE, MINI, SWE = "opencode/{}.db", "mini-swe-agent/{}.traj.json", "swe-agent/{}.traj"
EXPORT = "opencode/export.json"

KINDS_BY_FILE = {
    CLAUDE.format("session"): "claude-code",
    CLAUDE.format("compaction"): "claude-code",
    CODEX.format("session"): "codex",
    CODEX.format("compaction"): "codex",
    PI.format("session"): "pi",
    PI.format("compaction"): "pi",
    OPENCODE.format("session"): "opencode",
    OPENCODE.format("compaction"): "opencode",
    EXPORT: "opencode",
    MINI.format("session"): "mini-swe-agent",
    MINI.format("compaction"): "mini-swe-agent",
    SWE.format("session"): "swe-agent",
}


def content(name: str) -> bytes:
    """Of a file, unpacked."""
    return lzma.decompress((FOLDER / f"{name}.xz").read_bytes())


def unpacked(name: str, folder: Path) -> Path:
    """A file as its client left it; the files of sub-agents beside it stay packed."""
    path = folder / Path(name).name
    path.write_bytes(content(name))
    beside = FOLDER / name.partition(".")[0]
    if beside.is_dir():
        shutil.copytree(beside, folder / path.name.partition(".")[0], dirs_exist_ok=True)
    return path


def imported(name: str, folder: Path) -> tuple[Imported, list[Line]]:
    lines = import_file(unpacked(name, folder))
    return lines, list(lines)


def sent(name: str) -> list[dict[str, Any]]:
    """The bodies that the client sent, in order."""
    packed = FOLDER / f"{name.partition('.')[0]}.sent.jsonl.xz"
    entries = map(json.loads, lzma.decompress(packed.read_bytes()).splitlines())
    return [json.loads(entry["body_raw"]) for entry in entries if "count_tokens" not in entry["path"]]


def bodies(lines: Iterable[Line]) -> list[dict[str, Any]]:
    return [json.loads(line.body_raw) for line in lines if isinstance(line, Request)]


def plans(lines: Iterable[Line]) -> list[Plan | None]:
    """What was replied to each request."""
    return [exchange.plan for exchange in exchanges(lines)]


def header(lines: Iterable[Line]) -> Header:
    (first,) = [line for line in lines if isinstance(line, Header)]
    return first


def responses(lines: Iterable[Line]) -> list[Response]:
    return [line for line in lines if isinstance(line, Response)]


def written(path: Path, *entries: object) -> Path:
    """As JSON lines."""
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    return path
