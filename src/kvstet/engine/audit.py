"""While nobody asks: a sample of the prefixes that were reused is computed again, cold, and compared.

State that does not predict what a cold run predicts is never used again, nor is anything that was computed on top of
it. What counts as equal is the model's own noise floor (`kvstet.engine.exactness`), measured once and remembered.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import cycle

import msgspec

from kvstet.cache.cache import Cache
from kvstet.cache.plan import Plan
from kvstet.engine.exactness import SMALL_STEPS, Comparison, NoiseFloor, Rows, TailRun, divergence
from kvstet.engine.live import LiveSet, LostBlob
from kvstet.engine.model import Model
from kvstet.errors import OutOfCells, OutOfMemory
from kvstet.types import Tokens

log = logging.getLogger(__name__)

STEP_TOKENS = 128
"""Decoded in one step; a request that comes waits for one."""

TAIL_TOKENS = 16
"""Positions behind the reused prefix that are compared."""

LEAST_TOKENS = 64
"""Of a run. With fewer, all batches take one path through libllama's matrix products (see `SMALL_STEPS`): two cold runs
are the same to the last bit, and right state, which was computed in a larger batch, looks wrong beside them."""

FLOOR_TOKENS, FLOOR_TAIL_TOKENS = 768, 256
"""Length of the noise floor's cold runs, and how many of their positions are compared."""

MAX_SAMPLES = 8
"""Reused prefixes that wait for their audit; more, and the oldest is let go."""

Work = Generator[None, None, None]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A prompt whose first ``resume`` tokens were not computed for it."""

    tokens: Tokens
    resume: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one comparison."""

    comparison: Comparison
    is_sound: bool


class Auditor:
    """Owned by the engine's thread. `step` a little while idle; `give_way` before anything else is done.

    ``share``: of the tokens that are reused, as many may be computed again.
    """

    def __init__(
        self,
        model: Model,
        cache: Cache,
        live: LiveSet,
        *,
        share: float,
        on_bad: Callable[[str], None] = log.error,
    ) -> None:
        self._model = model
        self._cache = cache
        self._live = live
        self._share = share
        self._on_bad = on_bad
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._budget = 0.0
        self._work: Work | None = None
        self._floor: NoiseFloor | None = None
        self.num_audits = 0
        self.num_failures = 0

    def note(self, tokens: Tokens, resume: int) -> None:
        """A request's first ``resume`` tokens were not computed for it."""
        if self._share > 0 and 0 < resume < len(tokens) and len(tokens) >= LEAST_TOKENS:
            self._budget += self._share * resume
            self._samples.append(Sample(tokens, resume))

    @property
    def is_due(self) -> bool:
        """Whether there may be anything to do."""
        return self._work is not None or bool(self._samples)

    def step(self) -> bool:
        """A small piece of work. False: nothing is due, or nothing fits beside what is live."""
        if self._work is None:
            sample = self._next_sample()
            if sample is None:
                return False
            self._work = self._audit(sample.tokens, sample.resume)
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except (OutOfCells, OutOfMemory, LostBlob):
            # No room for it, or evicted since: another one, another time.
            self._work = None
        return True

    def give_way(self) -> None:
        """Leave the model as if nothing was under way."""
        if self._work is not None:
            self._work.close()
            self._work = None

    # Inside

    def _next_sample(self) -> Sample | None:
        """The latest prefix that the budget and the live cells have room for."""
        for sample in reversed(self._samples):
            num_tokens = _stop(sample.tokens, sample.resume)
            if num_tokens <= self._budget and self._live.make_room_to_borrow(num_tokens):
                self._samples.remove(sample)
                self._budget -= num_tokens
                return sample
        return None

    def _audit(self, tokens: Tokens, resume: int) -> Work:
        floor = self._floor or self._known_floor()
        if floor is None:
            floor = yield from self._measure_floor(tokens)
        self._floor = floor
        found = yield from self._compare(tokens, resume, floor)
        if found is None:
            return
        self.num_audits += 1
        if found.is_sound:
            return
        self.num_failures += 1
        stop = yield from self._first_bad(tokens, resume, floor)
        self._quarantine(tokens[:stop], found.comparison, floor)

    def _compare(self, tokens: Tokens, stop: int, floor: NoiseFloor) -> Generator[None, None, Finding | None]:
        """The predictions behind ``stop`` by way of saved or live state, and cold. None: there is no state."""
        tokens = tokens[: _stop(tokens, stop)]
        num_tail = len(tokens) - stop
        plan = self._cache.plan(tokens[: stop + 1])
        if plan.resume == 0 or plan.wait is not None:
            return None
        warm = yield from self._rows(plan, tokens, num_tail, [STEP_TOKENS])
        cold = yield from self._rows(None, tokens, num_tail, [STEP_TOKENS])
        comparison = Comparison.of(cold, warm)
        if comparison.is_noise(floor):
            return Finding(comparison, is_sound=True)
        # Long contexts and rare tokens may be noisier than where the floor was measured: ask these very tokens.
        other = yield from self._rows(None, tokens, num_tail, SMALL_STEPS)
        return Finding(comparison, comparison.is_noise(NoiseFloor.of(divergence(cold, other))))

    def _rows(
        self, plan: Plan | None, tokens: Tokens, num_tail: int, sizes: Sequence[int]
    ) -> Generator[None, None, Rows]:
        seq = self._live.borrow(plan)
        try:
            run = TailRun(self._model, seq, tokens, num_tail)
            yield
            for size in cycle(sizes):
                if not run.step(size):
                    break
                yield
            return run.rows
        finally:
            self._live.give_back(seq)

    def _first_bad(self, tokens: Tokens, stop: int, floor: NoiseFloor) -> Generator[None, None, int]:
        """Where on the path state begins to be wrong: the end of the first bad node. Binary search over the path."""
        ends = [node.stop for node in self._cache.tree.match(tokens[:stop]).path if node.stop < stop] + [stop]
        low, high = 0, len(ends) - 1
        while low < high:
            middle = (low + high) // 2
            found = yield from self._compare(tokens, ends[middle], floor)
            if found is None or found.is_sound:
                low = middle + 1
            else:
                high = middle
        return ends[high]

    def _quarantine(self, prefix: Tokens, found: Comparison, floor: NoiseFloor) -> None:
        node = self._cache.insert(prefix, ())
        self._on_bad(
            f"An audit found state of {len(prefix)} tokens that does not predict what a cold run does (divergence"
            f" {found.mean:.2g} nats, noise floor {floor.mean:.2g}); it is not used any more, nor what depends on it."
        )
        for branch in self._cache.quarantine(node, found.mean, floor.mean):
            self._live.drop(branch)

    def _known_floor(self) -> NoiseFloor | None:
        text = self._cache.archive.disk.noise_floor() if self._cache.archive else None
        try:
            return NoiseFloor.from_json(msgspec.json.decode(text)) if text else None
        except (msgspec.ValidationError, msgspec.DecodeError):
            return None  # Written by another version: measure again.

    def _measure_floor(self, tokens: Tokens) -> Generator[None, None, NoiseFloor]:
        tokens = tokens[:FLOOR_TOKENS]
        num_tail = max(1, min(FLOOR_TAIL_TOKENS, len(tokens) // 2))
        one = yield from self._rows(None, tokens, num_tail, [STEP_TOKENS])
        other = yield from self._rows(None, tokens, num_tail, SMALL_STEPS)
        floor = NoiseFloor.of(divergence(one, other))
        if self._cache.archive:
            self._cache.archive.disk.set_noise_floor(msgspec.json.encode(floor).decode())
        return floor


def _stop(tokens: Tokens, resume: int) -> int:
    """Where what is compared behind a prefix ends."""
    return min(len(tokens), max(resume + TAIL_TOKENS, LEAST_TOKENS))
