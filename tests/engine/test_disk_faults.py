"""The folder is damaged while requests run: each of them is answered as a cold run answers it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.engine.conversations import Agent, Conversation
from tests.engine.faults import FILE_FAULTS, INDEX_FAULTS, DiskEngine, damage
from tests.toys import toy_path

RAM_BYTES = {"llama-dense": 300_000, "gemma3-dense": 300_000, "qwen35-dense": 600_000, "mamba-dense": 1_200_000}
"""Room for a few blobs of each toy: nearly all that is loaded comes from disk."""


def prompts(seed: int) -> list[Conversation]:
    """Four sessions with one head, each at four ages: twenty-odd spans, many of them shared."""
    agent = Agent(lambda conversation: [], seed=seed)
    head = Conversation((agent.message("system", 60),))
    found: list[Conversation] = []
    for _ in range(4):
        session = head
        for _ in range(4):
            session = session.add(agent.message("user", 40), agent.message("tool", 50))
            found.append(session)
    return found


def suffer(engine: DiskEngine, num_faults: int, seed: int) -> Counter[str]:
    """Requests against a warm folder that is damaged before and during them; how often each kind of fault came."""
    random = np.random.default_rng(seed)
    pool = prompts(seed)
    for conversation in pool:
        engine.ask(conversation.tokens, conversation.cuts)
        engine.release_all()
    engine.settle()
    faults: Counter[str] = Counter()
    for number in range(num_faults):
        fault = str(random.choice(INDEX_FAULTS if random.random() < 0.15 else FILE_FAULTS))
        faults[fault] += 1
        chosen = [pool[int(i)] for i in random.integers(0, len(pool), int(random.integers(1, 3)))]
        for conversation in chosen:
            engine.submit(conversation.tokens, conversation.cuts)
        for _ in range(max(0, int(random.integers(-3, 4)))):
            engine.step()
        damage(engine, fault, engine.files_of(chosen[-1].tokens), random)
        assert set(named(engine)) == engine.wounds.files
        engine.run()
        engine.release_all()
        if random.random() < 0.5:
            engine.settle()
        if number % 10 == 9:
            engine.restart()
        engine.check_replies()
    return faults


def named(engine: DiskEngine) -> list[Path]:
    """Files that `DiskStore.verify` complains of."""
    return [path for path, problem in engine.store.verify() if problem]


def faulty_engine(name: str, folder: Path) -> DiskEngine:
    path = toy_path(name, context_length=1024)
    return DiskEngine(path, ctx_size=1024, ram_bytes=RAM_BYTES[name], num_reply_tokens=3, folder=folder)


def survive(engine: DiskEngine, num_faults: int, seed: int) -> None:
    suffer(engine, num_faults, seed)
    engine.restart()
    assert set(named(engine)) == engine.wounds.files
    before = sum(reuse.num_loaded_tokens for reuse in engine.reuses)
    for conversation in prompts(seed) * 2:
        engine.ask(conversation.tokens, conversation.cuts)
        engine.release_all()
    engine.check_replies()
    # Enough of them mattered. The record of a path, where there are no spans, is read by no request.
    assert engine.wounds.num_refused > num_faults // 20
    assert sum(reuse.num_loaded_tokens for reuse in engine.reuses) > before + 1000
    engine.close()


@pytest.mark.parametrize("name", ["llama-dense", "qwen35-dense"])
def test_damage_to_the_folder_is_found_and_never_seen_in_a_reply(name: str, tmp_path: Path):
    survive(faulty_engine(name, tmp_path), 25, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2, 4))
@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "qwen35-dense", "mamba-dense"])
def test_of_a_thousand_faults_none_is_ever_seen_in_a_reply(name: str, seed: int, tmp_path: Path):
    survive(faulty_engine(name, tmp_path), 125, seed)
