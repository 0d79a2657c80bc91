"""Replies of the Chat API, written: as chunks, or whole."""

from __future__ import annotations

import secrets
import time
from typing import Any

from kvstet.dialects.failures import openai_error
from kvstet.dialects.names import client_names
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
from kvstet.dialects.request import Request
from kvstet.dialects.seals import with_text
from kvstet.dialects.tools import custom_names, input_of_arguments
from kvstet.dialects.usage import chat_usage
from kvstet.dialects.values import to_json
from kvstet.dialects.whole import Call, Reply
from kvstet.types import Usage

_DONE = b"data: [DONE]\n\n"


class ChatWriter:
    """One streamed reply. A call of a custom tool is told when it is whole, since its input lies within a JSON text."""

    def __init__(self, request: Request) -> None:
        self._common = _head(request.model, "chat.completion.chunk")
        self._includes_usage = request.terms.includes_usage is True
        self._names = client_names(request.tools)
        self._custom = custom_names(request.tools)
        self._has_begun = False
        self._unsealed: list[str] = []
        self._usage = Usage()
        self._held: dict[int, _Held] = {}

    def __repr__(self) -> str:
        return f"ChatWriter({self._common['id']}, begun={self._has_begun})"

    def feed(self, delta: Delta) -> bytes:
        match delta:
            case ReplyBegin(model=model):
                self._common["model"] = model or self._common["model"]
                return self._opening()
            case UsageNews(usage):
                self._usage = usage
                return b""
            case Failure():
                return _event(openai_error(delta))
            case ReplyEnd():
                return self._opening() + self._ending(delta)
            case _:
                news = self._news(delta)
                return self._opening() + self._chunk(news) if news is not None else b""

    def _news(self, delta: Delta) -> dict[str, Any] | None:
        """Of a choice's ``delta``; None: there is nothing to say yet."""
        match delta:
            case TextDelta(text):
                return {"content": text}
            case ReasoningDelta(text):
                self._unsealed.append(text)
                return {"reasoning_content": text}
            case ReasoningSeal(detail):
                text = "".join(self._unsealed)
                self._unsealed.clear()
                return {"reasoning_details": [with_text(detail, text)]}
            case RefusalDelta(text):
                return {"refusal": text}
            case CallBegin() | ArgumentsDelta() | CallEnd():
                fragment = self._fragment(delta)
                return None if fragment is None else {"tool_calls": [fragment]}
            case _:
                return None

    def _fragment(self, delta: CallBegin | ArgumentsDelta | CallEnd) -> dict[str, Any] | None:
        match delta:
            case CallBegin(index, id, wire):
                name = self._names.get(wire, wire)
                if name in self._custom:
                    self._held[index] = _Held(id, name)
                    return None
                function = {"name": name, "arguments": ""}
                return {"index": index, "id": id, "type": "function", "function": function}
            case ArgumentsDelta(index, json):
                if index in self._held:
                    self._held[index].pieces.append(json)
                    return None
                return {"index": index, "function": {"arguments": json}}
            case CallEnd(index):
                held = self._held.pop(index, None)
                return None if held is None else {"index": index, **_custom_call(held.id, held.name, held.arguments)}

    def _opening(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def _ending(self, end: ReplyEnd) -> bytes:
        last = self._chunk({}, finish_reason=end.reason)
        usage = chat_usage(self._usage) if self._includes_usage else None
        told = b"" if usage is None else _event({**self._common, "choices": [], "usage": usage})
        return last + told + _DONE

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return _event({**self._common, "choices": [choice]})


class _Held:
    """A custom tool's call until it is whole."""

    def __init__(self, id: str, name: str) -> None:
        self.id = id
        self.name = name
        self.pieces: list[str] = []

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


def write_reply(request: Request, reply: Reply) -> dict[str, Any]:
    """A whole ``chat.completion``."""
    names, custom = client_names(request.tools), custom_names(request.tools)
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None, "refusal": reply.refusal or None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.details:
        message["reasoning_details"] = [dict(detail) for detail in reply.details]
    if reply.calls:
        message["tool_calls"] = [_call(call, names.get(call.name, call.name), custom) for call in reply.calls]
    elif reply.text == "" and not reply.refusal:
        message["content"] = ""
    reason = (reply.end or ReplyEnd("stop")).reason
    usage = chat_usage(reply.usage)
    return {
        **_head(reply.model or request.model, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}],
        **({} if usage is None else {"usage": usage}),
    }


def _head(model: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()), "model": model}


def _call(call: Call, name: str, custom: frozenset[str]) -> dict[str, Any]:
    if name in custom:
        return _custom_call(call.id, name, call.arguments)
    return {"id": call.id, "type": "function", "function": {"name": name, "arguments": call.arguments}}


def _custom_call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "custom", "custom": {"name": name, "input": input_of_arguments(arguments)}}


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value).encode() + b"\n\n"
