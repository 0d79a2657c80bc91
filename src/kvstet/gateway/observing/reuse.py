"""What a hosted cache did with a conversation: guessed from its characters, and set right by the usage that came back.

A vendor tells how many tokens it read from its cache, and not which. Which they may have been is known from the
conversation: all up to the first thing that was changed. Where both agree, roughly, the conversation is stretched so
that they agree exactly, and messages end where tokens say they do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kvstet.edits.history import Place
from kvstet.edits.pricing import estimated
from kvstet.edits.snapshot import Snapshot
from kvstet.types import MessageSpan, Reuse, Usage

_CLOSE_SHARE = 0.2
"""How far a guess from characters may be off, as part of it."""
_CLOSE_TOKENS = 256
"""The same in tokens, which is what steps and distances between breakpoints make."""


@dataclass(frozen=True, slots=True)
class Observed:
    """One request, with the positions of its messages and what became of them."""

    snapshot: Snapshot = field(repr=False)
    reuse: Reuse
    is_estimated: bool
    """The vendor did not say what it read from its cache; a cache that forgets nothing is assumed."""


def observed(place: Place, snapshot: Snapshot, usage: Usage) -> Observed:
    """A request at its place, with the usage as it was reported."""
    guessed_snapshot, guess = estimated(place, snapshot)
    total = guess.num_prompt_tokens
    if not usage.num_input_tokens or not total:
        return Observed(guessed_snapshot, guess, True)
    size = usage.num_input_tokens
    known = round(guess.num_known_tokens * size / total)
    read = usage.num_cache_read_tokens
    if read is None:
        stretched = _stretched(guessed_snapshot, _scale(guess.num_known_tokens, known, total, size))
        return Observed(stretched, Reuse(known, 0, 0, size - known, known), True)
    read = min(read, size)
    known = read if known and abs(read - known) <= max(_CLOSE_TOKENS, _CLOSE_SHARE * known) else known
    stretched = _stretched(guessed_snapshot, _scale(guess.num_known_tokens, known, total, size))
    return Observed(stretched, Reuse(read, 0, 0, size - read, max(known, read)), False)


def _scale(guessed_known: int, known: int, guessed_total: int, total: int) -> Callable[[int], int]:
    """Positions of the guess to those of the report: both ends and the end of what was known fit."""

    def position(guessed: int) -> int:
        if guessed <= guessed_known:
            return round(guessed * known / guessed_known) if guessed_known else 0
        rest = guessed_total - guessed_known
        return known + round((guessed - guessed_known) * (total - known) / rest)

    return position


def _stretched(snapshot: Snapshot, position: Callable[[int], int]) -> Snapshot:
    spans = (MessageSpan(position(span.start), position(span.stop), span.index, span.role) for span in snapshot.spans)
    return replace(snapshot, spans=tuple(spans))
