"""What a reply says, piece by piece: reasoning, text and tool calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """The next piece of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of what the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call begins; its name is known. Calls are numbered from 0 and do not overlap."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of a call's arguments: all pieces joined are one JSON text, if the model wrote it to its end."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The call's arguments are complete."""

    index: int


Delta = ReasoningDelta | TextDelta | CallBegin | ArgumentsDelta | CallEnd
