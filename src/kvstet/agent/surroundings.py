"""What varies around a turn, told in the turn's own message and only when it is new."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Mapping
from datetime import date

from kvstet.agent.tools.process import run
from kvstet.agent.tools.workspace import Workspace
from kvstet.errors import ToolFailed

Surroundings = Callable[[], Awaitable[Mapping[str, str]]]
"""Names and texts, in one order."""

PROJECT_FILE = "AGENTS.md"
_MAX_PROJECT_BYTES = 32_000
_MAX_STATUS_LINES = 40
_MAX_SECONDS = 5.0

_GIT = (
    # A repository's settings can name commands that git runs. None of these may run unasked.
    "git",
    "--no-optional-locks",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "safe.bareRepository=explicit",
    "status",
    "--short",
    "--branch",
    "--ignore-submodules=all",
)


async def nothing() -> Mapping[str, str]:
    """Nothing varies."""
    return {}


def around(workspace: Workspace, environment: Mapping[str, str]) -> Surroundings:
    """The date, the system, the folder, the state of git, and what the project wants agents to know."""

    async def look() -> Mapping[str, str]:
        found = {
            "date": date.today().isoformat(),
            "system": f"{platform.system()} {platform.machine()}",
            "workspace": str(workspace.root),
            "git status": await _git_status(workspace, environment),
            PROJECT_FILE: _project(workspace),
        }
        return {name: text for name, text in found.items() if text}

    return look


async def _git_status(workspace: Workspace, environment: Mapping[str, str]) -> str:
    try:
        finished = await run(
            _GIT, folder=str(workspace.root), environment=environment, max_seconds=_MAX_SECONDS, max_bytes=20_000
        )
    except ToolFailed:
        # There is no git.
        return ""
    lines = finished.text.splitlines()
    if finished.status != 0:
        return ""
    more = len(lines) - _MAX_STATUS_LINES
    return "\n".join([*lines[:_MAX_STATUS_LINES], *([f"({more} more)"] if more > 0 else [])])


def _project(workspace: Workspace) -> str:
    try:
        found = workspace.read(PROJECT_FILE, max_bytes=_MAX_PROJECT_BYTES)
    except ToolFailed:
        # There is none, or it is nothing that can be read.
        return ""
    return found.data.decode(errors="replace").strip()
