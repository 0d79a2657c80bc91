"""How a prompt can be brought to life at the least cost. Pure: reads the tree, does and changes nothing."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.rates import Rates
from kvstet.cache.tree import Branch, Match, Node, Stored
from kvstet.types import MemoryTraits


@dataclass(frozen=True, slots=True)
class Fork:
    """Share the first ``stop`` tokens of a live branch."""

    branch: Branch
    stop: int


class Load(NamedTuple):
    """Bring back tokens ``[start, stop)`` from a span blob."""

    stored: Stored
    start: int
    stop: int


_stop = attrgetter("stop")


@dataclass(frozen=True, slots=True)
class Wait:
    """A running branch is computing these very tokens: at ``stop`` it can be forked."""

    branch: Branch
    stop: int

    @property
    def is_over(self) -> bool:
        return self.branch.length >= self.stop or not self.branch.is_computing_prompt


@dataclass(frozen=True, slots=True)
class Plan:
    """Fork, then load spans, then the checkpoint, then compute from ``resume``."""

    match: Match
    resume: int
    """Tokens that need not be computed; less than the prompt, since its last token must give logits."""
    fork: Fork | None = None
    loads: tuple[Load, ...] = ()
    checkpoint: Stored | None = None
    wait: Wait | None = None
    """Set where waiting brings more than the rest of the plan."""

    @property
    def num_reused_tokens(self) -> int:
        return self.fork.stop if self.fork else 0

    @property
    def num_loaded_tokens(self) -> int:
        return self.resume - self.num_reused_tokens

    def load_seconds(self, rates: Rates) -> float:
        """What all its loads will take."""
        checkpoint = (Load(self.checkpoint, 0, self.resume),) if self.checkpoint else ()
        return float(_load_seconds((*self.loads, *checkpoint), rates).sum())

    @property
    def num_cells_to_load(self) -> int:
        """Live cells that the loads take at their most, beside what is reused: a blob comes whole, and is cut then."""
        sizes = (start + stored.stop - stored.start for stored, start, _ in self.loads)
        return max(sizes, default=self.num_reused_tokens) - self.num_reused_tokens


def plan(match: Match, num_tokens: int, traits: MemoryTraits, rates: Rates | None = None) -> Plan:
    """The plan that computes the fewest of ``num_tokens`` tokens, of which the tree has seen those of the match.

    Attention resumes at any token; the state of ``[0, resume)`` comes from one live branch and then from blobs.
    Other memories resume only at a live tip or where a checkpoint was kept (`kvstet.types.MemoryTraits`). With
    ``rates``, nothing is loaded that is computed faster.
    """
    limit = min(match.length, num_tokens - 1)
    made = _plan_with_checkpoints(match, limit, traits) if traits.has_checkpoints else _plan_spans(match, limit)
    if rates is not None and (made.loads or made.checkpoint):
        made = _worthwhile(made, rates, traits)
    wait = _wait(match, limit, made.resume, traits)
    return Plan(match, made.resume, made.fork, made.loads, made.checkpoint, wait)


def _worthwhile(made: Plan, rates: Rates, traits: MemoryTraits) -> Plan:
    """The plan without the loads at its end that take longer than computing would."""
    if made.checkpoint is not None:
        # All or nothing: the spans are of no use without the checkpoint.
        other = _without_loads(made)
        return made if made.load_seconds(rates) < rates.compute_seconds(other.resume, made.resume) else other
    if traits.has_checkpoints:
        return made
    loads = made.loads[: _num_worthwhile(made.loads, rates)]
    return Plan(made.match, loads[-1].stop if loads else made.num_reused_tokens, made.fork, loads)


def _num_worthwhile(loads: tuple[Load, ...], rates: Rates) -> int:
    """How many of the loads to make, from the first, so that most time is saved."""
    if not loads:
        return 0
    stops = np.array([load.stop for load in loads], np.float64)
    saved = rates.compute_seconds(loads[0].start, stops) - np.cumsum(_load_seconds(loads, rates))
    best = int(saved.argmax())
    return best + 1 if saved[best] > 0 else 0


def _load_seconds(loads: tuple[Load, ...], rates: Rates) -> NDArray[np.float64]:
    """What each of the loads takes. Of a blob only the part that is loaded counts."""
    from_ram, from_disk = rates.load_seconds(1, "ram"), rates.load_seconds(1, "disk")
    seconds = [
        (from_ram if stored.in_ram else from_disk) * stored.num_bytes * (stop - start) / (stored.stop - stored.start)
        for stored, start, stop in loads
    ]
    return np.array(seconds)


def _without_loads(made: Plan) -> Plan:
    """Resume at the best live tip, or at nothing."""
    tip = _best_tip(made.match, made.resume)
    return Plan(made.match, tip.length, Fork(tip, tip.length)) if tip else Plan(made.match, 0)


def _plan_spans(match: Match, stop: int) -> Plan:
    """The longest run of additive state within ``[0, stop)``."""
    fork = _longest_live(match, stop)
    loads = _loads(match, fork.stop if fork else 0, stop)
    resume = loads[-1].stop if loads else fork.stop if fork else 0
    return Plan(match, resume, fork, loads)


def _plan_with_checkpoints(match: Match, limit: int, traits: MemoryTraits) -> Plan:
    num_covered = _num_covered(match, limit) if traits.has_spans else limit
    tip = _best_tip(match, limit)
    for node in reversed(match.path):
        # A live tip first: it costs nothing.
        if tip is not None and node.stop <= tip.length:
            break
        if node.checkpoint is not None and node.stop <= num_covered:
            return _resume_at_checkpoint(match, node, traits)
    return Plan(match, tip.length, Fork(tip, tip.length)) if tip else Plan(match, 0)


def _best_tip(match: Match, limit: int) -> Branch | None:
    """The branch whose tip lies deepest on the path, at most at ``limit``; parked ones first."""
    path = match.path
    candidates = [branch for branch in path[0].branches if 0 < branch.length <= limit] if path else []
    tips = [b for b in candidates if b in path[bisect_left(path, b.length, key=_stop)].branches]
    return max(tips, key=lambda branch: (branch.length, not branch.is_running, -branch.seq), default=None)


def _num_covered(match: Match, stop: int) -> int:
    """How far additive state goes within ``[0, stop)``: `_plan_spans` without the plan."""
    fork = _longest_live(match, stop)
    end = fork.stop if fork else 0
    for node in match.path:
        if node.stop <= end:
            continue
        if node.span is None:
            break
        end = node.stop
    return min(end, stop)


def _resume_at_checkpoint(match: Match, node: Node, traits: MemoryTraits) -> Plan:
    spans = _plan_spans(match, node.stop) if traits.has_spans else Plan(match, 0)
    return Plan(match, node.stop, spans.fork, spans.loads, node.checkpoint)


def _longest_live(match: Match, stop: int) -> Fork | None:
    """The live branch that covers most of ``[0, stop)``; parked ones first, which may be taken over."""
    path = match.path
    # All branches on the path go through its first node.
    shares = [(min(_num_shared(path, branch), stop), branch) for branch in (path[0].branches if path else ())]
    length, best = max(shares, key=lambda s: (s[0], not s[1].is_running, -s[1].seq), default=(0, None))
    return Fork(best, length) if best is not None and length > 0 else None


def _num_shared(path: tuple[Node, ...], branch: Branch) -> int:
    """Tokens of the path that are live in a branch."""
    # Below the node where it leaves the path, no node knows it.
    num_nodes = bisect_left(path, True, key=lambda node: branch not in node.branches)
    return min(branch.length, path[num_nodes - 1].stop)


def _loads(match: Match, start: int, stop: int) -> tuple[Load, ...]:
    """Blobs, without a gap, from ``start`` as far as they go, at most to ``stop``."""
    blobs: list[Stored] = []
    ends: list[int] = []
    last = None
    path = match.path
    for node in path[bisect_right(path, start, key=_stop) :] if start < stop else ():
        span = node.span
        if span is None:
            break
        if span is last:
            ends[-1] = node.stop
        else:
            blobs.append(span)
            ends.append(node.stop)
            last = span
        if node.stop >= stop:
            ends[-1] = stop
            break
    return tuple(map(Load, blobs, (start, *ends), ends))


def _wait(match: Match, limit: int, resume: int, traits: MemoryTraits) -> Wait | None:
    """The running branch that will bring more than ``resume``, if there is one."""
    for node in reversed(match.path):
        # Elsewhere than at node ends, a branch can be forked only where no checkpoint is needed.
        stop = node.stop if traits.has_checkpoints else min(node.stop, limit)
        if stop <= resume:
            return None
        if stop > limit:
            continue
        coming = [branch for branch in node.branches if branch.is_computing_prompt and branch.length < stop]
        if coming:
            return Wait(max(coming, key=lambda branch: (branch.length, -branch.seq)), stop)
    return None
