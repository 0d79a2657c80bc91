"""How a request comes to run: its prompt finds its place in the tree, what is there of it is brought to life."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvstet.cache.cache import Cache
from kvstet.cache.plan import Plan
from kvstet.cache.tree import Node
from kvstet.engine.approximation import Approximator
from kvstet.engine.cuts import cuts_of
from kvstet.engine.detour import Detour, former_of
from kvstet.engine.job import Job
from kvstet.engine.live import LiveSet, LostBlob
from kvstet.engine.model import Model
from kvstet.errors import OutOfCells, OutOfMemory
from kvstet.types import Reuse, Tokens

SPARE_CELLS = 32
"""Cells that must be free beyond the prompt for a request to be admitted beside others."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The job has a branch, and can run."""

    resume: int
    """Tokens of exact state that its prompt began with."""
    reuse: Reuse
    load_seconds: float


class Admission:
    """Owned by the engine's thread."""

    def __init__(
        self, model: Model, cache: Cache, live: LiveSet, approximator: Approximator, clock: Callable[[], float]
    ) -> None:
        self._model = model
        self._cache = cache
        self._live = live
        self._approximator = approximator
        self._clock = clock

    def admit(self, job: Job, running: Sequence[Job]) -> Admitted | Literal["waits", "later"]:
        """Bring a job's prefix to life.

        "waits": for tokens that someone else is computing, and may be passed. "later": not in this step, neither it nor
        anyone behind it. Raises OutOfCells where it does not fit even alone.
        """
        node = self._place(job)
        plan = self.plan(job, node)
        job.wait = plan.wait
        if plan.wait is not None:
            return "waits"
        num_promised = sum(other.num_left for other in running if other.is_computing)
        if job.former is not None and (admitted := self._on_stray(job, job.former, plan, num_promised)):
            return admitted
        num_parked = self._live.num_parked
        if not self._has_room(job, plan, num_promised, is_alone=not running):
            return "later"
        if self._live.num_parked < num_parked:
            # What was released to make room may have been a part of the plan.
            plan = self.plan(job, node)
        begun = self._clock()
        try:
            plan = self._take(job, plan, node)
        except LostBlob:
            return "later"  # The next step plans without it.
        except OutOfCells:
            return self._make_do(job, running)
        return Admitted(plan.resume, _account(job, plan), self._clock() - begun)

    def plan(self, job: Job, node: Node) -> Plan:
        """The way to a job's end in the tree."""
        return self._cache.plan_to(node) if job.request.cache_prompt else self._cache.plan_cold(job.tokens)

    # Inside

    def _place(self, job: Job) -> Node:
        """The job's end in the tree, pinned so that what leads there stays."""
        if job.node is None:
            match = self._cache.look_up(job.tokens)
            job.num_known = match.length
            if job.request.fidelity == "approximate" and job.request.cache_prompt:
                job.former = former_of(match)
            cuts = cuts_of(job.request, len(job.tokens), match, self._cache)
            job.node = self._cache.insert(job.tokens, cuts, match)
            self._cache.pin(job.node)
        return job.node

    def _on_stray(self, job: Job, former: Tokens, plan: Plan, num_promised: int) -> Admitted | None:
        """Find out whether moved state spares much, and let the job run where it stands already."""
        found = self._approximator.plan(job.tokens, former, plan)
        job.detour, job.exact_because = (found, None) if isinstance(found, Detour) else (None, found)
        num_left = len(job.tokens) - (found.resume if isinstance(found, Detour) else 0)
        if not self._approximator.begin_on_stray(job, num_left + num_promised + SPARE_CELLS):
            return None
        return Admitted(plan.resume, _account(job, plan), 0.0)

    def _take(self, job: Job, plan: Plan, node: Node) -> Plan:
        """Bring the plan to life, or one that loads nothing where there is no memory to load with."""
        try:
            job.branch = self._live.take(plan, node)
        except OutOfMemory:
            plan = self._cache.plan_cold(job.tokens)
            job.branch = self._live.take(plan, node)
        return plan

    def _has_room(self, job: Job, plan: Plan, num_promised: int, *, is_alone: bool) -> bool:
        """``num_promised``: cells that running prompts were admitted for, though they do not hold them yet."""
        num_own = max(len(job.tokens) - plan.num_reused_tokens, plan.num_cells_to_load)
        num_cells = num_own + num_promised + SPARE_CELLS
        keep = plan.fork.branch if plan.fork else None
        if self._live.make_room(num_cells, keep=keep):
            return True
        if is_alone:
            # It gets all there is, also what it would have forked from.
            self._live.make_room(min(num_cells, self._model.num_cells))
        return is_alone

    def _make_do(self, job: Job, running: Sequence[Job]) -> Admitted | Literal["waits", "later"]:
        """State did not fit after all: try again alone, or else later."""
        if running:
            return "later"
        if self._live.num_parked:
            self._live.make_room(self._model.num_cells)
            return self.admit(job, running)
        raise OutOfCells(f"{len(job.tokens)} tokens do not fit in {self._model.num_cells} live cells.")


def _account(job: Job, plan: Plan) -> Reuse:
    # While it waited, others may have made more of it known.
    num_known = max(job.num_known, plan.resume)
    if job.detour is not None and job.detour.stray is not None:
        return replace(job.detour.reuse, num_known_tokens=num_known)
    num_shifted = job.detour.reuse.num_shifted_tokens if job.detour else 0
    return Reuse(
        num_reused_tokens=plan.num_reused_tokens,
        num_loaded_tokens=plan.num_loaded_tokens,
        num_shifted_tokens=num_shifted,
        num_computed_tokens=len(job.tokens) - plan.resume - num_shifted,
        num_known_tokens=num_known,
    )
