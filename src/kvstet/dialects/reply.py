"""A reply in the neutral form, piece by piece.

A reader gives these in the order of the stream. Pieces of several calls may alternate; `kvstet.dialects.sequence` puts
them one after the other for dialects that cannot say that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvstet.types import Usage

EndReason = Literal["stop", "length", "tool_calls", "content_filter"]


@dataclass(frozen=True, slots=True)
class ReplyBegin:
    """The upstream has begun to answer."""

    model: str = ""
    """As the upstream names it; empty where it does not."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningSeal:
    """Ends a stretch of reasoning that must go back to its vendor as it is.

    ``detail`` is one of ``reasoning_details`` (`kvstet.dialects.request`) without its text, which came before.
    """

    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class RefusalDelta:
    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call begins. Calls are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsDelta:
    """The next piece of a call's arguments; all of them joined are one JSON text, if the model wrote one."""

    index: int
    json: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    index: int


@dataclass(frozen=True, slots=True)
class UsageNews:
    """What the reply has taken so far. May come several times; the last one counts."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class ReplyEnd:
    """The reply is whole, or is cut off on purpose. Nothing follows."""

    reason: EndReason
    stop_string: str | None = None
    """Which of the request's stop strings ended it, where that was told."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong, with or without a reply before it. Nothing follows."""

    status: int
    """HTTP; of an error in the middle of a stream: the one it would have had."""
    message: str
    code: str = ""
    """OpenAI's ``code``, where there is one: ``context_length_exceeded``..."""
    param: str | None = None
    overflow: tuple[int, int] | None = None
    """Tokens of a prompt that is too long, and how many it may have."""


Delta = (
    ReplyBegin
    | ReasoningDelta
    | ReasoningSeal
    | TextDelta
    | RefusalDelta
    | CallBegin
    | ArgumentsDelta
    | CallEnd
    | UsageNews
    | ReplyEnd
    | Failure
)
