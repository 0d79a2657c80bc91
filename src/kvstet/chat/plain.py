"""Replies that are text and nothing else."""

from __future__ import annotations

from kvstet.chat.deltas import Delta, TextDelta


class PlainParser:
    """Takes all text for text."""

    def feed(self, text: str) -> list[Delta]:
        return [TextDelta(text)]

    def flush(self) -> list[Delta]:
        return []
