"""What a request will cost, told before it runs, against what it did cost: tokens and seconds.

    python bench/foretold.py [--requests 100]

SmolLM2-135M answers conversations that grow, are edited, forked and begun anew, some of them from saved state. Before
each request the engine is asked for its appraisal, as `/v1/kvstet/plan` asks it.
"""

from __future__ import annotations

import argparse

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import MIB, EngineOptions, ModelOptions
from kvstet.demo.model import demo_model_path
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Appraise, Appraised, Event, Finished, Generate, Started
from kvstet.engine.process import load_llama
from kvstet.types import GREEDY, RequestId, Tokens

MAX_TOKENS = 4000

WARM_UP = 5
"""Requests from which the engine learns how fast the machine is."""


def run(engine: Engine, name: str, tokens: Tokens) -> tuple[Appraised, Started, float]:
    """Ask what it will cost, and then for it; the seconds it took until its first token."""
    engine.appraise(Appraise(RequestId(name), tokens))
    (told,) = engine.step()
    assert isinstance(told, Appraised), told
    engine.submit(Generate(RequestId(name), tokens, max_new_tokens=4, sampling=GREEDY))
    events: list[Event] = []
    while not engine.is_idle:
        events += engine.step()
    started = next(event for event in events if isinstance(event, Started))
    finished = next(event for event in events if isinstance(event, Finished))
    return told, started, started.load_seconds + finished.compute_seconds


def next_prompt(talks: list[Tokens], random: np.random.Generator) -> Tokens:
    """A conversation begins, goes on, or is edited and goes on."""
    base = talks[int(random.integers(len(talks)))] if talks and random.random() < 0.75 else np.zeros(0, np.int32)
    if random.random() < 0.5:
        base = base[: int(random.integers(len(base) // 2, len(base) + 1))]
    new = random.integers(100, 40_000, int(random.integers(20, 900))).astype(np.int32)
    return np.concatenate([base, new])[-MAX_TOKENS:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    options = ModelOptions(demo_model_path(), ctx_size=4096, live_cells=16384)
    model = load_llama(options, lambda fraction: None).model
    engine = Engine(model, Cache(model.traits, RamTier(2048 * MIB)), EngineOptions(), parallel=options.parallel)
    talks: list[Tokens] = []
    errors: list[float] = []
    num_wrong = 0
    for number in range(arguments.requests + WARM_UP):
        tokens = next_prompt(talks, random)
        if random.random() < 0.3 and engine.live.num_parked:
            engine.live.release(engine.live.parked[0])
        told, started, seconds = run(engine, f"r{number}", tokens)
        talks.append(tokens)
        if number >= WARM_UP:
            num_wrong += told.reuse != started.reuse
            errors.append(abs(told.load_seconds + told.compute_seconds - seconds) / seconds)
    model.close()
    print(f"{len(errors)} requests; accounts that were told wrong: {num_wrong}")
    print(f"seconds: median error {np.median(errors):.1%}, nine of ten within {np.quantile(errors, 0.9):.1%}")


if __name__ == "__main__":
    main()
