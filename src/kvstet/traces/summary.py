"""What is in a trace: who asked whom for what, and what came of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvstet.dialects.values import integer
from kvstet.errors import RequestError
from kvstet.providers.usage import usage_of
from kvstet.traces.format import Response
from kvstet.traces.reading import Exchange
from kvstet.types import Usage

OTHER = "?"
"""Of what is not known."""


@dataclass(slots=True)
class Group:
    """Requests of one client to one model in one dialect."""

    client: str
    dialect: str
    model: str
    num_requests: int = 0
    num_replies: int = 0
    num_calls: int = 0
    num_broken_off: int = 0
    num_refused: int = 0
    """Answered with an error."""
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    first_seconds: list[float] = field(default_factory=list[float], repr=False)
    """Until the first token, of each reply of which it is known."""

    def add(self, exchange: Exchange) -> None:
        self.num_requests += 1
        response, plan = exchange.response, exchange.plan
        if response is None:
            return
        if plan is not None:
            self.num_replies += 1
            self.num_calls += len(plan.calls)
        self.num_broken_off += response.broken_off
        self.num_refused += response.status >= 300
        usage = _usage(response)
        self.num_input_tokens += usage.num_input_tokens or 0
        self.num_cached_tokens += usage.num_cache_read_tokens or 0
        self.num_output_tokens += usage.num_output_tokens or 0
        if response.first_seconds is not None:
            self.first_seconds.append(response.first_seconds)


@dataclass(slots=True)
class Summary:
    """Of all exchanges."""

    groups: dict[tuple[str, str, str], Group] = field(default_factory=dict[tuple[str, str, str], Group])
    num_seconds: float = 0.0
    """From the trace's beginning to its last line."""

    @property
    def num_requests(self) -> int:
        return sum(group.num_requests for group in self.groups.values())

    def add(self, exchange: Exchange) -> None:
        key = client_of(exchange), _dialect_of(exchange), _model_of(exchange)
        self.groups.setdefault(key, Group(*key)).add(exchange)
        last = exchange.response.t if exchange.response is not None else exchange.request.t
        self.num_seconds = max(self.num_seconds, exchange.request.t, last)


def summary_of(exchanges: Iterable[Exchange]) -> Summary:
    summary = Summary()
    for exchange in exchanges:
        summary.add(exchange)
    return summary


def client_of(exchange: Exchange) -> str:
    """As it names itself: ``claude-cli/2.1.330``."""
    named = (value for name, value in exchange.request.headers if name.lower() == "user-agent")
    return (next(named, "").split() or [OTHER])[0]


def _usage(response: Response) -> Usage:
    """As it was told; chat streams tell it only on demand, and then kvstet's account does."""
    if response.usage is not None or response.kvstet is None:
        return usage_of({"usage": response.usage})
    sources = {name: integer(response.kvstet.get(name)) or 0 for name in ("reused", "loaded", "shifted", "computed")}
    num_input = sum(sources.values())
    return Usage(
        num_input_tokens=num_input,
        num_cache_read_tokens=num_input - sources["computed"],
        num_output_tokens=len(response.tokens) if response.tokens is not None else None,
    )


def _dialect_of(exchange: Exchange) -> str:
    return exchange.dialect.name if exchange.dialect is not None else exchange.path


def _model_of(exchange: Exchange) -> str:
    return next(filter(None, _models(exchange)), OTHER)


def _models(exchange: Exchange) -> Iterator[str]:
    if exchange.response is not None:
        yield exchange.response.model
    try:
        yield str(exchange.body.get("model") or "")
    except RequestError:
        return
