"""All that a gateway may change in a request, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvstet.context.arranging.optimiser import ARRANGEMENTS
from kvstet.errors import InvalidRequest

ASK_WHY, MODEL, CACHE_KEY = "ask-why", "model", "cache-key"

CHANGES: Mapping[str, str] = {
    **ARRANGEMENTS,
    ASK_WHY: "The vendor is asked why its cache misses, where it answers that.",
    MODEL: "Another model is asked, where --model or --map says so.",
}
"""Each with what it does."""


def known_changes(names: Iterable[str]) -> frozenset[str]:
    """Raises InvalidRequest for a name that no change has."""
    wanted = frozenset(names)
    unknown = sorted(wanted - set(CHANGES))
    if unknown:
        raise InvalidRequest(f"There is no change {unknown[0]!r}; there are {', '.join(CHANGES)}.")
    return wanted
