"""The seam to where a conversation is kept while it goes on."""

from __future__ import annotations

from typing import Protocol

from kvstet.context.conversation import Context


class Journal(Protocol):
    """Keeps a conversation."""

    def save(self, context: Context, step: int) -> None:
        """It stands so now: after so many of the model's replies. Raises SessionError."""
        ...


class NoJournal:
    """Keeps nothing."""

    def save(self, context: Context, step: int) -> None:
        return
