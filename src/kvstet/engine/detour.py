"""How a prompt can be answered approximately: from which state, and where it leaves what is exact. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from kvstet.cache.plan import Plan
from kvstet.cache.tree import Branch, Match
from kvstet.engine.alignment import Block
from kvstet.engine.drift import EditKind
from kvstet.engine.gate import DriftGate
from kvstet.engine.graft import Graft, plan_graft
from kvstet.types import Reuse, Tokens

MIN_GAIN_TOKENS = 512
"""What an approximation must spare at least; less is computed, exactly."""

MAX_EDITS = 4
"""The drift budget: edits that may stand in a conversation before it is repaired."""

_FEW_TOKENS = 8
"""So many may differ where text was joined anew."""

_PRUNED_SHARE = 0.5
"""What stands in place of something pruned is at most this part as long."""


@dataclass(slots=True, eq=False)
class Stray:
    """A parked sequence whose state is exact up to ``exact_stop`` only."""

    branch: Branch
    tokens: Tokens
    """All that it holds."""
    exact_stop: int
    num_edits: int


@dataclass(slots=True, eq=False)
class Detour:
    """How a prompt is answered approximately."""

    exact_stop: int
    """Behind it, nothing is state of the prompt's path."""
    num_edits: int
    reuse: Reuse
    source: Tokens = field(repr=False)
    """The conversation whose state is moved."""
    moves: deque[Block] = field(default_factory=deque[Block])
    """What is still to be moved, in order."""
    stray: Stray | None = None
    """One to go on from, instead of a stem; its first ``resume`` tokens are the prompt's."""
    resume: int = 0

    def next_stop(self, num_tokens: int) -> int:
        """Where a stray must pause while it computes."""
        return self.moves[0].target if self.moves else num_tokens


def graft_detour(tokens: Tokens, former: Tokens, num_there: int, exact: Plan, gate: DriftGate) -> Detour | str | None:
    """By way of moved state; or why not, where it was for want of trust. None: it would spare too little.

    ``former`` is the conversation that was there before (`former_of`), of which the state of the first ``num_there``
    tokens can be had.
    """
    graft = plan_graft(former, tokens, gate.seam, num_exact=exact.resume)
    moves = [block for block in graft.moves if block.source_stop <= num_there]
    num_shifted = sum(block.length for block in moves)
    if num_shifted < MIN_GAIN_TOKENS:
        return None
    kind = kind_of(graft)
    if not gate.is_open(kind):
        return f"{kind} edits have not passed `kvstet verify --fidelity approximate`"
    if len(moves) > MAX_EDITS:
        return f"{len(moves)} edits at once are more than may stand unrepaired ({MAX_EDITS})"
    reuse = Reuse(
        num_reused_tokens=exact.num_reused_tokens,
        num_loaded_tokens=exact.num_loaded_tokens,
        num_shifted_tokens=num_shifted,
        num_computed_tokens=len(tokens) - exact.resume - num_shifted,
        num_known_tokens=exact.match.length,
    )
    return Detour(graft.exact_stop, len(moves), reuse, former, deque(moves))


def stray_detour(tokens: Tokens, stray: Stray, resume: int, exact: Plan) -> Detour | None:
    """On from a stray that holds the prompt's first ``resume`` tokens. None: it would spare too little."""
    if resume - exact.resume < MIN_GAIN_TOKENS or resume <= stray.exact_stop:
        return None
    reuse = Reuse(
        num_reused_tokens=stray.exact_stop,
        num_loaded_tokens=0,
        num_shifted_tokens=resume - stray.exact_stop,
        num_computed_tokens=len(tokens) - resume,
        num_known_tokens=exact.match.length,
    )
    return Detour(stray.exact_stop, stray.num_edits, reuse, tokens, stray=stray, resume=resume)


def former_of(match: Match) -> Tokens:
    """The tokens of the conversation that a prompt departs from: the known path, on to where it was last gone on."""
    if not match.path:
        return np.zeros(0, np.int32)
    nodes = list(match.path)
    while (child := nodes[-1].latest_child) is not None:
        nodes.append(child)
    return np.concatenate([node.tokens for node in nodes])


def kind_of(graft: Graft) -> EditKind:
    """What was done to the source, as far as its end is still there."""
    last = graft.blocks[-1]
    num_kept = sum(block.length for block in graft.blocks)
    num_new = last.target_stop - graft.prefix - num_kept
    num_gone = last.source_stop - graft.prefix - num_kept
    if num_gone <= _FEW_TOKENS:
        return "insert"
    if num_new <= _FEW_TOKENS:
        return "remove"
    return "prune" if num_new < _PRUNED_SHARE * num_gone else "replace"
