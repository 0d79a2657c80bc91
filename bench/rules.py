"""What the input of recorded sessions costs by the providers' rules, as their clients send them and as kvstet does.

::

    python bench/rules.py                       all recorded sessions, Anthropic and OpenAI
    python bench/rules.py pi.jsonl.xz --model openai/gpt-4.1 --cut 20000

1 is what the client's own requests cost without any cache. Each session is sent to a simulator of the provider's
documented rules (docs/providers.md), in the API that caches there: as its client sends it, with `kvstet gateway
--optimise`, and with outputs cut when they enter besides (``--cut-outputs``), which is rule 3 in full. *Best* is what
the same requests would cost if every token were written once and read ever after. The exit status is 1 where the mean
of a provider is above 0.25, or more than 5% above the best. aider rewrites its history by design, and is told beside
the mean.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table

from kvstet.context.arranging.lens import DialectName
from kvstet.context.arranging.optimiser import Optimiser
from kvstet.context.outputs import DEFAULT_CHARACTERS
from kvstet.dialects.dialect import dialect_named
from kvstet.errors import InvalidRequest
from kvstet.providers.cost import cost_of
from kvstet.providers.provider import CacheRule, Provider, provider_named
from kvstet.providers.simulator import Ideal, Simulator
from kvstet.traces.reading import read_trace
from kvstet.types import Usage

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
NO_SESSIONS = ("*-requests.jsonl.xz",)
"""Requests that were picked from several."""

MODELS = ("anthropic/claude-sonnet-5", "openai/gpt-5.6", "openai/gpt-5.1")
MAX_COST = 0.25
MAX_ABOVE_BEST = 1.05
SECONDS_BETWEEN = 5.0
"""Recorded replies came at once; a model takes its time."""


@dataclass(frozen=True)
class Sent:
    body: dict[str, Any]
    dialect: DialectName
    at_seconds: float


def session(path: Path) -> Iterator[Sent]:
    """The requests of a recording that make a prompt."""
    for exchange in read_trace(path):
        try:
            body = exchange.body
        except InvalidRequest:
            continue
        if exchange.dialect is not None:
            yield Sent(body, exchange.dialect.name, exchange.request.t)


def translated(requests: Iterable[Sent], provider: Provider, model: str) -> list[Sent]:
    """In the dialect in which the provider caches."""
    found: list[Sent] = []
    for sent in requests:
        if sent.dialect in provider.dialects and provider.rule_for(model, sent.dialect).kind != "none":
            found.append(sent)
            continue
        name = cast("DialectName", provider.dialects[0])
        request = dialect_named(sent.dialect).read_request({**sent.body, "model": model})
        found.append(Sent(dialect_named(name).write_request(request).body, name, sent.at_seconds))
    return found


def simulated(requests: Iterable[Sent], rule: CacheRule, model: str) -> list[Usage]:
    simulator, usages = Simulator(rule), []
    for number, sent in enumerate(requests):
        at = sent.at_seconds + SECONDS_BETWEEN * number
        usages.append(simulator.send({**sent.body, "model": model}, sent.dialect, at_seconds=at, model=model))
    return usages


def ideal(requests: Iterable[Sent], rule: CacheRule, model: str) -> list[Usage]:
    best = Ideal(rule)
    return [best.send(sent.body, sent.dialect, model=model) for sent in requests]


def arranged(requests: Sequence[Sent], provider: Provider, model: str, cut: int | None) -> list[Sent]:
    optimiser = Optimiser(provider, max_output_characters=cut)
    found: list[Sent] = []
    for sent in requests:
        body = {**sent.body, "model": model}
        said = optimiser.arrange(body, sent.dialect)
        found.append(Sent(said.body, sent.dialect, sent.at_seconds))
    return found


def num_tokens(usages: Iterable[Usage]) -> int:
    return sum(usage.num_input_tokens or 0 for usage in usages)


def cost(usages: list[Usage], rule: CacheRule, whole: int) -> float:
    """Of all, in parts of what ``whole`` fresh tokens cost."""
    found = cost_of(usages, rule)
    assert found is not None
    return found * num_tokens(usages) / whole


def measure(names: Sequence[str], model: str, cut: int) -> tuple[Table, bool]:
    vendor, _, name = model.partition("/")
    provider = provider_named(vendor)
    table = Table(title=f"{model}: input cost, 1 = what the client sends, without a cache")
    columns = ("session", "requests", "tokens", "as sent", "kvstet", "best", "kvstet, outputs cut", "best", "above it")
    for column in columns:
        table.add_column(column, justify="left" if column == "session" else "right")
    rows: list[tuple[float, ...]] = []
    for path in sorted(path for pattern in names for path in TRACES.glob(pattern)):
        requests = translated(session(path), provider, name)
        if not requests or any(path.match(pattern) for pattern in NO_SESSIONS):
            continue
        rule = provider.rule_for(name, requests[0].dialect)
        sent = simulated(requests, rule, name)
        whole = num_tokens(sent)
        costs = [cost(sent, rule, whole)]
        for limit in (None, cut):
            said = arranged(requests, provider, name, limit)
            costs += [cost(simulated(said, rule, name), rule, whole), cost(ideal(said, rule, name), rule, whole)]
        table.add_row(path.name.partition(".")[0], str(len(requests)), f"{whole:,}", *told(costs))
        if "aider" not in path.name:
            rows.append(tuple(costs))
    if not rows:
        return table, True
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    table.add_section()
    table.add_row("mean, without aider", "", "", *told(means))
    return table, means[3] <= MAX_COST and means[3] <= MAX_ABOVE_BEST * means[4]


def told(costs: Sequence[float]) -> list[str]:
    return [*(f"{each:.3f}" for each in costs), f"{costs[3] / costs[4] - 1:+.1%}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sessions", nargs="*", default=["*.jsonl.xz"], help="file names in tests/data/traces")
    parser.add_argument("--model", action="append", help="PROVIDER/MODEL; may be repeated")
    parser.add_argument("--cut", type=int, default=DEFAULT_CHARACTERS, help="characters of an output")
    arguments = parser.parse_args()
    is_fine = True
    for model in arguments.model or MODELS:
        table, is_met = measure(arguments.sessions, model, arguments.cut)
        Console(width=130).print(table)
        is_fine &= is_met
    return int(not is_fine)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InvalidRequest as error:
        sys.exit(str(error))
