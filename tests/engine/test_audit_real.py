"""Audits of a real, quantized model: right state passes, however short the prompts are that it is found in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.contexts import opened

from kvstet.cache.cache import Cache
from kvstet.cache.tier import RamTier
from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Failed, Generate, Started
from kvstet.types import RequestId, Tokens


def test_state_of_a_few_tokens_that_all_prompts_begin_with_is_right(smollm2_path: Path):
    """Server and clients make many prompts that share their first three tokens, and some of them are short."""
    options = ModelOptions(smollm2_path, ctx_size=2048, live_cells=8192, parallel=4)
    with opened(smollm2_path, options) as context:
        cache = Cache(context.traits, RamTier(1 << 30))
        engine = Engine(context, cache, EngineOptions(audit_share=100.0), parallel=4)

        def ask(name: str, tokens: Tokens) -> int:
            """Tokens that were computed for it; then nobody asks for a while."""
            engine.submit(Generate(RequestId(name), tokens, max_new_tokens=1))
            reuse = None
            while not engine.is_idle:
                for event in engine.step():
                    assert not isinstance(event, Failed)
                    if isinstance(event, Started):
                        reuse = event.reuse
            while engine.idle_step() is not None:
                pass
            assert reuse is not None
            return reuse.num_computed_tokens

        random = np.random.default_rng(0)

        def prompt(num_tokens: int) -> Tokens:
            head = np.array([1, 9690, 198], np.int32)
            return np.concatenate([head, random.integers(1000, 40_000, num_tokens - 3)]).astype(np.int32)

        long = prompt(300)
        assert ask("long", long) == 300
        for number, num_tokens in enumerate((57, 20, 64, 100, 300)):
            assert ask(f"other {number}", prompt(num_tokens)) == num_tokens - 3
        assert engine.auditor.num_audits >= 3 and engine.auditor.num_failures == 0
        assert cache.num_quarantined_nodes == 0
        assert ask("long again", long) == 1
