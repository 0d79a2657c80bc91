"""How many tokens are computed, against the exact lower bound: the prompt less the longest prefix ever seen."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from tests.engine.conversations import SCENARIOS, Agent, Conversation
from tests.engine.real import RealEngine
from tests.toys import toy_path

pytestmark = pytest.mark.timeout(300)


@dataclass
class Ledger:
    """Asks an engine, and keeps count of what an ideal cache would have computed."""

    engine: RealEngine
    seen: list[list[int]] = field(default_factory=list[list[int]])
    bound: int = 0

    def ask(self, conversation: Conversation) -> list[int]:
        tokens = conversation.tokens
        longest = max((num_common(tokens, other) for other in self.seen), default=0)
        self.bound += max(1, len(tokens) - longest)
        reply = self.engine.ask(tokens, conversation.cuts)
        self.seen.append(tokens + reply)
        return reply

    @property
    def num_computed_tokens(self) -> int:
        return sum(reuse.num_computed_tokens for reuse in self.engine.reuses)


def num_common(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize(
    ("name", "excess"), [("llama-dense", 0.02), ("gemma3-dense", 0.05), ("qwen35-dense", 0.05), ("mamba-dense", 0.05)]
)
def test_sessions_compute_little_more_than_the_lower_bound(name: str, excess: float):
    engine = RealEngine(toy_path(name, context_length=8192), ctx_size=8192, num_reply_tokens=40)
    bounds: dict[str, tuple[int, int]] = {}
    for seed, scenario in enumerate(SCENARIOS):
        ledger = Ledger(engine)
        before = ledger.num_computed_tokens
        scenario(Agent(ledger.ask, seed=seed))
        bounds[scenario.__name__] = (ledger.num_computed_tokens - before, ledger.bound)
    computed, bound = map(sum, zip(*bounds.values(), strict=True))
    assert computed <= bound * (1 + excess), bounds
    engine.close()


@pytest.mark.parametrize("name", ["llama-dense", "qwen35-dense"])
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_eight_agents_at_once_share_one_history(name: str, is_warm: bool):
    engine = RealEngine(toy_path(name, context_length=8192), ctx_size=8192, parallel=8)
    agent = Agent(lambda conversation: engine.ask(conversation.tokens, conversation.cuts), seed=5)
    history = Conversation(tuple(agent.message("tool", 230) for _ in range(26)))
    num_shared = len(history.tokens) - 1
    assert num_shared > 6000
    if is_warm:
        agent.ask(history)
    before = engine.context.num_decoded_tokens
    for i in range(8):
        child = history.add(agent.message("user", 80 + i))
        engine.submit(child.tokens, child.cuts)
    engine.run()
    num_replies = 8 * (engine.num_reply_tokens - 1)
    computed = engine.context.num_decoded_tokens - before - num_replies
    assert computed < (1000 if is_warm else num_shared + 1000)
    engine.close()


@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "qwen35-dense"])
def test_small_unrelated_requests_never_cost_the_main_session_its_history(name: str):
    engine = RealEngine(toy_path(name, context_length=8192), ctx_size=8192)
    agent = Agent(lambda conversation: engine.ask(conversation.tokens, conversation.cuts), seed=6)
    agent.history = Conversation(tuple(agent.message("tool", 250) for _ in range(28)))
    agent.say(20)
    for i in range(6):
        engine.ask(Agent(agent.ask, seed=50 + i).history.tokens)
        agent.say(20)
        assert engine.reuses[-1].num_computed_tokens < 40
    engine.close()


def test_a_recurrent_model_does_not_step_back_a_whole_checkpoint_when_all_is_cached():
    engine = RealEngine(toy_path("mamba-dense", context_length=8192), ctx_size=8192)
    prompt = Agent(lambda conversation: [], seed=7).history.tokens
    for _ in range(2):
        engine.ask(prompt)
    assert engine.reuses[-1].num_computed_tokens <= 2
    engine.close()
