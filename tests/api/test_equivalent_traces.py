"""Recorded sessions at fidelity ``equivalent``, with a template that strips reasoning of older turns: what is computed,
beside what no cache could have avoided of the very prompts that were sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.api.harness import running
from tests.api.played_engine import PlayedEngine
from tests.api.traces import account_of, reply_text, spelt, steps

from kvstet.chat.builtin import builtin_template
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.llama.model import Model
from kvstet.types import Fidelity, Tokens

MOST = {"pi": 0.55, "opencode": 0.58, "claude": 0.62, "qwen": 0.6}
"""Of the bound. What is left is text that came with the request and had never been seen: the system prompt, what tools
found, other agents' prompts."""

CONTEXT = 1 << 18


@dataclass
class Played:
    """One session."""

    num_computed: int = 0
    bound: int = 0
    """Tokens that no cache of prefixes could have avoided, of these prompts."""
    names: set[str] = field(default_factory=set)
    """Of what was substituted."""


def played(name: str, vocabulary: Model, fidelity: Fidelity) -> Played:
    vocab = vocabulary.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
    engine = PlayedEngine(context_length=CONTEXT, vocab_size=vocab.num_tokens, end=end)
    renderer = Renderer(builtin_template("chatml-tools"), vocab, ledger=Ledger())
    random = np.random.default_rng(0)
    session = Played()
    seen: list[Tokens] = []
    with running(engine, renderer, vocab, fidelity=fidelity) as site, site.http() as http:
        for step in (step for step in steps(name) if step.plan):
            engine.next_reply = (*spelt(reply_text(step.plan or {}), vocab, random), end)
            answer = http.post(step.path, content=step.body, headers={"content-type": "application/json"})
            assert answer.status_code == 200, answer.text
            session.names |= {each["name"] for each in account_of(answer)["substitutions"]}
            tokens = engine.requests[-1].tokens
            session.bound += len(tokens) - max((_num_common(tokens, each) for each in seen), default=0)
            seen.append(np.concatenate([tokens, np.array(engine.next_reply, np.int32)]))
    session.num_computed = sum(reuse.num_computed_tokens for reuse in engine.reuses)
    return session


def _num_common(one: Tokens, other: Tokens) -> int:
    num = min(len(one), len(other))
    differs = np.flatnonzero(one[:num] != other[:num])
    return int(differs[0]) if len(differs) else num


@pytest.fixture(scope="module")
def vocabulary(smollm2_path: Path) -> Iterator[Model]:
    with Model.load_vocab(smollm2_path) as model:
        yield model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "pi" else pytest.mark.slow) for name in sorted(MOST)]
)
def test_a_recorded_session_costs_little_more_than_its_new_text(name: str, vocabulary: Model):
    exact, equivalent = (played(name, vocabulary, fidelity) for fidelity in ("exact", "equivalent"))
    share = equivalent.num_computed / exact.bound
    print(f"{name}: bound {exact.bound}, exact {exact.num_computed}, equivalent {equivalent.num_computed}: {share:.1%}")
    assert exact.names == set()
    assert "reasoning" in equivalent.names
    assert exact.num_computed < 1.02 * exact.bound
    assert share < MOST[name]
