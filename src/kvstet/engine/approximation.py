"""Fidelity `approximate`: behind a small edit, state is kept under moved positions instead of being computed.

The tree holds exact state only. So a prompt that is answered from moved state leaves the tree where the first of it
stands: up to there, the *stem*, it is an ordinary branch; behind that it is a *stray*, a live sequence of which nothing
is saved, and that only this module knows. Repair is nothing but to compute the prompt's exact branch while nobody asks,
from the stem on (`kvstet.engine.anticipation`); once it is there, nobody needs the stray any more.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.plan import Plan
from kvstet.cache.tree import Branch, num_equal
from kvstet.engine.alignment import Block
from kvstet.engine.detour import MIN_GAIN_TOKENS, Detour, Stray, graft_detour, stray_detour
from kvstet.engine.gate import DriftGate
from kvstet.engine.graft import move
from kvstet.engine.job import Job
from kvstet.engine.live import LiveSet, LostBlob
from kvstet.engine.messages import Anticipate
from kvstet.engine.model import Model
from kvstet.errors import OutOfCells, OutOfMemory
from kvstet.types import Tokens

MAX_STRAYS = 4


class Approximator:
    """Owned by the engine's thread."""

    def __init__(self, model: Model, cache: Cache, live: LiveSet, gate: DriftGate | None) -> None:
        """``gate`` is what the model was found fit for; None: nobody has measured it."""
        self._model = model
        self._cache = cache
        self._live = live
        self._gate = gate
        self._strays: deque[Stray] = deque()

    def __repr__(self) -> str:
        return f"<Approximator {len(self.strays)} strays, {self.refusal or 'measured'}>"

    @property
    def strays(self) -> list[Stray]:
        """Those that are still there, the oldest first."""
        self._strays = deque(stray for stray in self._strays if self._live.is_parked_stray(stray.branch))
        return list(self._strays)

    @property
    def refusal(self) -> str | None:
        """Why this model does nothing approximately; None: it may."""
        if self._model.shift_refusal:
            return self._model.shift_refusal
        if self._gate is None:
            return "`kvstet verify --fidelity approximate` has not been run for this model"
        return None

    def plan(self, tokens: Tokens, former: Tokens, exact: Plan) -> Detour | str | None:
        """A way that computes much less than the exact one; or why there is none, where it was for want of trust.

        ``former`` is the conversation that was there before (`kvstet.engine.detour.former_of`). Changes nothing.
        """
        if len(tokens) - exact.resume < MIN_GAIN_TOKENS:
            return None
        if refusal := self.refusal:
            return refusal
        assert self._gate is not None
        num_there = self._cache.plan(_and_one_more(former)).resume
        return self._along_a_stray(tokens, exact) or graft_detour(tokens, former, num_there, exact, self._gate)

    # A job's way

    def begin_on_stray(self, job: Job, num_cells: int) -> bool:
        """Let a job run on the stray of its detour, if it has one. False: it has none, or ``num_cells`` more are not
        to be had."""
        stray = job.detour.stray if job.detour else None
        if job.detour is None or stray is None:
            return False
        if not self._live.make_room(num_cells, keep=stray.branch):
            job.detour = None
            return False
        resume = job.detour.resume
        self._leave_path(job)
        is_whole = resume == stray.branch.length
        job.branch = self._live.take_back(stray.branch) if is_whole else self._live.stray(stray.branch, resume)
        return True

    def follow(self, job: Job) -> None:
        """A job has come further: it may leave the tree, or stand where moved state is due."""
        branch, detour = job.branch, job.detour
        if branch is None or detour is None or branch.length < detour.exact_stop:
            return
        if job.node is not None:
            try:
                stray = self._live.stray(branch, branch.length)
            except OutOfCells:
                job.detour = None  # Told otherwise, but right: it is computed.
                return
            self._leave_path(job)
            self._live.park(branch)
            job.branch = branch = stray
        while detour.moves and detour.moves[0].target <= branch.length:
            block = detour.moves.popleft()
            if block.target == branch.length:
                self._bring(branch, detour.source, block)

    def end(self, job: Job, stray: Branch) -> Anticipate:
        """A stray's job is over: whoever goes on with it before it is repaired will find it. What to repair."""
        assert job.detour is not None
        tokens = job.all_tokens()
        self._live.park(stray)
        self._strays.append(Stray(stray, tokens[: stray.length], job.detour.exact_stop, job.detour.num_edits))
        while len(self.strays) > MAX_STRAYS:
            self._live.drop(self._strays.popleft().branch)
        job.detour = None
        return Anticipate(tokens, job.request.cuts, job.request.cut_kinds)

    def tidy(self) -> None:
        """Let go of strays whose tokens the tree has by now."""
        for stray in self.strays:
            if self._cache.plan(_and_one_more(stray.tokens)).resume >= len(stray.tokens):
                self._live.drop(stray.branch)

    # Inside

    def _along_a_stray(self, tokens: Tokens, exact: Plan) -> Detour | None:
        """On from the reply before, which was given approximately and is not repaired yet."""
        shares = [(min(num_equal(stray.tokens, tokens), len(tokens) - 1), stray) for stray in self.strays]
        resume, stray = max(shares, key=lambda share: share[0], default=(0, None))
        return stray_detour(tokens, stray, resume, exact) if stray else None

    def _leave_path(self, job: Job) -> None:
        assert job.node is not None
        self._cache.unpin(job.node)
        if job.branch is None:
            self._cache.forget_path(job.node)
        job.node = None

    def _bring(self, stray: Branch, source: Tokens, block: Block) -> None:
        """Append the block's state; what cannot be had after all will be computed behind what is there."""
        plan = self._cache.plan(_and_one_more(source[: block.source_stop]))
        if plan.resume < block.source_stop:
            return
        with suppress(OutOfCells, OutOfMemory, LostBlob):
            if plan.fork is not None and plan.fork.stop == block.source_stop:
                move(self._model, plan.fork.branch.seq, stray.seq, block)
            else:
                self._move_saved(source, stray, block)
        stray.length = self._model.length(stray.seq)

    def _move_saved(self, source: Tokens, stray: Branch, block: Block) -> None:
        """By way of a sequence to which the source's state is brought for a moment."""
        self._live.make_room_to_borrow(block.source_stop + block.length)
        seq = self._live.borrow(self._cache.plan(_and_one_more(source[: block.source_stop])))
        try:
            move(self._model, seq, stray.seq, block)
        finally:
            self._live.give_back(seq)


def _and_one_more(tokens: Tokens) -> Tokens:
    """A plan never covers a prompt's last token; with a stranger behind them, it covers all of these."""
    return np.append(tokens, np.int32(-1))
