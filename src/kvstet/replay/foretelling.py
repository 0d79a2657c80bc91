"""What a session's prompts would cost at a hosted provider, by its documented cache rule: no account, no network.

The simulator's tokens are estimates of the provider's own, and replies are not in the bill: every provider charges the
same for them, whatever was cached.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvstet.context.arranging.lens import DialectName
from kvstet.context.arranging.optimiser import Optimiser
from kvstet.dialects.dialect import dialect_named
from kvstet.errors import InvalidRequest
from kvstet.providers.cost import input_cost, sum_of, tokens_cost
from kvstet.providers.prices import Price, price_of
from kvstet.providers.provider import Provider, provider_named
from kvstet.providers.simulator import Ideal, Simulator
from kvstet.replay.results import Asked, Run
from kvstet.replay.session import Body, Pace, Session, Turn
from kvstet.replay.verdicts import Verdicts
from kvstet.types import Usage

CACHE_WRITES = "num_cache_write_tokens"
DOLLARS = "dollars"
DOLLARS_UNCACHED = "dollars_without_cache"
DOLLARS_BEST = "dollars_of_best_cache"
"""In a run's values. The best cache writes every token once and reads it ever after."""


@dataclass(frozen=True, slots=True)
class Target:
    """A provider, and one of its models."""

    provider: Provider
    model: str
    """Empty: whichever each request names."""

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}" if self.model else self.provider.name


def target_of(name: str) -> Target:
    """Of ``PROVIDER`` or ``PROVIDER/MODEL``. Raises UnknownProvider."""
    provider, _, model = name.partition("/")
    return Target(provider_named(provider), model)


def foretold(session: Session, target: Target, pace: Pace, *, arranged_by: Optimiser | None = None) -> Run:
    """Each request as its client sent it, or as ``kvstet gateway --optimise`` would arrange it."""
    run = Run(server=f"{target.name}, arranged by kvstet" if arranged_by else target.name)
    teller = _Teller(target)
    at_seconds = 0.0
    for index, turn in enumerate(session.turns):
        at_seconds += pace.pause_before(turn) if index else 0.0
        asked = Asked(label=turn.label or f"request {turn.number}", at_seconds=at_seconds)
        try:
            teller.tell(turn, asked, arranged_by)
        except InvalidRequest as error:
            asked.error = str(error)
        run.asked.append(asked)
        at_seconds += turn.reply_seconds
    run.values = teller.totals()
    return run


class _Teller:
    """One provider's caches, one for each rule that its models and dialects have."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._caches: dict[object, tuple[Simulator, Ideal]] = {}
        self._verdicts = Verdicts()
        self._bills: list[tuple[Usage, Usage, Price | None]] = []

    def tell(self, turn: Turn, asked: Asked, optimiser: Optimiser | None) -> None:
        """Raises InvalidRequest as the provider would, or where the request cannot be put into its dialect."""
        asked.verdict = f"Estimated: {self._verdicts.of(turn)}"
        model = self._target.model or turn.request.model
        dialect, body = self._spoken(turn, model)
        if optimiser is not None:
            body = optimiser.arrange(body, dialect).body
        rule = self._target.provider.rule_for(model, dialect)
        simulator, ideal = self._caches.setdefault(rule, (Simulator(rule), Ideal(rule)))
        usage = simulator.send(body, dialect, at_seconds=asked.at_seconds, model=model, headers=turn.headers)
        best = ideal.send(body, dialect, model=model)
        _note(asked, usage, best)
        price = price_of(self._target.provider, model, num_input_tokens=usage.num_input_tokens or 0)
        asked.dollars = None if price is None else input_cost(usage, price)
        self._bills.append((usage, best, price))

    def totals(self) -> dict[str, float]:
        """Of all requests; without sums of which a part is not known."""
        sums = {
            CACHE_WRITES: sum_of(usage.num_cache_write_tokens for usage, _, _ in self._bills),
            DOLLARS: sum_of(price and input_cost(usage, price) for usage, _, price in self._bills),
            DOLLARS_UNCACHED: sum_of(
                price and tokens_cost(usage.num_input_tokens, price.input) for usage, _, price in self._bills
            ),
            DOLLARS_BEST: sum_of(price and input_cost(best, price) for _, best, price in self._bills),
        }
        return {name: value for name, value in sums.items() if value is not None}

    def _spoken(self, turn: Turn, model: str) -> tuple[DialectName, Body]:
        """In its own dialect, if the provider speaks that and caches there; else in the provider's first."""
        provider = self._target.provider
        body = {**turn.body, "model": model}
        name = turn.dialect.name
        if name in provider.dialects and provider.rule_for(model, name).kind != "none":
            return name, body
        other = dialect_named(provider.dialects[0])
        return other.name, other.write_request(turn.dialect.read_request(body)).body


def _note(asked: Asked, usage: Usage, best: Usage) -> None:
    size, read = usage.num_input_tokens or 0, usage.num_cache_read_tokens or 0
    asked.num_prompt_tokens, asked.num_reused_tokens, asked.num_computed_tokens = size, read, size - read
    asked.num_bound_tokens = (best.num_input_tokens or 0) - (best.num_cache_read_tokens or 0)
