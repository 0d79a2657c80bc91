"""Prometheus metrics: what the server saw itself, and the engine's counters as they stand at each scrape."""

from __future__ import annotations

from collections import Counter as PlainCounter
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvstet.engine.client import EngineClient
from kvstet.engine.messages import Stats
from kvstet.types import SubstitutionName

Outcome = Literal["ok", "client_error", "server_error", "disconnected"]
Admission = Literal["admitted", "concurrency", "rate"]
"""Whether a key's request was let in, or which of the key's limits kept it out."""

Engines = Callable[[], Mapping[str, EngineClient | None]]
"""The models' names, and their engines; None: not loaded."""

Family = CounterMetricFamily | GaugeMetricFamily
Labels = tuple[str, ...]

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
    "num_predicted_tokens": ("kvstet_predicted_tokens", "Tokens computed while idle, before anyone asked."),
    "num_predicted_tokens_used": ("kvstet_predicted_tokens_used", "Of the predicted tokens, asked for later."),
    "num_predicted_tokens_wasted": ("kvstet_predicted_tokens_wasted", "Of the predicted tokens, given up."),
    "num_damaged_blobs": ("kvstet_damaged_blobs", "Saved states found lost or damaged on disk, and given up."),
}
_SOURCES = ("reused", "loaded", "shifted", "computed")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, engines: Engines) -> None:
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
        self._substitutions = Counter(
            "kvstet_substitutions",
            "Requests of which something was substituted, by what it was.",
            ["name"],
            registry=self._registry,
        )
        self.num_substituted: PlainCounter[SubstitutionName] = PlainCounter()
        """The same, to be read."""
        self._registry.register(_EngineCollector(engines))

    def observe_request(self, route: str, outcome: Outcome, seconds: float) -> None:
        self._requests.labels(route, outcome).inc()
        self._request_seconds.labels(route).observe(seconds)

    def observe_key(self, name: str, admission: Admission) -> None:
        self._key_requests.labels(name, admission).inc()

    def observe_first_token(self, seconds: float) -> None:
        self._first_token_seconds.observe(seconds)

    def observe_substitutions(self, names: Iterable[SubstitutionName]) -> None:
        """Of one request."""
        for name in set(names):
            self._substitutions.labels(name).inc()
            self.num_substituted[name] += 1

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads `EngineClient.stats` at scrape time, so that there is one set of counters and not two.

    Where there are several models, each value has its model as a label; a model that is not loaded has no counters.
    """

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        """Names without values, so that registering asks nothing of the engine."""
        return ()

    def collect(self) -> Iterable[Metric]:
        engines = self._engines()
        label = ("model",) if len(engines) > 1 else ()
        stats = {(name,)[: len(label)]: engine.stats() for name, engine in engines.items() if engine is not None}
        ready = GaugeMetricFamily("kvstet_ready", "1 while the engine takes requests.", labels=label)
        for name, engine in engines.items():
            ready.add_metric((name,)[: len(label)], engine is not None and engine.is_ready)
        yield ready
        yield _prompt_tokens(label, stats)
        for name, (metric, text) in _COUNTERS.items():
            yield _filled(CounterMetricFamily(metric, text, labels=label), name, stats)
        for name, (metric, text) in _GAUGES.items():
            yield _filled(GaugeMetricFamily(metric, text, labels=label), name, stats)


def _filled(family: Family, field: str, stats: Mapping[Labels, Stats]) -> Family:
    """With a field of each engine's counters."""
    for labels, counters in stats.items():
        family.add_metric(labels, getattr(counters, field))
    return family


def _prompt_tokens(label: Labels, stats: Mapping[Labels, Stats]) -> Metric:
    text = "Prompt tokens by where they came from."
    family = CounterMetricFamily("kvstet_prompt_tokens", text, labels=(*label, "source"))
    for labels, counters in stats.items():
        for source in _SOURCES:
            family.add_metric((*labels, source), getattr(counters, f"num_{source}_tokens"))
    return family
