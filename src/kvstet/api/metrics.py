"""Prometheus metrics: what the server saw itself, and the engine's counters as they stand at each scrape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstet.engine.client import EngineClient
from kvstet.engine.messages import Stats

Outcome = Literal["ok", "client_error", "server_error", "disconnected"]
Admission = Literal["admitted", "concurrency", "rate"]
"""Whether a key's request was let in, or which of the key's limits kept it out."""

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)

_GAUGES = {
    "num_running": ("kvstet_running_requests", "Requests being computed."),
    "num_waiting": ("kvstet_waiting_requests", "Requests that wait to be admitted."),
    "num_nodes": ("kvstet_cache_nodes", "Nodes of the cache's tree."),
    "num_live_cells": ("kvstet_live_cells", "Token cells of live state in use."),
    "num_parked_branches": ("kvstet_parked_branches", "Branches kept live without a request."),
    "ram_bytes": ("kvstet_cache_ram_bytes", "Saved state held in host memory."),
    "disk_bytes": ("kvstet_cache_disk_bytes", "Saved state in the cache folder, of all models."),
    "num_unwritten_blobs": ("kvstet_unwritten_blobs", "States that should be on disk and are not yet."),
}
_COUNTERS = {
    "num_generated_tokens": ("kvstet_generated_tokens", "Tokens sampled."),
    "prefill_seconds": ("kvstet_prefill_seconds", "Time spent on prompts."),
    "decode_seconds": ("kvstet_decode_seconds", "Time spent on replies."),
    "num_evicted_blobs": ("kvstet_evicted_blobs", "Saved states dropped for want of room."),
    "num_preemptions": ("kvstet_preemptions", "Requests set back to waiting for want of live cells."),
    "num_written_bytes": ("kvstet_disk_written_bytes", "Written to the cache folder."),
    "num_damaged_blobs": ("kvstet_damaged_blobs", "Saved states found lost or damaged on disk, and given up."),
}
_SOURCES = ("reused", "loaded", "shifted", "computed")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engine: EngineClient) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("kvstet_requests", "Requests answered.", ["route", "outcome"], registry=self._registry)
        self._request_seconds = Histogram(
            "kvstet_request_seconds",
            "Time from request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._key_requests = Counter(
            "kvstet_key_requests",
            "Requests by the name of their API key, and whether its limits let them in.",
            ["key", "admission"],
            registry=self._registry,
        )
        self._first_token_seconds = Histogram(
            "kvstet_first_token_seconds",
            "Time from request to its first token, waiting included.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(engine))

    def observe_request(self, route: str, outcome: Outcome, seconds: float) -> None:
        self._requests.labels(route, outcome).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_key(self, name: str, admission: Admission) -> None:
        self._key_requests.labels(name, admission).inc()

    def observe_first_token(self, seconds: float) -> None:
        self._first_token_seconds.observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads `EngineClient.stats` at scrape time, so that there is one set of counters and not two."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def describe(self) -> Iterable[Metric]:
        """Names without values, so that registering asks nothing of the engine."""
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._engine.stats()
        yield GaugeMetricFamily("kvstet_ready", "1 while the engine takes requests.", value=self._engine.is_ready)
        yield _prompt_tokens(stats)
        for name, (metric, text) in _COUNTERS.items():
            yield CounterMetricFamily(metric, text, value=getattr(stats, name))
        for name, (metric, text) in _GAUGES.items():
            yield GaugeMetricFamily(metric, text, value=getattr(stats, name))


def _prompt_tokens(stats: Stats) -> Metric:
    family = CounterMetricFamily("kvstet_prompt_tokens", "Prompt tokens by where they came from.", labels=["source"])
    for source in _SOURCES:
        family.add_metric([source], getattr(stats, f"num_{source}_tokens"))
    return family
