"""While nobody asks: the prompt that will probably come next is computed, so that it is there when it comes.

What is grown is an ordinary branch of exact state. A guess that was wrong costs energy and nothing else: the branch is
never overwritten, and leaves like any other that nobody asks for.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.rates import num_looks
from kvstet.cache.tree import Branch, Node, num_equal
from kvstet.engine.cuts import cuts_of, next_stop
from kvstet.engine.live import LiveSet, LostBlob
from kvstet.engine.messages import Anticipate
from kvstet.engine.model import Batch, Model
from kvstet.errors import OutOfCells, OutOfMemory
from kvstet.types import Tokens

STEP_TOKENS = 256
"""Decoded in one step at most; a request that comes waits for one."""

STEP_SECONDS = 0.1
"""What a step should take, on a slow machine too..."""

MIN_STEP_TOKENS = 32
"""... but for so few tokens, with which decoding is not yet much slower than with many."""

MIN_TOKENS = 16
"""Fewer are computed with the request itself, at hardly any cost."""

MAX_GUESSES = 8
"""Guesses that wait for their turn; more, and the oldest is let go."""

MAX_GROWTHS = 32
"""Grown prefixes that may still be asked for; more, and the oldest counts as wasted."""

MAX_AGE = 8
"""Requests that may come after a guess before it is stale: the conversation has gone on in another way."""

Work = Generator[None, None, None]


@dataclass(slots=True, eq=False)
class Guess:
    """A prompt that may come, and how many requests have come since it was told."""

    prompt: Anticipate
    age: int = 0
    is_repair: bool = False
    """Of a prompt that came and was answered approximately: it is owed, whatever the budget."""

    def is_stale(self, tokens: Tokens) -> bool:
        """Now that a request of these tokens has come."""
        num_left = len(self.prompt.tokens) - num_equal(self.prompt.tokens, tokens)
        return self.age > MAX_AGE or num_left < MIN_TOKENS


@dataclass(slots=True, eq=False)
class Growth:
    """Tokens ``[start, stop)`` of a guess that were computed before anyone asked."""

    tokens: Tokens
    start: int
    stop: int

    def num_used_tokens(self, tokens: Tokens, resume: int) -> int:
        """How much of it spared a prompt that begins with ``tokens[:resume]`` the computing."""
        return max(0, min(num_equal(self.tokens[: self.stop], tokens), resume) - self.start)


class Anticipator:
    """Owned by the engine's thread. `step` a little while idle; `give_way` before anything else is done.

    Energy has a budget: tokens that were computed ahead and never asked for may be as many as one context, plus
    ``share`` of those that requests had computed. What was asked for costs nothing.
    """

    def __init__(
        self,
        model: Model,
        cache: Cache,
        live: LiveSet,
        *,
        share: float,
        may_work: Callable[[], bool] = lambda: True,
    ) -> None:
        """``may_work`` says whether there is energy to spend. ``share`` 0: nothing is ever computed ahead."""
        self._model = model
        self._cache = cache
        self._live = live
        self._share = share
        self._may_work = may_work
        self._guesses: deque[Guess] = deque(maxlen=MAX_GUESSES)
        self.growths: deque[Growth] = deque()
        """What was grown and may still be asked for, the latest last."""
        self._work: Work | None = None
        self._current: Guess | None = None
        self._budget = float(model.max_length)
        self.num_tokens = 0
        """Computed ahead so far."""
        self.num_repaired_tokens = 0
        """Computed because what had been answered approximately was owed."""
        self.num_used_tokens = 0
        """Of these, asked for."""
        self.num_wasted_tokens = 0
        """Of these, given up: not asked for, and not expected to be any more."""

    def __repr__(self) -> str:
        return (
            f"<Anticipator {len(self._guesses)} guesses, {self.num_tokens} tokens ahead, {self.num_used_tokens} used,"
            f" {self.num_wasted_tokens} wasted>"
        )

    def expect(self, prompt: Anticipate) -> None:
        """A prompt that may come. The latest guess is grown first."""
        if self._share > 0 and 0 < len(prompt.tokens) <= self._model.max_length:
            self._guesses.append(Guess(prompt))

    def repair(self, prompt: Anticipate) -> None:
        """A prompt that was answered approximately: compute it exactly, whether or not guesses are grown."""
        self._guesses.append(Guess(prompt, is_repair=True))

    def note(self, tokens: Tokens, resume: int) -> None:
        """A request was admitted, of which the first ``resume`` tokens need not be computed."""
        self._budget = min(float(self._model.max_length), self._budget + self._share * (len(tokens) - resume))
        for growth in tuple(self.growths):
            num_used = growth.num_used_tokens(tokens, resume)
            if num_used:
                self.growths.remove(growth)
                self.num_used_tokens += num_used
                self.num_wasted_tokens += growth.stop - growth.start - num_used
                self._budget += num_used
        for guess in tuple(self._guesses):
            guess.age += 1
            if guess.is_stale(tokens):
                self._guesses.remove(guess)

    def step(self) -> bool:
        """A small piece of work. False: nothing is due, or there is no room or no energy for it."""
        if self._work is None:
            self._current = self._next_guess()
            if self._current is None:
                return False
            self._work = self._grow(self._current)
        try:
            next(self._work)
        except (StopIteration, OutOfCells, OutOfMemory, LostBlob):
            # Done; or there is no room, or it was evicted since: the request itself will do without.
            self._work = self._current = None
        return True

    def give_way(self) -> None:
        """What has been grown becomes a parked branch; the rest waits for the next idle moment."""
        if self._work is not None:
            self._work.close()
            self._work = None
        if self._current is not None:
            self._guesses.append(self._current)
            self._current = None

    # Inside

    def _next_guess(self) -> Guess | None:
        """The latest for which there is energy."""
        may_guess = self._budget > 0 and self._may_work()
        for guess in reversed(self._guesses):
            if may_guess or guess.is_repair:
                self._guesses.remove(guess)
                return guess
        return None

    def _grow(self, guess: Guess) -> Work:
        prompt = guess.prompt
        match = self._cache.tree.match(prompt.tokens)
        cuts = cuts_of(prompt, len(prompt.tokens), match, self._cache)
        node = self._cache.insert(prompt.tokens, cuts, match)
        branch = None
        try:
            with self._cache.lease(node):
                branch = self._branch_to(node, guess)
                if branch is not None:
                    yield from self._compute(branch, node, guess)
        finally:
            if branch is not None:
                self._live.park(branch)
            else:
                self._cache.forget_path(node)

    def _branch_to(self, node: Node, guess: Guess) -> Branch | None:
        """A running branch on the path to ``node``. None: too little is missing, or there is no room for it."""
        plan = self._cache.plan_to(node)
        num_missing = node.stop - plan.num_reused_tokens
        keep = plan.fork.branch if plan.fork else None
        if node.stop - plan.resume < MIN_TOKENS:
            return None
        # A guess must not cost anyone what is there; a repair is owed.
        make_room = self._live.make_room if guess.is_repair else self._live.make_room_to_borrow
        if not make_room(max(num_missing, plan.num_cells_to_load), keep=keep):
            return None
        return self._live.take(self._cache.plan_to(node), node)

    def _compute(self, branch: Branch, node: Node, guess: Guess) -> Work:
        tokens = guess.prompt.tokens
        if guess.is_repair:
            while branch.length < len(tokens):
                yield
                self.num_repaired_tokens += self._advance(branch, node, tokens)
            return
        growth = self._note_growth(Growth(tokens, branch.length, branch.length))
        while branch.length < len(tokens) and self._budget > 0:
            yield
            num_tokens = self._advance(branch, node, tokens)
            growth.stop = branch.length
            self.num_tokens += num_tokens
            self._budget -= num_tokens

    def _advance(self, branch: Branch, node: Node, tokens: Tokens) -> int:
        """Decode one step; how many tokens it had."""
        begun = time.perf_counter()
        start = branch.length
        stop = min(next_stop(node, start, self._cache.traits), start + self._step_tokens(start))
        num_tokens = stop - start
        seqs = np.full(num_tokens, branch.seq, np.int32)
        self._model.decode(Batch(tokens[start:stop], seqs, np.zeros(num_tokens, np.bool_)))
        branch.length = stop
        self._live.reach(branch, node)
        self._cache.policy.rates.observe_compute(num_tokens, num_looks(start, stop), time.perf_counter() - begun)
        return num_tokens

    def _step_tokens(self, start: int) -> int:
        """How many tokens behind ``start`` others are decoded at once."""
        seconds_per_token = self._cache.policy.rates.compute_seconds(start, start + 1)
        num_tokens = int(min(STEP_TOKENS, STEP_SECONDS / max(seconds_per_token, 1e-9)))
        return min(max(MIN_STEP_TOKENS, num_tokens), self._model.max_batch)

    def _note_growth(self, growth: Growth) -> Growth:
        self.growths.append(growth)
        if len(self.growths) > MAX_GROWTHS:
            old = self.growths.popleft()
            self.num_wasted_tokens += old.stop - old.start
        return growth
