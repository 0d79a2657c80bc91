"""What ``kvstet bench`` found, as it is written to JSON and shown in the report."""

from __future__ import annotations

from typing import Literal

import msgspec

from kvstet.replay.results import Run

VERSION = 1

Kind = Literal["session", "rate", "growth", "memory"]
"""``session``: requests, of which tokens and times are told. ``rate``: ``values`` hold tokens per second. ``growth``:
one conversation that gets longer. ``memory``: ``values`` hold bytes."""


class Machine(msgspec.Struct, kw_only=True):
    processor: str
    num_cores: int
    ram_bytes: int
    system: str
    python: str


class Model(msgspec.Struct, kw_only=True):
    name: str
    size_bytes: int
    architecture: str = ""
    context_length: int


class Server(msgspec.Struct, kw_only=True):
    """A server that took part."""

    name: str
    version: str
    command: str
    """As a user would type it; of a URL, the URL."""


class Scenario(msgspec.Struct, kw_only=True):
    name: str
    """As ``--only`` takes it."""
    title: str
    about: str
    """What is done, and what it shows: a sentence or two."""
    kind: Kind
    runs: list[Run] = msgspec.field(default_factory=list[Run])


class DriftPoint(msgspec.Struct, kw_only=True):
    """How far an approximate state is from the exact one."""

    edit: str
    num_repaired_tokens: int
    mean_divergence: float
    """Kullback-Leibler, nats."""


class Results(msgspec.Struct, kw_only=True):
    version: int = VERSION
    began_wall: float
    """Unix time, seconds."""
    seconds: float
    command: str
    seed: int
    is_quick: bool
    machine: Machine
    model: Model
    servers: list[Server]
    """The first is kvstet."""
    scenarios: list[Scenario]
    drift: list[DriftPoint] = msgspec.field(default_factory=list[DriftPoint])
    noise_divergence: float | None = None
    """Of two exact runs, nats; drift below it cannot be told from none."""
