"""How a prompt is brought to life approximately: which tokens are computed, and which are given moved state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstet.cache.tree import num_equal
from kvstet.engine.alignment import Block, align
from kvstet.engine.model import Model
from kvstet.types import SeqId, Tokens

SEAM_TOKENS = 256
"""Of what lies behind an edit, so many tokens are computed at once: they are the ones that would drift most."""

MIN_MOVE_TOKENS = 32
"""Fewer are computed as fast as they are copied."""

PIECE_TOKENS = 2048
"""Moved at a time: each piece is copied through memory."""


@dataclass(frozen=True, slots=True)
class Graft:
    """A prompt of ``num_tokens`` is exact up to ``exact_stop``; behind it, ``moves`` are moved and the rest computed.

    The blocks' sources are positions in the conversation whose state is there, which has the prompt's first ``prefix``
    tokens in common with it.
    """

    prefix: int
    exact_stop: int
    moves: tuple[Block, ...]
    num_tokens: int
    blocks: tuple[Block, ...] = ()
    """What both have in common behind the prefix, repaired or not."""

    @property
    def num_shifted_tokens(self) -> int:
        return sum(move.length for move in self.moves)

    @property
    def num_computed_tokens(self) -> int:
        return self.num_tokens - self.prefix - self.num_shifted_tokens


def plan_graft(source: Tokens, target: Tokens, seam: int = SEAM_TOKENS, *, num_exact: int = 0) -> Graft:
    """What of the source's state the target can have; ``seam`` tokens that could be moved are computed all the same.

    Of the target's first ``num_exact`` tokens there is exact state already, be it from elsewhere. The target's last
    token is always computed, since it must give logits. Without ``moves``, everything is.
    """
    prefix = num_equal(source, target)
    blocks = align(source[prefix:], target[prefix:])
    found = [Block(prefix + block.source, prefix + block.target, block.length) for block in blocks]
    exact_stop = prefix
    for block in found:
        exact_stop = min(block.target_stop, block.target + seam)
        seam -= exact_stop - block.target
        if seam <= 0:
            break
    exact_stop = max(exact_stop, num_exact)
    moves = tuple(_between(found, exact_stop, len(target) - 1))
    return Graft(prefix, exact_stop if moves else len(target), moves, len(target), tuple(found))


def _between(blocks: list[Block], start: int, stop: int) -> Iterator[Block]:
    for block in blocks:
        cut = max(0, start - block.target)
        length = min(block.target_stop, stop) - block.target - cut
        if length >= MIN_MOVE_TOKENS:
            yield Block(block.source + cut, block.target + cut, length)


def move(model: Model, source: SeqId, target: SeqId, block: Block) -> None:
    """Append the block's state to ``target``, which holds the tokens before it.

    ``source`` holds the state where it was computed, and keeps it. It goes through blobs, piece by piece, also where
    positions stay: so ``target`` has cells of its own. Raises as `Model.load_shifted` does; the pieces before stay.
    """
    assert model.length(target) == block.target
    for start in range(block.source, block.source_stop, PIECE_TOKENS):
        stop = min(start + PIECE_TOKENS, block.source_stop)
        model.load_shifted(target, model.save_span(source, start, stop), start, stop)
