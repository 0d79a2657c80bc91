"""Damaged requests in the three main dialects, several at a time, with the real engine and cache behind the server and
little room for anything. Some clients hang up. Afterwards every request has its answer, and nothing is left of any.

A run is the same for its seed: ``asyncio.run(fuzz(HYBRID, SEED, NUM_SHOTS))`` has a failure again.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from tests.api.fuzz_clients import MAIN_DIALECTS, Magazine, Sizes, samples
from tests.api.fuzz_range import Outcome, Range
from tests.api.mutations import Sample
from tests.api.near_engine import FuzzModel, FuzzSampler, NearSupervisor
from tests.api.test_fuzz import FAMILIES, REPLIES, TEMPLATES

from kvstet.api import create_app
from kvstet.api.generation import Generation
from kvstet.api.models import OneModel
from kvstet.api.ports import Served
from kvstet.cache.cache import Cache
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.config import ServerOptions
from kvstet.engine.engine import Engine
from kvstet.engine.fake import ATTENTION, HYBRID
from kvstet.engine.live import LiveSet
from kvstet.engine.messages import Cancel
from kvstet.llama.schema import schema_grammar, schema_rules
from kvstet.types import MemoryTraits

BOTH_KINDS = pytest.mark.parametrize("traits", [ATTENTION, HYBRID], ids=lambda traits: traits.kind)
TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_tokens["<|im_end|>"]
FEW, PER_RUN, MANY = 100, 500, 10_000
SETTLE_ROUNDS = 10
SIZES = Sizes(max_text=40, max_tools=3, max_messages=10)
VOLLEYS = (1, 8, 16, 24)
REPLY_LENGTHS = (None, None, None, None, 1, 2, 20, 300)

ENDLESS = tuple(
    Sample(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x" * 2800}], "ignore_eos": True, "stream": is_streamed},
    )
    for is_streamed in (False, True)
)
"""Replies that end with the context, and not before."""


async def fuzz(traits: MemoryTraits, seed: int, num_shots: int) -> Outcome:
    """Fire so many damaged requests at a server of its own."""
    outcome = Outcome(f"fuzz({traits.kind.upper()}, {seed}, {num_shots})")
    random = Random(seed)
    with repeatable(seed):
        engine = NearSupervisor.of(traits, random, lambda: new_reply(random), vocab_size=TOKENIZER.num_tokens, end=END)
        await engine.start()
        try:
            await spin(10)  # The supervisor's own tasks begin.
            template = (FAMILIES / f"{TEMPLATES[seed % len(TEMPLATES)]}.jinja").read_text()
            renderer = Renderer(template, TOKENIZER, ledger=Ledger())
            served = Served(engine, renderer, TOKENIZER, schema_grammar, schema_rules)
            app = create_app(OneModel(served), ServerOptions())
            magazine = Magazine(seed, [*samples(SIZES), *ENDLESS], REPLY_LENGTHS)
            await Range(app, engine, magazine, outcome, spin, SETTLE_ROUNDS).fire(num_shots, random, VOLLEYS)
        finally:
            await engine.close()
    outcome.seen += engine.history()
    return outcome


async def spin(count: int) -> None:
    """Let the engine do so many steps; it does one in each round of the loop."""
    for _ in range(count):
        await asyncio.sleep(0)


def new_reply(random: Random) -> list[int]:
    """Short and well-formed, or not, or long."""
    if random.random() < 0.25:
        return [*random.randbytes(random.randint(50, 500))]
    text = random.choice(REPLIES)
    return [*(text if isinstance(text, bytes) else text.encode())]


@contextmanager
def repeatable(seed: int) -> Generator[None]:
    """Nothing happens by chance or after a time, or in a thread."""
    numbers = itertools.count()
    fake_uuid = SimpleNamespace(uuid4=lambda: uuid.UUID(int=next(numbers) << 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kvstet.api.exchange.uuid", fake_uuid)
        patch.setattr("kvstet.api.body._INLINE_BYTES", 1 << 30)
        patch.setattr("kvstet.api.responses.events._GRACE_SECONDS", 0.0 if seed % 4 < 2 else None)
        yield


@BOTH_KINDS
async def test_nothing_is_left_of_damaged_requests(traits: MemoryTraits, tmp_path: Path):
    outcome = await fuzz(traits, 0, FEW)
    assert not outcome.faults, outcome.keep_shots(tmp_path)
    check_seen(outcome.seen, FEW)


async def test_a_run_is_the_same_for_its_seed():
    one, other = [(await fuzz(HYBRID, 3, 30)).seen for _ in range(2)]
    assert one == other


@pytest.mark.slow
@pytest.mark.timeout(3600)
@BOTH_KINDS
async def test_nothing_is_left_of_ten_thousand_damaged_requests(traits: MemoryTraits, tmp_path: Path):
    seen: Counter[str] = Counter()
    for seed in range(1, 1 + MANY // PER_RUN):
        outcome = await fuzz(traits, seed, PER_RUN)
        assert not outcome.faults, outcome.keep_shots(tmp_path)
        seen += outcome.seen
    check_seen(seen, MANY)
    assert seen["preemptions"] and seen["status 429"], seen


def check_seen(seen: Counter[str], num_shots: int) -> None:
    """The run went everywhere."""
    print(dict(sorted(seen.items())))
    assert seen["damaged"] >= num_shots
    assert min(seen[f"at {path}"] for path in MAIN_DIALECTS) > num_shots / 4, seen
    assert seen["damaged and served"] > num_shots / 10, seen
    assert seen["status 400"] > num_shots / 4, seen
    assert min(seen[f"hung up in {place}"] for place in ("queue", "prompt", "reply")) > num_shots / 200, seen
    assert seen["reused_tokens"] and seen["loaded_tokens"] and seen["evicted_blobs"], seen


# What goes wrong if something is broken


def leak_leases(patch: pytest.MonkeyPatch) -> None:
    finish = Engine._finish

    def forgetful(self: Engine, job: Any, reason: Any) -> None:
        if reason == "cancelled":
            job.node = None
        finish(self, job, reason)

    patch.setattr(Engine, "_finish", forgetful)


def leak_sequences(patch: pytest.MonkeyPatch) -> None:
    close = LiveSet._close

    def forgetful(self: LiveSet, branch: Any) -> None:
        close(self, branch)
        self._free.pop()

    patch.setattr(LiveSet, "_close", forgetful)


def leave_cells(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FuzzModel, "remove", lambda self, seq: None)


def forget_to_cancel(patch: pytest.MonkeyPatch) -> None:
    obey = NearSupervisor._obey_later

    def deaf(self: NearSupervisor, command: object) -> None:
        if not isinstance(command, Cancel):
            obey(self, command)

    patch.setattr(NearSupervisor, "_obey_later", deaf)


def leave_pumps_running(patch: pytest.MonkeyPatch) -> None:
    async def nothing(*tasks: object) -> None:
        """What is to be cancelled goes on."""

    patch.setattr("kvstet.api.feed.cancel_all", nothing)


def keep_branches_running(patch: pytest.MonkeyPatch) -> None:
    def lazy(self: Engine, job: Any) -> None:
        if job in self._running:
            self._running.remove(job)
        if job.node is not None:
            self.cache.unpin(job.node)
        job.branch = job.node = None

    patch.setattr(Engine, "_leave", lazy)


def fork_too_far(patch: pytest.MonkeyPatch) -> None:
    fork = FuzzModel.fork

    def wrong(self: FuzzModel, source: Any, target: Any, stop: int) -> None:
        fork(self, source, target, stop)
        cells = self._cells[target]
        self._cells[target] = [*cells[:-1], (cells[-1][0], cells[-1][1] ^ 1)]

    patch.setattr(FuzzModel, "fork", wrong)


def forget_samplers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FuzzSampler, "close", lambda self: None)


def raise_on_reports(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Generation) -> Any:
        raise ZeroDivisionError

    patch.setattr(Generation, "accounts", property(broken))


def pin_twice(patch: pytest.MonkeyPatch) -> None:
    reopen = Cache.reopen

    def wrong(self: Cache, branch: Any, node: Any) -> None:
        self.pin(node)
        reopen(self, branch, node)

    patch.setattr(Cache, "reopen", wrong)


@pytest.mark.parametrize(
    ("break_something", "told"),
    [
        (leak_leases, "leases on"),
        (leak_sequences, "sequences"),
        (leave_cells, "holds"),
        (forget_to_cancel, "the engine has"),
        (leave_pumps_running, "knows"),
        (keep_branches_running, "branches run"),
        (fork_too_far, "the state of other tokens"),
        (forget_samplers, "samplers are open"),
        (raise_on_reports, "status 500"),
        (pin_twice, "leases on"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_the_fuzzing_looks_for_is_found(
    break_something: Callable[[pytest.MonkeyPatch], None], told: str, monkeypatch: pytest.MonkeyPatch
):
    break_something(monkeypatch)
    outcome = await fuzz(ATTENTION, 4, FEW)
    assert any(told in fault for fault in outcome.faults), outcome
