"""Editing a file: one piece of text, which must be there once, replaced by another."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.change import Change, text_of
from kvstet.agent.tools.tool import Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.workspace import Workspace
from kvstet.errors import ToolFailed


class EditArguments(Struct, forbid_unknown_fields=True):
    path: Annotated[str, Meta(description="Path of the file, from the workspace on.")]
    old: Annotated[str, Meta(min_length=1, description="The text to replace, exactly as it stands there, and once.")]
    new: Annotated[str, Meta(description="What stands there afterwards.")]


class Edit:
    """Changes a part of a file."""

    only_reads = False
    schema: Schema = schema_of(
        "edit",
        "Replace a piece of text in a file. It must be there exactly once, white space included: take some lines around"
        " it if need be.",
        EditArguments,
    )

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, EditArguments)
        found = await asyncio.to_thread(self._workspace.read, wanted.path)
        text = replaced(text_of(found, wanted.path), wanted.old, wanted.new, wanted.path)
        return Change(self._workspace, wanted.path, found, text).plan("edit")


def replaced(text: str, old: str, new: str, path: str) -> str:
    """The text with its one ``old`` replaced; line ends stay what they are in the file. ToolFailed."""
    if old == new:
        raise ToolFailed("The new text is the old one.")
    if "\r\n" in text and (old not in text or "\n" not in text.replace("\r\n", "")):
        old, new = _with_returns(old), _with_returns(new)
    start = text.find(old)
    if start < 0:
        raise ToolFailed(f"{path!r} has no such text. {_hint(text, old)}")
    if text.find(old, start + 1) >= 0:
        raise ToolFailed(f"This text is more than once in {path!r}. Give more of what stands around it.")
    return text[:start] + new + text[start + len(old) :]


def _with_returns(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "\r\n")


def _hint(text: str, old: str) -> str:
    """Where the first line stands, if it does."""
    first = next((line.strip() for line in old.splitlines() if line.strip()), "")
    places = [number for number, line in enumerate(text.splitlines(), 1) if first and first in line]
    if places:
        return f"Its first line stands in line {places[0]}, but what follows or its white space differs there."
    return "Read the file again."
