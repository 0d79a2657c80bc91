"""What a reply says, piece by piece: reasoning, text and tool calls."""

from __future__ import annotations

from collections.abc import Iterable
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


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A tool call, its arguments as the JSON that the model wrote."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply says, all of it."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[ParsedCall, ...] = ()


def message_of(deltas: Iterable[Delta]) -> ParsedReply:
    """All deltas of a reply, or of its beginning, put together."""
    reasoning: list[str] = []
    text: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case ReasoningDelta():
                reasoning.append(delta.text)
            case TextDelta():
                text.append(delta.text)
            case CallBegin():
                names.append(delta.name)
                arguments.append([])
            case ArgumentsDelta():
                arguments[delta.index].append(delta.json)
            case CallEnd():
                pass
    calls = (ParsedCall(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True))
    return ParsedReply("".join(reasoning), "".join(text), tuple(calls))
