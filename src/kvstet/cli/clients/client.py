"""What is known of a client: how it is started, pointed at a server, and kept from breaking the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Dialect = Literal["Chat", "Messages", "Responses", "any"]

FOLDER = "@kvstet-launch-folder@"
"""Stands in arguments and in values of variables for the folder in which the client's files lie."""

MAX_REPLY_TOKENS = 32_000
"""What clients ask for by themselves for models that they know."""

PATIENCE_MILLISECONDS = 3_000_000
"""How long a client may wait: reading a long prompt for the first time can take a model on CPUs many minutes."""

KEY_VARIABLE = "KVSTET_API_KEY"


@dataclass(frozen=True, slots=True)
class Target:
    """What a client is pointed at."""

    url: str
    """Of the server: without ``/v1``, and without a slash at its end."""
    api_key: str = field(repr=False)
    model: str
    context_length: int
    """Most tokens of a request, prompt and reply together."""

    @property
    def openai_url(self) -> str:
        """Where Chat Completions and Responses are."""
        return f"{self.url}/v1"

    @property
    def max_reply_tokens(self) -> int:
        """What a client may ask for at once, so that most of the context is left for the conversation."""
        return max(1, min(MAX_REPLY_TOKENS, self.context_length // 4))


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Setup:
    """How a client is started. It lies over the user's own settings, and writes nothing to them."""

    environment: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    """Variables that the client gets beside those that are there."""
    hidden: tuple[str, ...] = ()
    """Variables that the client does not get: they would point it elsewhere, or give other credentials away."""
    arguments: tuple[str, ...] = ()
    """Before those of the user, so that the user's prevail."""
    files: Mapping[str, str] = field(default_factory=_nothing, repr=False)
    """Contents by name, to be written into the folder that `FOLDER` stands for."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client."""

    names: tuple[str, ...]
    """What it is called on the command line; the first is shown."""
    title: str
    dialect: Dialect
    executables: tuple[str, ...]
    """Looked for in PATH, in this order; none: any command of the user's is started."""
    install: str
    """A sentence on how to get it."""
    setup: Callable[[Target], Setup]
    switched_off: tuple[str, ...] = ()
    """What is switched off, and why."""
    gives_up: tuple[str, ...] = ()
    """What does not work while it is started so."""
    num_own_tokens: int | None = None
    """About how many tokens its system prompt and tools take before the first question; None: not known."""

    @property
    def name(self) -> str:
        return self.names[0]
