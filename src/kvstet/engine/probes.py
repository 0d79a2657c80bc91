"""What a model still knows, and would do next, behind an edit: forced choices among a few texts.

A model that is too small to answer a question can still find one answer likelier than others. Each choice is made on
the edited prompt cold, grafted (`kvstet.engine.graft`), and on the prompt before the edit. A choice that the model does
not get right where it should tells nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvstet.engine.drift import GRAFTED, STEM, Bench, Edit, extend, surprise
from kvstet.engine.exactness import TailRun
from kvstet.engine.graft import SEAM_TOKENS, plan_graft
from kvstet.engine.model import Model
from kvstet.types import SeqId, Tokens

ProbeKind = Literal["deleted", "kept", "next call"]
PROBE_KINDS: tuple[ProbeKind, ...] = ("deleted", "kept", "next call")

Answer = Literal["passed", "failed", "cannot tell"]

CHOICE = SeqId(3)
"""The sequence on which candidates are tried."""

MAX_LEAK = 0.5
"""Part of the likelihood that a deleted fact had over others, which may be left of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """An edit, and what may follow the edited prompt; the edit's continuation is the question."""

    kind: ProbeKind
    edit: Edit
    candidates: tuple[Tokens, ...]
    right: int
    """Index of the candidate that the text says: deleted by the edit, kept behind it, or called next."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean log likelihood of each candidate's tokens, in nats."""

    cold: tuple[float, ...]
    before: tuple[float, ...]
    grafted: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probed:
    """One probe's scores and what they say."""

    kind: ProbeKind
    label: str
    scores: Scores
    answer: Answer


def ask(model: Model, bench: Bench, probe: Probe, seam: int = SEAM_TOKENS) -> Probed:
    """Raises as the bench does; uses one sequence more than it."""
    edit = probe.edit
    after = np.concatenate([edit.after, edit.continuation])
    before = np.concatenate([edit.before, edit.continuation])
    with bench.prepared(edit.before):
        bench.bring_to_life(after, plan_graft(edit.before, after, seam))
        grafted = _scores(model, GRAFTED, after, probe)
        # The stem is exact: grown to the end, it is the cold run.
        cold = _scores(model, STEM, after, probe)
        model.remove(GRAFTED)
        bench.fork(GRAFTED, len(edit.before))
        scores = Scores(cold, _scores(model, GRAFTED, before, probe), grafted)
    return Probed(probe.kind, edit.label, scores, answer(probe.kind, scores, probe.right))


def answer(kind: ProbeKind, scores: Scores, right: int) -> Answer:
    """What the scores say of the probe."""
    cold, before, grafted = (_margin(each, right) for each in (scores.cold, scores.before, scores.grafted))
    match kind:
        case "deleted":
            if before <= 0 or before <= cold:
                return "cannot tell"
            leaks = (grafted - cold) > MAX_LEAK * (before - cold) or (grafted > 0 >= cold)
            return "failed" if leaks else "passed"
        case "kept" | "next call":
            if cold <= 0:
                return "cannot tell"
            return "passed" if grafted > 0 else "failed"


def _margin(scores: tuple[float, ...], right: int) -> float:
    """By how much the right one is likelier than the likeliest other."""
    return scores[right] - max(score for index, score in enumerate(scores) if index != right)


def _scores(model: Model, seq: SeqId, prompt: Tokens, probe: Probe) -> tuple[float, ...]:
    """``seq`` holds some of the prompt, and then all of it but the last token."""
    extend(model, seq, prompt[:-1])
    return tuple(_score(model, seq, prompt, candidate) for candidate in probe.candidates)


def _score(model: Model, seq: SeqId, prompt: Tokens, candidate: Tokens) -> float:
    model.fork(seq, CHOICE, len(prompt) - 1)
    try:
        given = np.concatenate([prompt, candidate[:-1]])
        rows = TailRun(model, CHOICE, given, len(candidate)).finish(model.max_batch)
        return -float(surprise(rows, candidate).mean())
    finally:
        model.remove(CHOICE)
