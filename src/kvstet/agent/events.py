"""What the agent tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvstet.agent.meter import Step
from kvstet.context.writing.compaction import Compaction
from kvstet.dialects.reply import Delta
from kvstet.dialects.whole import Call
from kvstet.errors import ModelFailed


@dataclass(frozen=True, slots=True)
class Replying:
    """A piece of a reply has come."""

    delta: Delta
    is_summary: bool = False
    """Of the conversation, for its compaction; the user did not ask for it."""


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins; ``name`` and ``arguments`` are of the tool that is meant."""

    name: str
    arguments: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answered:
    """A call is over; ``text`` is told to the model."""

    call: Call
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Stepped:
    """A reply is whole, and this is what it took."""

    step: Step


@dataclass(frozen=True, slots=True)
class Compacted:
    """The conversation was shortened; ``problem``: it was not, and why."""

    compaction: Compaction
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request failed, and is sent again after a pause. What came of its reply does not count."""

    error: ModelFailed
    after_seconds: float


Event = Replying | Called | Answered | Stepped | Compacted | Retrying
Watch = Callable[[Event], None]


def unwatched(_: Event) -> None:
    """Nobody watches."""
