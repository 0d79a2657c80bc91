"""Which tokens go into the next decode. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kvstet.engine.job import Job
from kvstet.engine.model import Batch


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one job in a batch."""

    job: Job
    num_tokens: int
    gives_token: bool
    """The last of them completes what must be known, so a token is sampled behind it."""
    is_reply: bool
    """The token is one that was sampled; else they are the prompt's."""


@dataclass(frozen=True, slots=True)
class Work:
    """A batch and whose tokens it has, in batch order."""

    batch: Batch
    segments: tuple[Segment, ...]


def next_work(jobs: Sequence[Job], *, chunk: int, max_batch: int, next_stop: Callable[[Job], int]) -> Work | None:
    """One token of every job that generates, then up to ``chunk`` prompt tokens of the others, oldest first.

    ``next_stop`` is the position at which a job must pause so that its state can be saved there.
    """
    segments = [Segment(job, 1, gives_token=True, is_reply=True) for job in jobs if not job.is_computing]
    room = min(chunk, max_batch - len(segments))
    for job in jobs:
        if room <= 0 or not job.is_computing or job.branch is None:
            continue
        count = min(room, job.num_left, next_stop(job) - job.branch.length)
        segments.append(Segment(job, count, gives_token=count == job.num_left, is_reply=False))
        room -= count
    return _work(tuple(segments)) if segments else None


def _work(segments: tuple[Segment, ...]) -> Work:
    counts = [segment.num_tokens for segment in segments]
    seqs = np.array([segment.job.branch.seq if segment.job.branch else 0 for segment in segments], np.int32)
    ends = np.cumsum(counts) - 1
    outputs = np.zeros(int(ends[-1]) + 1, np.bool_)
    outputs[ends[[segment.gives_token for segment in segments]]] = True
    tokens = np.concatenate([segment.job.pending_tokens(segment.num_tokens) for segment in segments])
    return Work(Batch(tokens, np.repeat(seqs, counts), outputs), segments)
