"""Prometheus metrics of a gateway: rates are derived from them, and stand in none."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

from kvstet.api.metrics import Metrics
from kvstet.types import Usage

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class GatewayMetrics(Metrics):
    """The server's own, without an engine's, and what the gateway has observed."""

    def __init__(self) -> None:
        super().__init__(dict)
        registry = self._registry
        self._bytes = Counter("kvstet_gateway_bytes", "Bytes of bodies passed on.", ["direction"], registry=registry)
        self._tokens = Counter(
            "kvstet_gateway_tokens",
            "Tokens as the upstream reports them; input includes what was read from its cache and written into it.",
            ["kind"],
            registry=registry,
        )
        self._unreported = Counter(
            "kvstet_gateway_unreported_requests",
            "Answered requests of which the upstream does not say this; it is not 0.",
            ["kind"],
            registry=registry,
        )
        self._dollars = Counter(
            "kvstet_gateway_cost_usd", "What requests cost whose price is known.", registry=registry
        )
        self._unpriced = Counter("kvstet_gateway_unpriced_requests", "Of which it is not.", registry=registry)
        self._changes = Counter("kvstet_gateway_changes", "Changes made to requests.", ["name"], registry=registry)
        self._failures = Counter(
            "kvstet_gateway_observation_failures",
            "Requests that were passed on, and could not be observed or arranged.",
            ["what"],
            registry=registry,
        )
        self._overhead = Histogram(
            "kvstet_gateway_overhead_seconds",
            "Time that requests spent in the gateway before they began to be sent on.",
            buckets=_SECONDS,
            registry=registry,
        )

    def observe_bytes(self, num_sent_bytes: int, num_received_bytes: int) -> None:
        self._bytes.labels("sent").inc(num_sent_bytes)
        self._bytes.labels("received").inc(num_received_bytes)

    def observe_overhead(self, seconds: float) -> None:
        self._overhead.observe(seconds)

    def observe_usage(self, usage: Usage) -> None:
        """Of one answered request."""
        kinds = {
            "input": usage.num_input_tokens,
            "cache_read": usage.num_cache_read_tokens,
            "cache_write": usage.num_cache_write_tokens,
            "output": usage.num_output_tokens,
        }
        for kind, num_tokens in kinds.items():
            if num_tokens is None:
                self._unreported.labels(kind).inc()
            else:
                self._tokens.labels(kind).inc(num_tokens)

    def observe_cost(self, dollars: float | None) -> None:
        if dollars is None:
            self._unpriced.inc()
        else:
            self._dollars.inc(max(0.0, dollars))

    def observe_change(self, name: str) -> None:
        self._changes.labels(name).inc()

    def observe_failure(self, what: str) -> None:
        """``what``: observation, ledger, arrangement or comparison."""
        self._failures.labels(what).inc()
