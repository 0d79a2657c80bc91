"""The engine: admits requests, decodes them together, and samples. One thread, one `step` at a time.

::

    submit -> waiting -> (plan, bring to life) -> running: prompt, then reply -> parked branch in the cache
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.cache import Cache
from kvstet.cache.rates import num_looks
from kvstet.config import EngineOptions
from kvstet.engine.admission import Admission, Admitted
from kvstet.engine.anticipation import Anticipator
from kvstet.engine.appraisal import appraised
from kvstet.engine.approximation import Approximator
from kvstet.engine.audit import Auditor
from kvstet.engine.batching import Segment, Work, next_work
from kvstet.engine.counters import Counters
from kvstet.engine.cuts import next_stop
from kvstet.engine.gate import DriftGate
from kvstet.engine.idle import IdleWork
from kvstet.engine.job import Job
from kvstet.engine.live import LiveSet
from kvstet.engine.logprobs import logprobs_of
from kvstet.engine.messages import (
    Anticipate,
    Appraise,
    Event,
    Failed,
    Finished,
    FinishReason,
    Generate,
    Progress,
    Started,
    Stats,
    Token,
)
from kvstet.engine.model import Model
from kvstet.errors import (
    ContextOverflow,
    DeadlineExceeded,
    InvalidRequest,
    KvstetError,
    OutOfCells,
    QueueFull,
)
from kvstet.types import RequestId, Tokens

BUSY_SHARE = 0.05
"""Part of the time that writing may take while requests run: it costs them a little (`bench/saving.py`)."""


class Engine:
    """Runs requests on one model. Events come from `step`, in order; the caller owns the loop."""

    def __init__(
        self,
        model: Model,
        cache: Cache,
        options: EngineOptions,
        *,
        parallel: int,
        clock: Callable[[], float] = time.monotonic,
        has_energy: Callable[[], bool] = lambda: True,
        gate: DriftGate | None = None,
    ) -> None:
        """``has_energy``: whether there is any to spend on what may never be asked for. ``gate``: which edits the
        model was found fit to approximate; None: none."""
        self.cache = cache
        self.live = LiveSet(model, cache)
        self._model = model
        self._options = options
        # Every reply gets a token in every step.
        self._parallel = min(parallel, model.max_batch)
        self._clock = clock
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._events: list[Event] = []
        self._counters = Counters()
        self.approximator = Approximator(model, cache, self.live, gate)
        self.admission = Admission(model, cache, self.live, self.approximator, clock)
        self.auditor = Auditor(model, cache, self.live, share=options.audit_share)
        self.anticipator = Anticipator(model, cache, self.live, share=options.anticipate_share, may_work=has_energy)
        self._idle_work = IdleWork(
            cache,
            self.live,
            self.approximator,
            self.anticipator,
            self.auditor,
            audit_delay_seconds=options.audit_delay_seconds,
            clock=clock,
        )

    # What the caller does

    def submit(self, request: Generate) -> None:
        """Queue a request; what is wrong with it comes as a ``Failed`` event."""
        self._idle_work.give_way()
        try:
            self._waiting.append(self._job(request))
        except KvstetError as error:
            self._events.append(Failed(request.id, error))

    def anticipate(self, prompt: Anticipate) -> None:
        """A prompt will probably come; it is computed while no request is there."""
        self.anticipator.expect(prompt)

    def appraise(self, question: Appraise) -> None:
        """Tell what a prompt would cost, were it submitted now and alone."""
        try:
            self._check_length(question.tokens)
            self._events.append(appraised(question, self.cache, self.approximator))
        except KvstetError as error:
            self._events.append(Failed(question.id, error))

    def cancel(self, request_id: RequestId) -> None:
        """End a request before the next step; unknown ones are over already."""
        for job in (*self._waiting, *self._running):
            if job.id == request_id:
                self._finish(job, "cancelled")

    def step(self) -> list[Event]:
        """Admit what can be admitted, decode one batch, and tell what happened."""
        self._expire()
        self._admit()
        work = next_work(
            self._running,
            chunk=self._options.prefill_chunk,
            max_batch=self._model.max_batch,
            next_stop=self._next_stop,
        )
        if work is not None:
            self._run(work)
            self.live.retire_step()
            self.cache.write_step(BUSY_SHARE)
        events, self._events = self._events, []
        return events

    def idle_step(self) -> float | None:
        """One small piece of work for when no request is there; see `kvstet.engine.idle.IdleWork.step`."""
        return self._idle_work.step()

    def finish(self, seconds: float) -> None:
        """End all requests, and save and write what would be lost with the process, for so long at most."""
        self._idle_work.give_way()
        for job in (*self._waiting, *self._running):
            self._finish(job, "cancelled")
        self._idle_work.finish(seconds)

    @property
    def is_idle(self) -> bool:
        """No request waits or runs, and no event is due."""
        return not (self._waiting or self._running or self._events)

    def stats(self) -> Stats:
        """Counters and gauges, now."""
        return self._counters.stats(self._waiting, self._running, self.cache, self.live.num_parked, self.anticipator)

    # Admission

    def _job(self, request: Generate) -> Job:
        self._check_length(request.tokens, num_new_tokens=int(request.max_new_tokens != 0))
        if len(self._waiting) >= self._options.queue_size:
            raise QueueFull(f"{len(self._waiting)} requests are waiting already.")
        seconds = request.deadline_seconds or self._options.deadline_seconds
        now = self._clock()
        self._counters.num_requests += 1
        return Job(request, now, now + seconds if seconds else None, request.tokens)

    def _check_length(self, tokens: Tokens, num_new_tokens: int = 0) -> None:
        num_tokens = len(tokens)
        if num_tokens == 0:
            raise InvalidRequest("The prompt is empty.")
        if num_tokens + num_new_tokens > self._model.max_length:
            raise ContextOverflow(num_prompt_tokens=num_tokens, max_prompt_tokens=self._model.max_length)

    def _admit(self) -> None:
        """Start waiting jobs in order; one that waits for another's tokens lets later ones pass."""
        for job in tuple(self._waiting):
            if len(self._running) >= self._parallel:
                return
            if job.wait is not None and not job.wait.is_over:
                continue
            try:
                if not self._start(job):
                    return
            except KvstetError as error:
                self._fail(job, error)

    def _start(self, job: Job) -> bool:
        """Let a job run, if it can. False: not in this step, neither it nor anyone behind it."""
        admitted = self.admission.admit(job, self._running)
        if not isinstance(admitted, Admitted):
            return admitted == "waits"
        self._waiting.remove(job)
        self._running.append(job)
        if job.sampler is None:
            job.sampler = self._model.sampler(job.request.sampling, job.request.tokens)
            self._tell_started(job, admitted)
            self.auditor.note(job.request.tokens, admitted.resume)
            self.anticipator.note(job.request.tokens, admitted.resume)
        self.approximator.follow(job)
        return True

    def _tell_started(self, job: Job, admitted: Admitted) -> None:
        job.started = self._clock()
        self._counters.add_reuse(admitted.reuse)
        queue_seconds = max(0.0, job.started - job.submitted - admitted.load_seconds)
        self._events.append(Started(job.id, admitted.reuse, queue_seconds, admitted.load_seconds, job.exact_because))

    # Decoding

    def _next_stop(self, job: Job) -> int:
        """Where the job must pause while it computes."""
        assert job.branch is not None
        if job.node is None:
            assert job.detour is not None
            return job.detour.next_stop(len(job.tokens))
        stop = next_stop(job.node, job.branch.length, self.cache.traits)
        return stop if job.detour is None else min(stop, job.detour.exact_stop)

    def _run(self, work: Work) -> None:
        begun = self._clock()
        try:
            self._model.decode(work.batch)
        except OutOfCells:
            self._relieve()
            return
        num_tokens = len(work.batch.tokens)
        self.live.num_work_tokens += num_tokens
        row = 0
        for segment in work.segments:
            self._advance(segment, row)
            row += segment.gives_token
        seconds = self._clock() - begun
        self._counters.add_step(work, seconds)
        if not any(segment.is_reply for segment in work.segments):
            self.cache.policy.rates.observe_compute(num_tokens, _num_looks(work), seconds)

    def _advance(self, segment: Segment, row: int) -> None:
        job = segment.job
        assert job.branch is not None
        was_computing = job.is_computing
        job.branch.length += segment.num_tokens
        if not segment.gives_token:
            if job.request.cache_prompt and job.node is not None:
                self.live.reach(job.branch, job.node)
            self.approximator.follow(job)
            self._events.append(Progress(job.id, job.branch.length, len(job.tokens)))
        elif was_computing and job.request.max_new_tokens == 0:
            self._finish(job, "length")
        else:
            self._sample(job, row)

    def _sample(self, job: Job, row: int) -> None:
        assert job.sampler is not None and job.branch is not None
        logprobs = self._logprobs_source(job, row)
        try:
            forced, num_said = job.request.forced, len(job.generated)
            token = forced[num_said] if num_said < len(forced) else job.sampler.sample(row)
        except KvstetError as error:
            self._fail(job, error)
            return
        job.first_token = job.first_token or self._clock()
        job.generated.append(token)
        self._counters.num_generated_tokens += 1
        self._events.append(Token(job.id, token, logprobs_of(logprobs, token, job.request.num_logprobs)))
        if self._model.is_end(token) and not job.request.ignore_eos:
            self._finish(job, "stop")
        elif len(job.generated) == job.request.max_new_tokens or job.branch.length >= self._model.max_length:
            self._finish(job, "length")

    def _logprobs_source(self, job: Job, row: int) -> NDArray[np.float32] | None:
        # Copied before sampling: a sampler may write to the row.
        return self._model.logits(row).copy() if job.request.num_logprobs is not None else None

    # Endings

    def _relieve(self) -> None:
        """The live cells are full: let go of what is parked, or of the youngest request for now."""
        if self.live.let_go():
            return
        if len(self._running) > 1:
            self._preempt(self._running[-1])
        else:
            error = OutOfCells(f"The {self._model.num_cells} live cells are full.")
            self._fail(self._running[0], error)

    def _preempt(self, job: Job) -> None:
        """Back to the queue's head; its state stays in the cache, and what it has said stays said."""
        self._counters.num_preemptions += 1
        self._leave(job)
        job.tokens = job.all_tokens()
        job.wait = None
        self._waiting.insert(0, job)

    def _finish(self, job: Job, reason: FinishReason) -> None:
        now = self._clock()
        started = job.started or now
        first_token = job.first_token or now
        self._end(job)
        self._events.append(Finished(job.id, reason, len(job.generated), first_token - started, now - first_token))

    def _fail(self, job: Job, error: KvstetError) -> None:
        if isinstance(error, OutOfCells):
            error = InvalidRequest(f"The request does not fit: {error}")
        self._end(job)
        self._events.append(Failed(job.id, error))

    def _end(self, job: Job) -> None:
        if job.sampler is not None:
            job.sampler.close()
        if job in self._waiting:
            self._waiting.remove(job)
        self._leave(job)

    def _leave(self, job: Job) -> None:
        """The job runs no more: what it computed becomes a parked branch."""
        if job in self._running:
            self._running.remove(job)
        branch, node = job.branch, job.node
        job.branch = job.node = None
        if branch is not None and branch in self.cache.astray:
            self.anticipator.repair(self.approximator.end(job, branch))
            return
        if branch is not None and branch.length > branch.node.stop:
            self.cache.extend(branch, job.all_tokens()[: branch.length])
        if node is not None:
            self.cache.unpin(node)
        if branch is not None:
            self.live.park(branch)
            if not job.request.cache_prompt:
                self.live.drop(branch)
        elif node is not None:
            self.cache.forget_path(node)

    def _expire(self) -> None:
        now = self._clock()
        for job in (*self._waiting, *self._running):
            if job.deadline is not None and now >= job.deadline:
                self._fail(job, DeadlineExceeded("The request's time was over before it was finished."))


def _num_looks(work: Work) -> float:
    """How often a step's tokens looked back on others; branches stand behind the step by now."""
    looks = 0.0
    for segment in work.segments:
        branch = segment.job.branch
        stop = branch.length if branch else segment.num_tokens
        looks += num_looks(stop - segment.num_tokens, stop)
    return looks
