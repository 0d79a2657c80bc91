"""Damaged requests in the three main dialects with a real model in a real engine process, which is small enough that
requests wait for each other, overflow and push each other out."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest
from tests.api.checked_process import WatchedSupervisor
from tests.api.fuzz_clients import Magazine, Sizes, samples
from tests.api.fuzz_range import Outcome, Range

from kvstet.api import create_app
from kvstet.api.models import OneModel
from kvstet.api.ports import Served
from kvstet.chat.builtin import resolve_template
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.config import MIB, EngineOptions, ModelOptions, ServerOptions
from kvstet.llama.model import Model
from kvstet.llama.schema import schema_grammar, schema_rules

NUM_SHOTS, SEED = 500, 1
VOLLEYS = (1, 8, 16)
SIZES = Sizes(max_text=24, max_tools=1, max_messages=4)
REPLY_LENGTHS = (1, 4, 16)
"""A real model takes its time, and seldom comes to an end."""
STEP_SECONDS = 0.01
SETTLE_STEPS = 1000


async def pause(count: int) -> None:
    await asyncio.sleep(count * STEP_SECONDS)


async def fuzz(model: Path, seed: int, num_shots: int) -> Outcome:
    """Fire so many damaged requests at a server of its own. Its timing, and so the outcome, is new each time."""
    outcome = Outcome(f"fuzz({model.name}, {seed}, {num_shots})")
    options = EngineOptions(prefill_chunk=64, queue_size=8, cache_ram_bytes=24 * MIB)
    supervisor = WatchedSupervisor(ModelOptions(model, ctx_size=512, live_cells=768, parallel=3, threads=1), options)
    with Model.load_vocab(model) as vocabulary:
        await supervisor.start()
        try:
            await pause(10)  # The supervisor's own tasks begin.
            renderer = Renderer(resolve_template(None, vocabulary.chat_template), vocabulary.vocab, ledger=Ledger())
            served = Served(supervisor, renderer, vocabulary.vocab, schema_grammar, schema_rules)
            app = create_app(OneModel(served), ServerOptions())
            magazine = Magazine(seed, samples(SIZES), REPLY_LENGTHS)
            shooting = Range(app, supervisor, magazine, outcome, pause, SETTLE_STEPS)
            await shooting.fire(num_shots, Random(seed), VOLLEYS)
            stats = supervisor.stats()
            outcome.seen += {name: getattr(stats, f"num_{name}") for name in ("loaded_tokens", "reused_tokens")}
        finally:
            await supervisor.close()
    if supervisor.exit_status != 0:
        outcome.faults.append(f"the engine process ended with {supervisor.exit_status}")
    return outcome


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_a_real_model_serves_on_after_five_hundred_damaged_requests(smollm2_path: Path, tmp_path: Path):
    outcome = await fuzz(smollm2_path, SEED, NUM_SHOTS)
    print(dict(sorted(outcome.seen.items())))
    assert not outcome.faults, outcome.keep_shots(tmp_path)
    assert outcome.seen["damaged and served"] > NUM_SHOTS / 10, outcome.seen
    for place in ("queue", "prompt", "reply"):
        assert outcome.seen[f"hung up in {place}"], outcome.seen
    assert outcome.seen["reused_tokens"] and outcome.seen["loaded_tokens"], outcome.seen
