"""A change of one file: shown as a diff, and made only if the file is still what it was when it was shown."""

from __future__ import annotations

import asyncio
import difflib
from dataclasses import dataclass, field

from kvstet.agent.tools.tool import Action, Plan
from kvstet.agent.tools.workspace import FoundFile, Workspace, is_binary
from kvstet.errors import ToolFailed

_MAX_DIFF_LINES = 20_000
"""Longer files are not compared line by line, which would take minutes."""


@dataclass(frozen=True, slots=True)
class Change:
    """The file will have this text."""

    workspace: Workspace
    path: str
    old: FoundFile | None
    """None: there is no such file yet."""
    text: str = field(repr=False)

    def plan(self, tool: str) -> Plan:
        """ToolFailed: it may not be written there, or cannot be."""
        self.workspace.writable_parts(self.path)
        data = self.text.encode(errors="surrogateescape")
        if self.old is not None and self.old.data == data:
            raise ToolFailed(f"{self.path!r} is this already.")
        title = f"{'create' if self.old is None else 'change'} {self.path}"
        return Plan(lambda: asyncio.to_thread(self._make, data), Action(tool, title, self._diff(), repeats=True))

    def _make(self, data: bytes) -> str:
        found = self.workspace.read_if_there(self.path)
        if (found and found.data) != (self.old and self.old.data) or (found is None) != (self.old is None):
            raise ToolFailed(f"{self.path!r} was changed by someone else in the meantime. Read it again.")
        self.workspace.write(self.path, data, mode=found.mode if found else None)
        num_lines = len(self.text.splitlines())
        return f"{'Created' if found is None else 'Changed'} {self.path}, {num_lines:,} lines."

    def _diff(self) -> str:
        # Only at \n: a change of line ends, or of what else passes for one, is to be seen.
        old = [] if self.old is None else self.old.data.decode(errors="replace").split("\n")
        new = self.text.encode(errors="replace").decode().split("\n")
        if len(old) + len(new) > _MAX_DIFF_LINES:
            return f"({len(old):,} lines become {len(new):,} lines.)"
        return "\n".join(difflib.unified_diff(old, new, self.path, self.path, lineterm="", n=2))


def text_of(found: FoundFile, path: str) -> str:
    """A file's text; bytes that are no UTF-8 survive a change around them. ToolFailed: it is binary."""
    if is_binary(found.data):
        raise ToolFailed(f"{path!r} is a binary file.")
    return found.data.decode(errors="surrogateescape")
