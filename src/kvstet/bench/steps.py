"""What is done to a server in a scenario, one step after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PAUSE_SECONDS = 0.2
"""Nothing is asked for so long before each step. A client runs its tools then, and servers may do what they like."""

SAVING_SECONDS = 3.0
"""The pause before a server is killed: what it wants to have on disk by then, it has had time to write."""

Body = dict[str, Any]
"""Of a chat completion, in OpenAI's dialect, without what is the same for all: the model, streaming, sampling."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    label: str
    body: Body = field(repr=False)


@dataclass(frozen=True, slots=True)
class Together:
    """Requests that are sent at once."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Restart:
    """The server is killed and started again; what it had on disk is all that it has left."""


Step = Ask | Together | Restart


def asks_of(step: Step) -> tuple[Ask, ...]:
    """Its requests."""
    match step:
        case Ask():
            return (step,)
        case Together(asks):
            return asks
        case Restart():
            return ()
