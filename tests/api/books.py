"""What must hold wherever no request is under way: nothing is held by anyone that has ended."""

from __future__ import annotations

import traceback

from kvstet.engine.engine import Engine
from kvstet.engine.model import Model
from kvstet.engine.supervisor import Supervisor
from kvstet.types import SeqId


def idle_faults(engine: Engine, model: Model) -> list[str]:
    """What is wrong with an engine that has nothing to do, its cache and its model."""
    cache, live = engine.cache, engine.live
    faults: list[str] = []

    def expect(is_so: bool, fault: str) -> None:
        if not is_so:
            faults.append(fault)

    try:
        cache.check()
    except AssertionError:
        faults.append(f"the cache's books: {traceback.format_exc()}")
    expect(engine.is_idle, f"the engine has {engine._waiting} and {engine._running}")
    leased = [node for node in cache.tree.nodes() if node.num_leases]
    expect(not leased, f"leases on {leased}")
    expect(not any(branch.is_running for branch in cache.branches), f"branches run: {cache.branches}")
    expect(set(live.parked) == cache.branches, f"parked are {live.parked}, but {cache.branches} live")
    expect(live._unsavable <= cache.branches, f"dead branches: {live._unsavable}")
    seqs = sorted([*live._free, *(branch.seq for branch in cache.branches)])
    expect(seqs == list(range(model.num_sequences)), f"sequences {live._free} are free, {cache.branches} have the rest")
    lengths = {int(branch.seq): branch.length for branch in cache.branches}
    held = {seq: model.length(SeqId(seq)) for seq in range(model.num_sequences)}
    expect(held == dict.fromkeys(held, 0) | lengths, f"the model holds {held}, not {lengths}")
    expect(cache.num_live_cells <= model.num_cells, f"{cache.num_live_cells} cells of {model.num_cells}")
    return faults


def is_known(supervisor: Supervisor) -> bool:
    """Whether any request is known to the server's side."""
    return bool(supervisor._flights or supervisor._watchdog._owed)


def client_faults(supervisor: Supervisor) -> list[str]:
    """Requests that the server's side still knows, and engines that had to be started again."""
    faults = [f"the supervisor knows {name}" for name in supervisor._flights]
    faults += [f"the watchdog waits for {name}" for name in supervisor._watchdog._owed]
    return faults + ["the engine was started again"] * supervisor.num_restarts
