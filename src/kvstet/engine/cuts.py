"""Where a prompt's path is cut: at message ends, and where state should be kept that only a checkpoint brings back."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.placement import best_placement
from kvstet.cache.policy import KIND_WEIGHTS
from kvstet.cache.tree import Match, Node
from kvstet.types import CutKind, MemoryTraits

MIN_CHECKPOINT_TOKENS = 16
"""Checkpoints stand at least this far apart: to compute so few tokens again is cheaper than to keep state."""

MAX_PLACED_CUTS = 512
"""Of more message ends than these, the last ones are considered."""


class CutPrompt(Protocol):
    """A prompt that says where its messages end."""

    @property
    def cuts(self) -> tuple[int, ...]: ...
    @property
    def cut_kinds(self) -> tuple[CutKind, ...]: ...


def next_stop(node: Node, length: int, traits: MemoryTraits) -> int:
    """Where a branch to ``node`` that holds so many tokens must pause while it computes: the next node end, where
    checkpoints are needed."""
    stop = node.stop
    if traits.has_checkpoints:
        for step in node.path():
            if step.stop <= length:
                break
            stop = step.stop
    return stop


def cuts_of(request: CutPrompt, num_tokens: int, match: Match, cache: Cache) -> dict[int, CutKind]:
    """Positions at which the path is cut, ascending, with what stands behind each.

    Where the memory needs checkpoints, these are the places to keep one: all message ends if there is room for all,
    else those from which the prompt is most likely to be gone on from.
    """
    kinds = dict(zip(request.cuts, request.cut_kinds, strict=False))
    cuts: dict[int, CutKind] = {cut: kinds.get(cut, "other") for cut in sorted(request.cuts) if 0 < cut < num_tokens}
    if not cache.traits.has_checkpoints:
        return cuts
    cuts = _apart(cuts, num_tokens - 1)
    room = cache.num_checkpoints_that_fit
    if room is None or len(cuts) <= room:
        return cuts
    return _placed(cuts, room, match, cache)


def _apart(cuts: dict[int, CutKind], last: int) -> dict[int, CutKind]:
    """Not closer together than is worth a checkpoint; the last one lets the same prompt cost one token."""
    kept: dict[int, CutKind] = {}
    before = 0
    for cut in (*cuts, last):
        if cut - before >= MIN_CHECKPOINT_TOKENS:
            kept[cut] = cuts.get(cut, "other")
            before = cut
    return kept


def _placed(cuts: dict[int, CutKind], room: int, match: Match, cache: Cache) -> dict[int, CutKind]:
    """The best ``room`` of the cuts; the end of system prompt and tools and the last two stand in any case."""
    heads = [cut for cut, kind in cuts.items() if kind == "head"]
    positions = sorted({*heads, *list(cuts)[-MAX_PLACED_CUTS:]})
    known = {node.stop for node in match.path if node.checkpoint is not None}
    seconds = np.array([cache.policy.rates.compute_seconds(0, cut) for cut in positions])
    weights = np.array([KIND_WEIGHTS[cuts[cut]] for cut in positions])
    chances = cache.policy.depths.chances(len(positions))[::-1] * weights
    pinned = np.array([cuts[cut] == "head" or cut in known for cut in positions])
    pinned[-2:] = True
    kept = best_placement(seconds, chances, room + sum(cut in known for cut in positions), pinned)
    return {positions[i]: cuts[positions[i]] for i in kept.tolist()}
