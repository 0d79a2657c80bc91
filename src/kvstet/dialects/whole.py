"""A whole reply, put together from its deltas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    Failure,
    ReasoningDelta,
    ReasoningSeal,
    RefusalDelta,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.request import Message
from kvstet.dialects.seals import Detail, text_of_detail, with_text
from kvstet.types import Usage


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: str
    """JSON text as the model wrote it, valid or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    model: str = ""
    id: str = ""
    reasoning: str = ""
    details: tuple[Detail, ...] = ()
    """What must go back to the vendor, as ``reasoning_details``."""
    text: str = ""
    refusal: str = ""
    calls: tuple[Call, ...] = ()
    usage: Usage = field(default_factory=Usage)
    end: ReplyEnd | None = None
    """None: it broke off, or failed."""
    failure: Failure | None = None

    @property
    def message(self) -> Message:
        """As it is put into the next request."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.details:
            message["reasoning_details"] = [dict(detail) for detail in self.details]
        if self.refusal:
            message["refusal"] = self.refusal
        if self.calls:
            message["tool_calls"] = [neutral_call(call.id, call.name, call.arguments) for call in self.calls]
        return message

    def thoughts(self) -> Iterator[tuple[str, Detail | None]]:
        """The reasoning, each seal with the text that it is of. None: that was not sealed."""
        rest = self.reasoning
        for detail in self.details:
            said = text_of_detail(detail)
            rest = rest.removeprefix(said)
            yield said, detail
        if rest:
            yield rest, None


def neutral_call(id: str, name: str, arguments: str) -> Message:
    """One of ``tool_calls``."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


class ReplyBuilder:
    """Puts a reply together while it comes; `reply` is it as far as that has happened."""

    def __init__(self) -> None:
        self._begin = ReplyBegin()
        self._reasoning: list[str] = []
        self._num_sealed = 0
        self._details: list[Detail] = []
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._begun: dict[int, CallBegin] = {}
        self._arguments: dict[int, list[str]] = {}
        self._usage = Usage()
        self._end: ReplyEnd | None = None
        self._failure: Failure | None = None

    def __repr__(self) -> str:
        return f"ReplyBuilder({len(self._begun)} calls, end={self._end}, failure={self._failure})"

    def add(self, delta: Delta) -> None:
        match delta:
            case ReplyBegin():
                self._begin = delta
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ReasoningSeal(detail):
                self._details.append(with_text(detail, "".join(self._reasoning[self._num_sealed :])))
                self._num_sealed = len(self._reasoning)
            case TextDelta(text):
                self._text.append(text)
            case RefusalDelta(text):
                self._refusal.append(text)
            case CallBegin(index=index):
                self._begun[index] = delta
                self._arguments[index] = []
            case ArgumentsDelta(index, json):
                self._arguments.setdefault(index, []).append(json)
            case CallEnd():
                return
            case UsageNews(usage):
                self._usage = usage
            case ReplyEnd():
                self._end = delta
            case Failure():
                self._failure = delta

    @property
    def reply(self) -> Reply:
        return Reply(
            model=self._begin.model,
            id=self._begin.id,
            reasoning="".join(self._reasoning),
            details=tuple(self._details),
            text="".join(self._text),
            refusal="".join(self._refusal),
            calls=tuple(
                Call(begin.id, begin.name, "".join(self._arguments[index]))
                for index, begin in sorted(self._begun.items())
            ),
            usage=self._usage,
            end=self._end,
            failure=self._failure,
        )


def reply_of(deltas: Iterable[Delta]) -> Reply:
    builder = ReplyBuilder()
    for delta in deltas:
        builder.add(delta)
    return builder.reply
