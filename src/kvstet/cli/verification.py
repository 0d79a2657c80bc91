"""The work of `kvstet verify`, in a process of its own: libllama may abort it, and the command must still tell."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kvstet.cli.stack import load_text
from kvstet.cli.traces import Trace, rendered
from kvstet.config import MIB, ModelOptions
from kvstet.engine.exactness import Comparison, NoiseFloor, Rows, noise
from kvstet.engine.process import Broken, Loaded, Loader, Loading
from kvstet.engine.replay import Replay, Replayed
from kvstet.engine.reuse import KINDS, Kind, Passage, behind_strangers, cold
from kvstet.errors import InvalidRequest, KvstetError, RequestError
from kvstet.types import Prompt, Reuse

MAX_TAIL_TOKENS = 64
"""Positions that are compared of each passage, and of each replayed prompt."""

MIN_TOKENS = 16
TRACE_RAM_BYTES = 2048 * MIB

SEED = 1
"""Of the random tokens: a run that found something can be had again."""

PLANS = ("computed", "reused", "loaded", "reused and loaded")
"""What the cache's plan did for a replayed prompt, in the order of the table."""

Verdict = Literal["identical", "within noise", "outside", "cannot tell", "not possible", "failed"]
PASSES: frozenset[Verdict] = frozenset({"identical", "within noise", "not possible"})


@dataclass(frozen=True, slots=True)
class Job:
    """What to verify. ``load`` is a module's function, since it travels by name."""

    load: Loader
    model: ModelOptions
    num_tokens: int
    trace: Trace


@dataclass(frozen=True, slots=True)
class Doing:
    """What is done now, as a phrase that follows "while", and how many of all such steps are behind."""

    what: str
    num_done: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of reuse, or what the plan did for a group of replayed prompts."""

    name: str
    verdict: Verdict
    comparison: Comparison | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verified:
    """All that was found out."""

    model: str
    description: str
    memory_kind: str
    num_tokens: int
    """Length of the longest synthetic passage."""
    floor: NoiseFloor
    wrong: Comparison
    """What state of other tokens gives: a bound that does not tell this from noise would prove nothing."""
    rows: tuple[Row, ...]
    trace_rows: tuple[Row, ...]
    skipped: tuple[tuple[str, int], ...]
    """Why requests of the trace were not replayed, and how many."""

    @property
    def is_exact(self) -> bool:
        """Whether nothing lies outside, and whatever was tested could be told."""
        return all(row.verdict in PASSES for row in (*self.rows, *self.trace_rows))


@dataclass(frozen=True, slots=True)
class RenderedTrace:
    """Prompts of a trace with their labels, and why others cannot be had."""

    prompts: tuple[tuple[str, Prompt], ...]
    skipped: Mapping[str, int]


Result = list[Rows] | KvstetError | None
"""What came of one kind of reuse: the logits of each passage's tail; None where the memory cannot do it."""

Message = Loading | Doing | Verified | Broken


def run(job: Job, connection: Connection) -> None:
    """The process's main function; sends `Message`s, of which the last is Verified or Broken."""
    send_result(lambda: verify(job, connection.send), connection)


def send_result(work: Callable[[], object], connection: Connection) -> None:
    """Do the work of the process, and send what came of it, or Broken."""
    # Ctrl-C goes to the whole process group, but the end is the command's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("kvstet.llama").setLevel(logging.CRITICAL)
    try:
        connection.send(work())
    except KvstetError as error:
        connection.send(Broken(error))


def verify(job: Job, tell: Callable[[Message], None]) -> Verified:
    """Load, and test everything. Raises the KvstetError that is in the way of it."""
    loaded = job.load(job.model, lambda fraction: tell(Loading(fraction)))
    try:
        return Verification(job, loaded, tell).run()
    finally:
        loaded.model.close()


class Verification:
    """The tests of one model, one after the other."""

    def __init__(self, job: Job, loaded: Loaded, tell: Callable[[Message], None]) -> None:
        self._model = loaded.model
        self._info = loaded.info
        self._tell = tell
        self._passages = passages(loaded, job.num_tokens)
        self._trace = render_trace(job.model.path, job.trace, loaded.info.context_length)
        self._num_done = 0
        self._num_steps = len(self._passages) + 3 + len(KINDS) + len(self._trace.prompts)

    def run(self) -> Verified:
        # First what is most likely to fail, and then what takes long.
        colds = [self._cold(passage) for passage in self._passages]
        results = {kind: self._reuse(kind) for kind in KINDS}
        wrong = self._wrong(colds)
        floor = self._floor()
        can_tell = not wrong.is_noise(floor)
        rows = tuple(row_of(kind.name, result, colds, floor, can_tell) for kind, result in results.items())
        trace_rows, skipped = self._replay(floor, can_tell)
        return Verified(
            model=self._info.name,
            description=self._info.description,
            memory_kind=self._info.memory_kind,
            num_tokens=len(self._passages[-1].tokens),
            floor=floor,
            wrong=wrong,
            rows=rows,
            trace_rows=trace_rows,
            skipped=skipped,
        )

    def _cold(self, passage: Passage) -> Rows:
        with self._step("it computed cold"):
            return cold(self._model, passage)

    def _reuse(self, kind: Kind) -> Result:
        with self._step(f"it tried {kind.name}"):
            if not kind.is_possible(self._model.traits):
                return None
            try:
                return [kind.run(self._model, passage) for passage in self._passages]
            except KvstetError as error:
                return error

    def _wrong(self, colds: list[Rows]) -> Comparison:
        with self._step("it computed other tokens"):
            wrongs = [behind_strangers(self._model, passage) for passage in self._passages]
            return Comparison.of(np.concatenate(colds), np.concatenate(wrongs))

    def _floor(self) -> NoiseFloor:
        noises: list[NDArray[np.float64]] = []
        for passage in self._passages:
            with self._step("it measured the noise floor"):
                noises.append(noise(self._model, passage.tokens, passage.num_tail))
        return NoiseFloor.of(np.concatenate(noises))

    def _replay(self, floor: NoiseFloor, can_tell: bool) -> tuple[tuple[Row, ...], tuple[tuple[str, int], ...]]:
        replay = Replay(self._model, floor, ram_bytes=TRACE_RAM_BYTES, num_tail=MAX_TAIL_TOKENS)
        skipped = Counter(self._trace.skipped)
        groups: dict[str, list[Replayed]] = {name: [] for name in PLANS}
        for label, prompt in self._trace.prompts:
            with self._step(f"it replayed {label}"):
                try:
                    replayed = replay.ask(prompt.tokens, prompt.cuts)
                    groups[plan_name(replayed.reuse)].append(replayed)
                except RequestError as error:
                    skipped[str(error)] += 1
        rows = tuple(trace_row(name, group, can_tell) for name, group in groups.items() if group)
        return rows, tuple(skipped.items())

    @contextmanager
    def _step(self, what: str) -> Generator[None]:
        self._tell(Doing(what, self._num_done, self._num_steps))
        yield
        self._num_done += 1


def passages(loaded: Loaded, num_tokens: int) -> list[Passage]:
    """A short and a long one of random tokens, as far as context and cells allow. InvalidRequest: they do not."""
    most = min(num_tokens, loaded.info.context_length, loaded.model.num_cells * 2 // 5)
    if most < MIN_TOKENS:
        raise InvalidRequest(f"Nothing can be told from a context of {loaded.info.context_length} tokens.")
    random = np.random.default_rng(SEED)
    lengths = sorted({max(MIN_TOKENS, most // 4), most})
    samples = [random.integers(0, loaded.info.vocab_size, length).astype(np.int32) for length in lengths]
    return [Passage.of(tokens, min(MAX_TAIL_TOKENS, len(tokens) // 3)) for tokens in samples]


def render_trace(path: Path, trace: Trace, context_length: int) -> RenderedTrace:
    """The prompts that the model reads; what it cannot is left out. LlamaError where it has no tokenizer."""
    if not trace.requests:
        return RenderedTrace((), Counter(dict(trace.skipped)))
    vocabulary, renderer = load_text(path, None)
    with vocabulary:
        prompts, skipped = rendered(trace, renderer, context_length)
    return RenderedTrace(tuple((request.label, prompt) for request, prompt in prompts), skipped)


def row_of(name: str, result: Result, colds: list[Rows], floor: NoiseFloor, can_tell: bool) -> Row:
    """The verdict on one kind: each passage by itself lies within the noise, or the kind is outside."""
    match result:
        case None:
            return Row(name, "not possible", None, "it recomputes")
        case KvstetError():
            return Row(name, "failed", None, str(result))
        case rows:
            comparisons = [Comparison.of(one, other) for one, other in zip(colds, rows, strict=True)]
            whole = Comparison.of(np.concatenate(colds), np.concatenate(rows))
            is_noise = all(comparison.is_noise(floor) for comparison in comparisons)
            return Row(name, verdict(whole, is_noise=is_noise, can_tell=can_tell), whole)


def trace_row(name: str, group: list[Replayed], can_tell: bool) -> Row:
    """All prompts of which the plan did the same."""
    cold_rows, warm_rows = [one.cold for one in group], [one.warm for one in group]
    whole = Comparison.of(np.concatenate(cold_rows), np.concatenate(warm_rows))
    num_outside = sum(not one.is_noise for one in group)
    note = ("1 request" if len(group) == 1 else f"{len(group)} requests") + (
        f", {num_outside} outside" if num_outside else ""
    )
    return Row(name, verdict(whole, is_noise=not num_outside, can_tell=can_tell), whole, note)


def verdict(comparison: Comparison, *, is_noise: bool, can_tell: bool) -> Verdict:
    """What a comparison proves; nothing where wrong state would pass as well."""
    if not is_noise:
        return "outside"
    if not can_tell:
        return "cannot tell"
    return "identical" if comparison.max == 0 else "within noise"


def plan_name(reuse: Reuse) -> str:
    """One of `PLANS`."""
    match reuse.num_reused_tokens > 0, reuse.num_loaded_tokens > 0:
        case True, True:
            return "reused and loaded"
        case True, False:
            return "reused"
        case False, True:
            return "loaded"
        case _:
            return "computed"
