"""Moved state on a real context: what an edit costs at once, and that the repair leads back to a cold run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.engine.real import RealEngine

from kvstet.engine import graft
from kvstet.engine.drift import EDIT_KINDS
from kvstet.engine.gate import DriftGate, KindVerdict
from kvstet.engine.graft import SEAM_TOKENS

OPEN = DriftGate(SEAM_TOKENS, {kind: KindVerdict(True, "for this test", 20, 0, None, None) for kind in EDIT_KINDS})
MAX_COMPUTED_TOKENS = 400
MAX_DIVERGENCE = 1e-9


def words(num_tokens: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 128, num_tokens).tolist()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tail is moved in several."""
    monkeypatch.setattr(graft, "PIECE_TOKENS", 500)


@pytest.mark.parametrize(
    "num_tokens", [3_000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
@pytest.mark.parametrize("kind", ["prune", "insert", "remove"])
def test_an_edit_costs_little_at_once_and_nothing_is_left_of_it_in_the_end(
    kind: str, num_tokens: int, toy_path: Callable[..., Path]
):
    head, middle, tail = words(num_tokens // 4, 1), words(num_tokens // 4, 2), words(num_tokens // 2, 3)
    note, question = words(30, 4), words(40, 5)
    before = head + middle + tail
    after = {
        "prune": head + note + tail,
        "insert": head + middle[:50] + note + middle[50:] + tail,
        "remove": head + middle[:50] + middle[250:] + tail,
    }[kind] + question
    path = toy_path("llama-dense", context_length=2 * num_tokens)
    engine = RealEngine(path, 2 * num_tokens, live_cells=8 * num_tokens, gate=OPEN)
    try:
        engine.ask(before)
        reply = engine.ask(after, fidelity="approximate")
        reuse = engine.reuses[-1]
        assert reuse.num_shifted_tokens > num_tokens // 2 - SEAM_TOKENS - 100
        assert reuse.num_computed_tokens <= MAX_COMPUTED_TOKENS
        assert max(engine.divergences()[-engine.num_reply_tokens :]) > MAX_DIVERGENCE
        engine.idle()
        assert engine.engine.approximator.strays == []
        engine.ask(after + reply + words(10, 6))
        assert engine.reuses[-1].num_computed_tokens <= 12
        assert max(engine.divergences()) < MAX_DIVERGENCE
    finally:
        engine.close()
