"""How far a prompt whose tail was moved predicts otherwise than a cold run, on teacher-forced text.

Of each edit the conversation before and after it is known, and how the latter went on. What is said after the edit is
predicted in several ways, each compared with a cold run: as if nothing had been edited, and grafted, with more and more
of the tail repaired from the seam on (`kvstet.engine.graft`). A whole repair is a cold run again, in other batches, and
has to lie within the noise. Works on any `Model` that can shift, and that nobody else uses meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.tree import num_equal
from kvstet.engine.exactness import Rows, TailRun, agreement, divergence
from kvstet.engine.graft import Graft, move, plan_graft
from kvstet.engine.model import Model
from kvstet.types import SeqId, Tokens

EditKind = Literal["prune", "insert", "remove", "replace"]
EDIT_KINDS: tuple[EditKind, ...] = ("prune", "insert", "remove", "replace")

REPAIRS = (0, 64, 128, 256, 512)
"""Tokens of the tail that are computed before the rest of it is moved."""

BEFORE, STEM, GRAFTED = SeqId(0), SeqId(1), SeqId(2)
"""The sequences that are used; they must be empty."""

STEP_TOKENS = 512
NOISE_STEP_TOKENS = 32
"""Batches of the second cold run: other sizes, other rounding."""
REPAIR_STEP_TOKENS = 256
"""What is repaired at a time while nobody asks."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """A conversation that was edited, and how it went on."""

    kind: EditKind
    label: str
    before: Tokens
    """The prompt whose state is there."""
    after: Tokens
    """The same prompt, edited."""
    continuation: Tokens
    """What follows ``after``; its tokens are given, and each is predicted from those before it."""

    @property
    def graft(self) -> Graft:
        """Without any repair."""
        return plan_graft(self.before, self.after, 0)

    @property
    def num_tail_tokens(self) -> int:
        """Tokens behind the edit whose state can be moved."""
        return self.graft.num_shifted_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Predictions of some positions against a cold run's; arrays of shape ``(n,)``."""

    divergences: NDArray[np.float64]
    """KL(cold || this) in nats."""
    agreements: NDArray[np.bool_]
    """Whether the likeliest token is the same."""
    surprises: NDArray[np.float64]
    """By how many nats the token that really follows is less likely than in the cold run."""

    @classmethod
    def of(cls, cold: Rows, other: Rows, following: Tokens) -> Measured:
        """Of rows that predict the ``following`` tokens."""
        surprises = surprise(other, following) - surprise(cold, following)
        return cls(divergence(cold, other), agreement(cold, other), surprises)

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """All positions of at least one."""
        return cls(
            np.concatenate([part.divergences for part in parts]),
            np.concatenate([part.agreements for part in parts]),
            np.concatenate([part.surprises for part in parts]),
        )


@dataclass(frozen=True, slots=True)
class Drift:
    """What came of `Measured`, in numbers."""

    mean: float
    p99: float
    max: float
    agreement: float
    """Share of positions whose likeliest token is the same, 0 to 1."""
    nll_change: float
    """Mean of the surprises, in nats."""
    num_positions: int

    @classmethod
    def of(cls, measured: Measured) -> Drift:
        divergences = measured.divergences
        p99 = np.percentile(divergences, 99, method="higher")
        return cls(
            float(divergences.mean()),
            float(p99),
            float(divergences.max()),
            float(measured.agreements.mean()),
            float(measured.surprises.mean()),
            len(divergences),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Grafted:
    """One edit, grafted with so much of its tail repaired."""

    num_repaired_tokens: int
    graft: Graft
    measured: Measured


@dataclass(frozen=True, slots=True, eq=False)
class EditDrift:
    """What one edit does to predictions."""

    edit: Edit
    nothing: Measured
    """Had it been ignored."""
    grafts: tuple[Grafted, ...]
    """By repaired tokens, ascending; none follows one that left nothing to be moved."""

    def at(self, num_repaired_tokens: int) -> Grafted:
        """With so many tokens repaired, or with the most that there is."""
        return next((one for one in self.grafts if one.num_repaired_tokens >= num_repaired_tokens), self.grafts[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """What must be alike on the same edited prompt."""

    noise: Measured
    """Of a cold run in other batches."""
    repaired: Measured
    """After moved state was repaired to the end, some tokens at a time."""


def surprise(logits: Rows, following: Tokens) -> NDArray[np.float64]:
    """Negative log likelihood of each following token, in nats, shape ``(n,)``."""
    return np.array([_surprise(row, token) for row, token in zip(logits, following.tolist(), strict=True)])


def _surprise(row: NDArray[np.float32], token: int) -> float:
    # One row at a time: vocabularies have up to 262,144 tokens, and doubles are large.
    scores = row.astype(np.float64) - float(row.max())
    return float(np.log(np.exp(scores).sum()) - scores[token])


class Bench:
    """Sequences of a model on which edits are tried. What one edit shares with the one before is not computed again.

    Its methods raise OutOfCells where both prompts and the tail once more do not fit, MemoryMisuse where the model
    cannot shift.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._before: Tokens = np.zeros(0, np.int32)
        """What ``BEFORE`` holds."""

    def close(self) -> None:
        """Leave the sequences empty."""
        for seq in (BEFORE, STEM, GRAFTED):
            self._model.remove(seq)
        self._before = self._before[:0]

    def measure(self, edit: Edit, repairs: Iterable[int] = REPAIRS) -> EditDrift:
        """What the edit does if it is ignored, and grafted with so many tokens repaired."""
        with self.prepared(edit.before):
            cold = self._cold(edit, STEP_TOKENS)
            grafts: list[Grafted] = []
            for repair in sorted(repairs):
                graft = plan_graft(edit.before, edit.after, repair)
                rows = self._grafted(edit, graft, edit.continuation)
                grafts.append(Grafted(repair, graft, Measured.of(cold, rows, edit.continuation)))
                if not graft.moves:
                    break
            nothing = Measured.of(cold, self._unedited(edit), edit.continuation)
            return EditDrift(edit, nothing, tuple(grafts))

    def control(self, edit: Edit) -> Control:
        """How far two cold runs of the edited prompt lie apart, and one that was repaired whole.

        Repair is exact by construction, since the stem never holds moved state. What could go wrong is that it does
        not stay what it is while the tail beside it is moved; so after each step of the repair, the tail is moved anew
        and decoded on.
        """
        with self.prepared(edit.before):
            cold, other = (self._cold(edit, step) for step in (STEP_TOKENS, NOISE_STEP_TOKENS))
            for repair in range(0, edit.num_tail_tokens, REPAIR_STEP_TOKENS):
                self._grafted(edit, plan_graft(edit.before, edit.after, repair), edit.continuation[:1])
            repaired = self._grafted(edit, plan_graft(edit.before, edit.after, len(edit.after)), edit.continuation)
            given = edit.continuation
            return Control(Measured.of(cold, other, given), Measured.of(cold, repaired, given))

    @contextmanager
    def prepared(self, before: Tokens) -> Generator[None]:
        """``BEFORE`` holds these tokens; the other sequences are empty, and are so again behind it."""
        model = self._model
        assert model.length(BEFORE) == len(self._before), "Someone else uses the bench's sequences."
        prefix = num_equal(self._before, before)
        if prefix < len(self._before):
            self.fork(GRAFTED, prefix)
            model.remove(BEFORE)
            if prefix:
                model.fork(GRAFTED, BEFORE, prefix)
            model.remove(GRAFTED)
        extend(model, BEFORE, before)
        self._before = before
        try:
            yield
        finally:
            for seq in (STEM, GRAFTED):
                model.remove(seq)

    def bring_to_life(self, after: Tokens, graft: Graft) -> None:
        """``GRAFTED`` then holds the edited prompt but for its last token, or less, where nothing is moved.

        ``STEM`` holds exact state of it, and grows.
        """
        exact_stop = min(graft.exact_stop, len(after) - 1)
        if not self._model.length(STEM):
            self.fork(STEM, graft.prefix)
        extend(self._model, STEM, after[:exact_stop])
        if exact_stop:
            self._model.fork(STEM, GRAFTED, exact_stop)
        for block in graft.moves:
            extend(self._model, GRAFTED, after[: block.target])
            move(self._model, BEFORE, GRAFTED, block)

    def fork(self, target: SeqId, stop: int) -> None:
        """The first tokens of the prompt before the edit; none is allowed."""
        if stop:
            self._model.fork(BEFORE, target, stop)

    # Inside

    def _grafted(self, edit: Edit, graft: Graft, continuation: Tokens) -> Rows:
        self.bring_to_life(edit.after, graft)
        return self._rows(edit.after, continuation)

    def _cold(self, edit: Edit, num_step_tokens: int) -> Rows:
        """Behind what both prompts share nothing is reused; what they share is the same exact state for all."""
        self.fork(GRAFTED, edit.graft.prefix)
        return self._rows(edit.after, edit.continuation, num_step_tokens)

    def _unedited(self, edit: Edit) -> Rows:
        self.fork(GRAFTED, len(edit.before) - 1)
        return self._rows(edit.before, edit.continuation)

    def _rows(self, prompt: Tokens, continuation: Tokens, num_step_tokens: int = STEP_TOKENS) -> Rows:
        """What ``GRAFTED`` predicts for each token of the continuation, once it has read those before it."""
        given = np.concatenate([prompt, continuation[:-1]])
        try:
            return TailRun(self._model, GRAFTED, given, len(continuation)).finish(num_step_tokens)
        finally:
            self._model.remove(GRAFTED)


def extend(model: Model, seq: SeqId, tokens: Tokens) -> None:
    """Compute what the sequence lacks of the tokens."""
    if model.length(seq) < len(tokens):
        run = TailRun(model, seq, tokens, 0)
        while run.step(STEP_TOKENS):
            continue
