"""How many live cells branches take, when forks share those of their common prefix. Pure, but for `join_runs`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from heapq import nlargest
from itertools import pairwise
from operator import itemgetter

from kvstet.cache.tree import Branch, CellRun


def num_cells(branches: Iterable[Branch]) -> int:
    """Cells that these branches take; a shared prefix counts once."""
    return sum(end - run.start for run, end in _run_ends(branches).items())


def num_own_cells(branches: Collection[Branch]) -> dict[Branch, int]:
    """For each of all live branches, the cells that would be free without it."""
    holds: dict[CellRun, list[tuple[int, Branch | None]]] = defaultdict(list)
    for branch in branches:
        for run, end in branch.cells():
            holds[run].append((end, branch))
    counts = dict.fromkeys(branches, 0)
    for run, held in holds.items():
        # Only the longest hold on a run has something for itself: what it has beyond the second longest.
        (end, longest), (rest, _) = nlargest(2, [*held, (run.start, None)], key=itemgetter(0))
        if longest is not None:
            counts[longest] += end - rest
    return counts


def join_runs(branches: Collection[Branch]) -> None:
    """Let a run that nobody fills any more go on as the one behind it, so that forks of forks do not add up."""
    filled = {branch.own for branch in branches}
    ends = _run_ends(branches)
    heirs: dict[CellRun, CellRun] = {}
    for branch in branches:
        for (run, end), (heir, _) in pairwise(branch.cells()):
            if run not in filled and end == ends[run]:
                heirs[run] = heir
    for run in sorted(heirs, key=lambda run: run.start):
        heirs[run].start = run.start
    for branch in branches if heirs else ():
        joined: dict[CellRun, int] = {}
        for run, end in branch.shared:
            last = run
            while last in heirs:
                last = heirs[last]
            joined[last] = end
        joined.pop(branch.own, None)
        branch.shared = tuple(joined.items())


def _run_ends(branches: Iterable[Branch]) -> dict[CellRun, int]:
    """Every run of cells that the branches hold, and where the longest hold on it ends."""
    ends: dict[CellRun, int] = {}
    for branch in branches:
        for run, end in branch.cells():
            ends[run] = max(end, ends.get(run, 0))
    return ends
