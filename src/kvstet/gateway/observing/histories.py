"""The conversations of each owner, apart from those of others."""

from __future__ import annotations

from collections import OrderedDict

from kvstet.edits.history import MAX_BYTES, History

_MAX_OWNERS = 32
"""Keys that pass may be short-lived tokens, so that owners come and go."""


class Histories:
    """For one thread. Those of the owners that were away longest are forgotten."""

    def __init__(self, max_owners: int = _MAX_OWNERS) -> None:
        self._max_owners = max_owners
        self._histories: OrderedDict[str, History] = OrderedDict()

    def __repr__(self) -> str:
        return f"Histories({len(self._histories)} owners)"

    def of(self, owner: str) -> History:
        history = self._histories.setdefault(owner, History(MAX_BYTES))
        self._histories.move_to_end(owner)
        if len(self._histories) > self._max_owners:
            self._histories.popitem(last=False)
        return history
