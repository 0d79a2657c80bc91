"""Outputs of tools, cut when they enter a conversation: what is cut later breaks the prefix behind it."""

from __future__ import annotations

DEFAULT_CHARACTERS = 16_000
"""About 4,000 tokens."""

_HEAD_SHARE = 2 / 3
"""What an output begins with says more than what it ends with, but errors stand at the end."""


def cut(text: str, max_characters: int = DEFAULT_CHARACTERS) -> str:
    """The text, or its head and tail with a note between them; never longer than ``max_characters`` and the note.

    The same text is always cut alike, what was cut is not cut again, and what would not become shorter is not cut.
    """
    if len(text) <= max_characters + _MAX_NOTE:
        return text
    num_head = int(max_characters * _HEAD_SHARE)
    head = _to_line_end(text[:num_head])
    tail = _from_line_start(text[len(text) - (max_characters - num_head) :])
    return f"{head}{_note(len(text) - len(head) - len(tail))}{tail}"


def _note(num_characters: int) -> str:
    return f"\n[... {num_characters:,} characters left out ...]\n"


_MAX_NOTE = len(_note(10**12))


def _to_line_end(text: str) -> str:
    """Without the last line's beginning, where that is short."""
    head, end, rest = text.rpartition("\n")
    return head if end and len(rest) < len(text) // 4 else text


def _from_line_start(text: str) -> str:
    rest, end, tail = text.partition("\n")
    return tail if end and len(rest) < len(text) // 4 else text
