from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.harness import Harness, words

from kvstet.cache.tree import Branch, CellRun, Tree
from kvstet.engine.batching import Work, next_work
from kvstet.engine.job import Job
from kvstet.engine.messages import Generate
from kvstet.types import GREEDY, RequestId, SeqId


def job(seq: int, *, num_prompt: int, num_held: int) -> Job:
    """A running job whose prompt is 100 * seq, 100 * seq + 1, ..., and whose reply is -1, -2, ..."""
    tokens = np.arange(100 * seq, 100 * seq + num_prompt, dtype=np.int32)
    request = Generate(RequestId(str(seq)), tokens, (), max_new_tokens=None, sampling=GREEDY)
    made = Job(request, 0.0, None, tokens)
    made.branch = Branch(SeqId(seq), Tree().insert(tokens, (), 0.0), num_held, CellRun(0))
    made.generated = [-1 - i for i in range(num_held - num_prompt + 1)]
    return made


def work(*jobs: Job, chunk: int = 8, max_batch: int = 16, pause: int | None = None) -> Work | None:
    return next_work(
        jobs, chunk=chunk, max_batch=max_batch, next_stop=lambda j: min(pause or len(j.tokens), len(j.tokens))
    )


def groups(made: Work | None) -> list[tuple[int, list[int], bool]]:
    """Sequence, tokens and whether a token is sampled, for each segment."""
    assert made is not None
    stops = np.cumsum([segment.num_tokens for segment in made.segments])
    parts = zip(
        made.segments,
        np.split(made.batch.tokens, stops[:-1]),
        np.split(made.batch.seqs, stops[:-1]),
        np.split(made.batch.outputs, stops[:-1]),
        strict=True,
    )
    told: list[tuple[int, list[int], bool]] = []
    for segment, tokens, seqs, outputs in parts:
        assert set(seqs.tolist()) == {segment.job.branch.seq if segment.job.branch else None}
        assert outputs.tolist() == [False] * (len(tokens) - 1) + [segment.gives_token]
        told.append((int(seqs[0]), tokens.tolist(), segment.gives_token))
    return told


def test_nothing_runs_so_nothing_is_decoded():
    assert work() is None


def test_a_short_prompt_goes_in_whole_and_gives_a_token():
    assert groups(work(job(1, num_prompt=3, num_held=0))) == [(1, [100, 101, 102], True)]


def test_a_long_prompt_goes_in_chunks():
    long = job(1, num_prompt=20, num_held=0)
    for expected in ([*range(100, 108)], [*range(108, 116)], [*range(116, 120)]):
        assert groups(work(long)) == [(1, expected, len(expected) == 4)]
        assert long.branch
        long.branch.length += len(expected)


def test_running_replies_come_first_and_always():
    made = work(
        job(1, num_prompt=20, num_held=5),
        job(2, num_prompt=4, num_held=4),
        job(3, num_prompt=2, num_held=5),
    )
    assert groups(made) == [(2, [-1], True), (3, [-4], True), (1, [*range(105, 113)], False)]


def test_a_chunk_is_shared_the_oldest_first():
    made = work(job(1, num_prompt=3, num_held=0), job(2, num_prompt=9, num_held=0), job(3, num_prompt=9, num_held=0))
    assert groups(made) == [(1, [100, 101, 102], True), (2, [*range(200, 205)], False)]


def test_a_batch_holds_no_more_than_the_model_takes():
    jobs = [job(seq, num_prompt=1, num_held=1) for seq in range(3)] + [job(5, num_prompt=50, num_held=0)]
    replies = [(0, [-1], True), (1, [-1], True), (2, [-1], True)]
    assert groups(work(*jobs, max_batch=4, chunk=64)) == [*replies, (5, [500], False)]
    assert groups(work(*jobs, max_batch=3, chunk=64)) == replies


def test_a_prompt_pauses_where_its_state_is_to_be_kept():
    made = work(job(1, num_prompt=20, num_held=2), job(2, num_prompt=20, num_held=0), pause=5)
    assert groups(made) == [(1, [102, 103, 104], False), (2, [*range(200, 205)], False)]


def test_a_pause_at_the_end_of_a_prompt_is_none():
    assert groups(work(job(1, num_prompt=5, num_held=2), pause=5)) == [(1, [102, 103, 104], True)]


def test_the_last_token_of_a_prompt_alone_gives_a_token():
    assert groups(work(job(1, num_prompt=5, num_held=4))) == [(1, [104], True)]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 40)), min_size=1, max_size=8),
    st.integers(1, 20),
    st.integers(8, 32),
    st.integers(1, 12),
)
def test_every_batch_is_one_the_model_takes(sizes: list[tuple[int, int]], chunk: int, max_batch: int, pause: int):
    jobs = [job(seq, num_prompt=prompt, num_held=held) for seq, (prompt, held) in enumerate(sizes)]

    def next_stop(j: Job) -> int:
        assert j.branch
        return min(len(j.tokens), (j.branch.length // pause + 1) * pause)

    made = next_work(jobs, chunk=chunk, max_batch=max_batch, next_stop=next_stop)
    told = groups(made)
    seqs = [seq for seq, _, _ in told]
    assert len(set(seqs)) == len(seqs)
    assert 0 < sum(len(tokens) for _, tokens, _ in told) <= max_batch
    replies = {seq for seq, (prompt, held) in enumerate(sizes) if held >= prompt}
    assert replies <= set(seqs)
    assert sum(len(tokens) for seq, tokens, _ in told if seq not in replies) <= chunk
    for seq, tokens, gives_token in told:
        prompt, held = sizes[seq]
        if seq in replies:
            assert tokens == [-1 - (held - prompt)] and gives_token
        else:
            assert tokens == [*range(100 * seq + held, 100 * seq + held + len(tokens))]
            assert gives_token == (held + len(tokens) == prompt)
            assert gives_token or held // pause == (held + len(tokens) - 1) // pause


# In the engine


@pytest.mark.parametrize(("parallel", "max_batch"), [(4, 64), (8, 4), (3, 3)])
def test_running_replies_get_a_token_in_every_step(parallel: int, max_batch: int):
    h = Harness(parallel=parallel, max_batch=max_batch, prefill_chunk=16)
    names = [f"r{i}" for i in range(6)]
    for i, name in enumerate(names):
        h.submit(name, words(10, i), new=60)
    for _ in range(20):
        h.step()
    h.submit("long", words(400, 9), new=3)
    begun = [name for name in names if name in h.events]
    assert len(begun) == min(parallel, max_batch, 6)
    for _ in range(12):
        before = [len(h.reply(name)) for name in begun]
        h.step()
        assert [len(h.reply(name)) for name in begun] == [n + 1 for n in before]
    h.run()
    assert len(h.reply("long")) == 3
