"""What recorded sessions cost by the providers' rules, as their clients send them and as kvstet does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, cast

import pytest
from tests.context.recorded import NAMES, Recorded, requests_of

from kvstet.context.arranging.lens import DialectName
from kvstet.context.arranging.optimiser import Optimiser
from kvstet.context.outputs import DEFAULT_CHARACTERS
from kvstet.dialects.dialect import dialect_named
from kvstet.providers.cost import cost_of
from kvstet.providers.provider import CacheRule, Provider, provider_named
from kvstet.providers.simulator import Ideal, Simulator
from kvstet.types import Usage

SESSIONS = [name for name in NAMES if name != "aider"]
"""aider rewrites its history by design."""

Bodies = list[dict[str, Any]]


def caching_dialect(provider: Provider, model: str, dialect: DialectName) -> DialectName:
    """The client's own, or the one in which the provider caches."""
    is_cached = dialect in provider.dialects and provider.rule_for(model, dialect).kind != "none"
    return dialect if is_cached else cast("DialectName", provider.dialects[0])


def as_sent(requests: Sequence[Recorded], model: str, dialect: DialectName) -> Bodies:
    bodies = [{**recorded.body, "model": model} for recorded in requests]
    if requests[0].dialect == dialect:
        return bodies
    read, write = dialect_named(requests[0].dialect).read_request, dialect_named(dialect).write_request
    return [write(read(body)).body for body in bodies]


def as_arranged(bodies: Bodies, provider: Provider, dialect: DialectName) -> Bodies:
    optimiser = Optimiser(provider, max_output_characters=DEFAULT_CHARACTERS)
    return [optimiser.arrange(body, dialect).body for body in bodies]


def sent_to(cache: Simulator | Ideal, bodies: Bodies, dialect: str) -> list[Usage]:
    return [cache.send(body, dialect) for body in bodies]


def num_tokens(usages: Sequence[Usage]) -> int:
    return sum(usage.num_input_tokens or 0 for usage in usages)


def cost(usages: list[Usage], rule: CacheRule) -> float:
    """In fresh tokens."""
    relative = cost_of(usages, rule)
    assert relative is not None
    return relative * num_tokens(usages)


@pytest.mark.parametrize(
    ("vendor", "model"), [("anthropic", "claude-sonnet-5"), ("openai", "gpt-5.6"), ("openai", "gpt-5.1")]
)
def test_sessions_cost_a_quarter_and_hardly_more_than_the_best_that_any_cache_could_do(vendor: str, model: str):
    provider = provider_named(vendor)
    rows: list[tuple[float, float, float]] = []
    for name in SESSIONS:
        requests = requests_of(name)
        dialect = caching_dialect(provider, model, requests[0].dialect)
        rule = provider.rule_for(model, dialect)
        bodies = as_sent(requests, model, dialect)
        plain = sent_to(Simulator(rule), bodies, dialect)
        bodies = as_arranged(bodies, provider, dialect)
        costs = [plain, sent_to(Simulator(rule), bodies, dialect), sent_to(Ideal(rule), bodies, dialect)]
        sent, arranged, best = (cost(usages, rule) / num_tokens(plain) for usages in costs)
        rows.append((sent, arranged, best))
    sent, arranged, best = (statistics.mean(column) for column in zip(*rows, strict=True))
    assert arranged <= 0.25 < sent
    assert arranged <= 1.05 * best
