"""How state is proven right: what it predicts is compared with a cold run's, beside the model's own noise floor.

No two ways of computing the same tokens agree to the last digit: sums are taken in another order when a batch has
another shape. How far two *cold* runs lie apart is the model's noise floor, measured once per model (`noise_floor`).
State is taken for right where the distributions that follow from it lie no further from a cold run's than that, with
the margin of `allowed`. Whoever checks state needs three things of this module::

    warm = TailRun(model, seq, tokens, num_tail)      # seq holds the state that is checked
    cold = TailRun(model, empty_seq, tokens, num_tail)
    while cold.step(32): ...                          # whenever there is time
    Comparison.of(cold.rows, warm.rows).is_noise(floor)

Works on any `Model` that it may decode on; sequences are the caller's to choose, and to empty again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from kvstet.engine.model import Batch, Model
from kvstet.errors import MemoryMisuse
from kvstet.types import SeqId, Tokens

Rows = NDArray[np.float32]
"""Logits, shape ``(n, vocab_size)``: one row for each of n positions."""

SMALL_STEPS = (32, 7, 1, 16)
"""Sizes of batches that take other paths through libllama's matrix products than whole prompts do: BLAS is used for
more than 32 tokens, and a reply is decoded token by token."""

BESIDE_STEP = 128
"""Tokens of each of two sequences in one batch."""

MEAN_MARGIN, OUTLIER_MARGIN = 4.0, 2.0
EPSILON = 1e-9
"""The constants of `allowed`: its factors, and what is always allowed (nats)."""


def divergence(p_logits: Rows, q_logits: Rows) -> NDArray[np.float64]:
    """KL(p || q) of each pair of rows in nats, shape ``(n,)``; rounding never makes it negative.

    Infinite where a row is no distribution (a NaN, say), or where q rules out what p does not.
    """
    rows = [_divergence(p, q) for p, q in zip(p_logits, q_logits, strict=True)]
    return np.array(rows, np.float64)


def _divergence(p_logits: NDArray[np.float32], q_logits: NDArray[np.float32]) -> float:
    # One row at a time: vocabularies have up to 262,144 tokens, and doubles are large.
    if _is_broken(p_logits) or _is_broken(q_logits):
        return np.inf
    p, q = _log_probabilities(p_logits), _log_probabilities(q_logits)
    is_possible = p > -np.inf
    p, q = p[is_possible], q[is_possible]
    return max(0.0, float((np.exp(p) * (p - q)).sum()))


def _is_broken(logits: NDArray[np.float32]) -> bool:
    # -inf is a token that is ruled out; a row of nothing else is no distribution.
    return not np.isfinite(logits.max()) or bool(np.isnan(logits).any())


def _log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    scores = logits.astype(np.float64) - float(logits.max())
    return scores - np.log(np.exp(scores).sum())


def agreement(p_logits: Rows, q_logits: Rows) -> NDArray[np.bool_]:
    """Whether the likeliest token is the same, shape ``(n,)``."""
    return p_logits.argmax(axis=1) == q_logits.argmax(axis=1)


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Divergences between cold runs of one model in other batches, in nats."""

    mean: float
    p99: float
    max: float
    num_positions: int

    @classmethod
    def of(cls, divergences: NDArray[np.float64]) -> Self:
        """Of at least one divergence."""
        return cls(*_summary(divergences), len(divergences))

    def to_json(self) -> dict[str, float]:
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, data: object) -> Self:
        """``msgspec.ValidationError`` where it is not what `to_json` gave."""
        return msgspec.convert(data, cls)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far the predictions from some state lie from a cold run's; divergences KL(cold || warm) in nats."""

    mean: float
    p99: float
    max: float
    num_positions: int
    agreement: float
    """Share of positions whose likeliest token is the same, 0 to 1."""

    @classmethod
    def of(cls, cold: Rows, warm: Rows) -> Self:
        """Of at least one position; row by row the same ones."""
        divergences = divergence(cold, warm)
        return cls(*_summary(divergences), len(divergences), float(agreement(cold, warm).mean()))

    def is_noise(self, floor: NoiseFloor) -> bool:
        """Whether two cold runs may lie as far apart. A divergence that is no number is not noise."""
        return self.mean <= allowed(floor, self.num_positions)


def allowed(floor: NoiseFloor, num_positions: int) -> float:
    """The largest mean divergence over ``num_positions`` consecutive positions that counts as noise, in nats::

        4 * floor.mean + 2 * floor.max / num_positions + 1e-9

    Noise is small everywhere, with rare outliers at tokens of which the model knows little: the mean over few positions
    depends on whether one of these is among them. Wrong state moves nearly every position that follows. So the mean may
    be a few times the floor's, plus what one outlier of twice the largest size seen adds. More positions thus tell
    smaller errors from noise.

    Measured on SmolLM2-135M (Q4_1): noise has a mean of 3e-3 to 6e-3 and outliers of 0.05, rarely more than 1. State of
    other tokens gives 0.4 to 1.4, state shifted by one token 0.06 to 0.5. One wrong token far back gives less than the
    noise: no test of what follows can find that. The constant is for models without quantization. Their floor is 1e-15,
    but where GELU is looked up in a table of half floats (in toys, and in float32), a mean of 1e-9 comes up.

    Noise that happens to exceed this is told from an error by its own measure: compute the same tokens cold once more
    in batches of another size, and take the two cold runs' `divergence` for the floor. Errors stay outside of that.
    """
    return MEAN_MARGIN * floor.mean + OUTLIER_MARGIN * floor.max / num_positions + EPSILON


def _summary(divergences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean, 99th percentile and maximum. The percentile is a value that occurs: no mean of an infinite one."""
    p99 = np.percentile(divergences, 99, method="higher")
    return float(divergences.mean()), float(p99), float(divergences.max())


class TailRun:
    """Decodes what a sequence lacks of some tokens, in steps of any size, and keeps the logits of the last ones.

    On an empty sequence it is a cold run. Between two steps the model may be used for other sequences.
    """

    def __init__(self, model: Model, seq: SeqId, tokens: Tokens, num_tail: int) -> None:
        """``num_tail`` positions at the end of ``tokens`` are compared; the sequence must not hold any of them yet.

        0: only the state is wanted.
        """
        if not 0 <= num_tail <= len(tokens) - model.length(seq):
            raise MemoryMisuse(f"{num_tail} of {len(tokens)} tokens cannot follow {model.length(seq)} tokens.")
        self._model = model
        self._seq = seq
        self._tokens = tokens
        self._num_tail = num_tail
        self._rows: list[NDArray[np.float32]] = []

    def __repr__(self) -> str:
        return f"<TailRun seq={self._seq} {self._model.length(self._seq)}/{len(self._tokens)} tokens>"

    @property
    def num_left(self) -> int:
        """Tokens that are still to be decoded."""
        return len(self._tokens) - self._model.length(self._seq)

    def step(self, num_tokens: int) -> bool:
        """Decode at most so many tokens. False: nothing is left. OutOfCells: nothing was changed, try later."""
        start = self._model.length(self._seq)
        stop = min(start + min(num_tokens, self._model.max_batch), len(self._tokens))
        if start < stop:
            outputs = np.arange(start, stop) >= len(self._tokens) - self._num_tail
            self._model.decode(Batch(self._tokens[start:stop], np.full(stop - start, self._seq, np.int32), outputs))
            # Copied: the model's rows are valid until the next decode only.
            self._rows += [self._model.logits(row).copy() for row in range(int(outputs.sum()))]
        return stop < len(self._tokens)

    def finish(self, *sizes: int) -> Rows:
        """All that is left, in steps of at most so many tokens, in turn; the rows."""
        for size in cycle(sizes):
            if not self.step(size):
                break
        return self.rows

    @property
    def rows(self) -> Rows:
        """Logits of the last ``num_tail`` positions, once nothing is left."""
        assert len(self._rows) == self._num_tail, self
        return np.stack(self._rows)


def noise_floor(model: Model, samples: Sequence[Tokens], num_tail: int) -> NoiseFloor:
    """The floor over samples of tokens (random ones will do) of various lengths, each at least as long as ``num_tail``.

    Each is computed cold three times: whole, as a lone prompt is; in small steps; and beside another sequence in the
    same batches, whose cells lie in between. The noise of a position is the larger of the two divergences from the
    first run. Uses sequences 0 and 1, which must be empty, and leaves them so; takes twice the sample in cells.
    """
    return NoiseFloor.of(np.concatenate([noise(model, tokens, num_tail) for tokens in samples]))


def noise(model: Model, tokens: Tokens, num_tail: int) -> NDArray[np.float64]:
    """The noise of each of the last ``num_tail`` positions, in nats; see `noise_floor`."""
    whole = run_cold(model, tokens, num_tail)
    others = run_in_small_steps(model, tokens, num_tail), run_beside_another(model, tokens, num_tail)
    return np.maximum(*(divergence(whole, other) for other in others))


def run_cold(model: Model, tokens: Tokens, num_tail: int) -> Rows:
    """Logits of the last positions, computed from nothing in batches as large as may be."""
    seq = SeqId(0)
    try:
        return TailRun(model, seq, tokens, num_tail).finish(model.max_batch)
    finally:
        model.remove(seq)


def run_in_small_steps(model: Model, tokens: Tokens, num_tail: int) -> Rows:
    """As `run_cold`, in batches of `SMALL_STEPS`."""
    seq = SeqId(0)
    try:
        return TailRun(model, seq, tokens, num_tail).finish(*SMALL_STEPS)
    finally:
        model.remove(seq)


def run_beside_another(model: Model, tokens: Tokens, num_tail: int) -> Rows:
    """As `run_cold`, in batches of which the other half belongs to another sequence."""
    seq, other = SeqId(0), SeqId(1)
    size = max(1, min(model.max_batch // 2, BESIDE_STEP))
    is_wanted = np.arange(len(tokens)) >= len(tokens) - num_tail
    rows: list[NDArray[np.float32]] = []
    try:
        for start in range(0, len(tokens), size):
            part = slice(start, start + size)
            num_tokens = len(tokens[part])
            outputs = np.concatenate([np.zeros(num_tokens, np.bool_), is_wanted[part]])
            seqs = np.repeat(np.array([other, seq], np.int32), num_tokens)
            model.decode(Batch(np.concatenate([tokens[::-1][part], tokens[part]]), seqs, outputs))
            rows += [model.logits(row).copy() for row in range(int(outputs.sum()))]
    finally:
        model.remove(seq)
        model.remove(other)
    return np.stack(rows)
