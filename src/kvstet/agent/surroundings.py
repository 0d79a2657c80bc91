"""What varies around a turn, told in the turn's own message and only when it is new."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import date

from kvstet.agent.tools.process import run
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.outputs import cut
from kvstet.errors import ToolFailed

Surroundings = Callable[[], Awaitable[Mapping[str, str]]]
"""Names and texts, in one order."""

PROJECT_FILE = "AGENTS.md"
_MAX_PROJECT_CHARACTERS = 32_000
_MAX_STATUS_LINES = 40
_MAX_SECONDS = 5.0
_MAX_GIT_BYTES = 200_000

_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "safe.bareRepository=explicit")
_SETTINGS = ("config", "--list", "--show-scope", "--name-only")
_STATUS = ("status", "--short", "--branch", "--ignore-submodules=all")

_HARMLESS = re.compile(
    r"""
    (system | global | command) \t .*
    | (local | worktree) \t (
        core\.( repositoryformatversion | filemode | bare | logallrefupdates | ignorecase | precomposeunicode | symlinks
            | autocrlf | safecrlf | eol | longpaths | quotepath | abbrev | commentchar | editor | fsmonitor | hookspath
            | excludesfile | attributesfile | sshcommand | untrackedcache | sparsecheckout | sparsecheckoutcone )
        | (advice | alias | branch | color | commit | credential | fetch | gc | http | init | lfs | maintenance | pull
            | push | rebase | rerere | submodule | tag | user) \. .*
        | remote\. .* \.(url | pushurl | fetch | tagopt)
        | extensions\.(worktreeconfig | objectformat)
    )
    """,
    re.VERBOSE,
)
"""Settings with which git, asked for the status, runs nothing else: the user's own, and these of the repository's.
Others name commands (filters) or have objects fetched, and whoever packed the folder may have written them."""


async def nothing() -> Mapping[str, str]:
    """Nothing varies."""
    return {}


def around(workspace: Workspace, environment: Mapping[str, str]) -> Surroundings:
    """The date, the system, the folder, the state of git, and what the project wants agents to know."""

    async def look() -> Mapping[str, str]:
        found = {
            "date": date.today().isoformat(),
            "system": f"{platform.system()} {platform.machine()}",
            "workspace": os.fsencode(workspace.root).decode(errors="replace"),
            "git status": await _git_status(workspace, environment),
            PROJECT_FILE: _project(workspace),
        }
        return {name: text for name, text in found.items() if text}

    return look


async def _git_status(workspace: Workspace, environment: Mapping[str, str]) -> str:
    """Empty where there is none, or where looking at it might run what the user has not allowed."""
    settings = await _git(_SETTINGS, workspace, environment)
    if settings is None or not all(map(_HARMLESS.fullmatch, settings)):
        return ""
    lines = await _git(_STATUS, workspace, environment) or []
    more = len(lines) - _MAX_STATUS_LINES
    return "\n".join([*lines[:_MAX_STATUS_LINES], *([f"({more} more)"] if more > 0 else [])])


async def _git(words: Sequence[str], workspace: Workspace, environment: Mapping[str, str]) -> list[str] | None:
    """What it writes, line by line; None: it failed, or there is no git."""
    try:
        finished = await run(
            (*_GIT, *words),
            folder=str(workspace.root),
            environment=environment,
            max_seconds=_MAX_SECONDS,
            max_bytes=_MAX_GIT_BYTES,
        )
    except ToolFailed:
        return None
    return finished.text.splitlines() if finished.status == 0 else None


def _project(workspace: Workspace) -> str:
    try:
        found = workspace.read(PROJECT_FILE)
    except ToolFailed:
        # There is none, or it is nothing that can be read.
        return ""
    return cut(found.data.decode(errors="replace").strip(), _MAX_PROJECT_CHARACTERS)
