"""The two shapes of an answer: chat completions and text completions."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from kvstet.api.decoding import TokenText
from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta, message_of
from kvstet.types import Tokenizer

_json = msgspec.json.Encoder().encode

_LOWEST_LOGPROB = -9999.0
"""What OpenAI sends for impossible tokens; JSON has no infinity."""


class Shape(Protocol):
    """How what the model says is put into choices."""

    object_name: str
    chunk_object_name: str
    nothing: bytes
    """As `encode`, of no delta."""

    def opening(self, text: str) -> dict[str, Any] | None:
        """A choice's first fields in a stream, given the echoed prompt; None: there is nothing to send."""
        ...

    def encode(self, delta: Delta) -> bytes:
        """A chunk's choice has these fields, as JSON without the braces; empty: there is nothing to send."""
        ...

    def ending(self) -> dict[str, Any]:
        """A choice's fields in its last chunk, where nothing is left to say."""
        ...

    def whole(self, echo: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        """A choice's fields in an answer that is not streamed."""
        ...

    def calls(self, delta: Delta) -> bool:
        """Whether this makes the reply one that calls tools."""
        ...

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        """``offset``: characters that come before the reply in the choice's text."""
        ...


class ChatShape:
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    nothing = b'"delta":{}'

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, text: str) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": text}}

    def encode(self, delta: Delta) -> bytes:
        match delta:
            case TextDelta(text):
                return b'"delta":{"content":' + _json(text) + b"}"
            case ReasoningDelta(text):
                return b'"delta":{"reasoning_content":' + _json(text) + b"}"
            case ArgumentsDelta(index, json):
                return b'"delta":{"tool_calls":[{"index":%d,"function":{"arguments":%b}}]}' % (index, _json(json))
            case CallBegin(index, name):
                call = {"index": index, **_call(new_call_id(), name, "")}
                return b'"delta":{"tool_calls":[' + _json(call) + b"]}"
            case CallEnd():
                return b""

    def ending(self) -> dict[str, Any]:
        return {"delta": {}}

    def whole(self, echo: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        reply = message_of(deltas)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["content"] = reply.text or None
            message["tool_calls"] = [_call(new_call_id(), call.name, call.arguments) for call in reply.calls]
        return {"message": message}

    def calls(self, delta: Delta) -> bool:
        return isinstance(delta, CallBegin)

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        return {"content": [self._position(token) for token in tokens], "refusal": None}

    def _position(self, token: TokenText) -> dict[str, Any]:
        chosen = _entry(token.data, token.logprobs.logprob)
        top = [_entry(self._tokenizer.piece(other), logprob) for other, logprob in token.logprobs.top]
        return {**chosen, "top_logprobs": top}


class TextShape:
    object_name = "text_completion"
    chunk_object_name = "text_completion"
    nothing = b'"text":""'

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, text: str) -> dict[str, Any] | None:
        return {"text": text} if text else None

    def encode(self, delta: Delta) -> bytes:
        return b'"text":' + _json(delta.text) if isinstance(delta, TextDelta) else b""

    def ending(self) -> dict[str, Any]:
        return {"text": ""}

    def whole(self, echo: str, deltas: Sequence[Delta]) -> dict[str, Any]:
        return {"text": echo + message_of(deltas).text}

    def calls(self, delta: Delta) -> bool:
        return False

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        return {
            "tokens": [_readable(token.data) for token in tokens],
            "token_logprobs": [_finite(token.logprobs.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [offset + token.start for token in tokens],
        }

    def _top(self, token: TokenText) -> dict[str, float]:
        return {_readable(self._tokenizer.piece(other)): _finite(logprob) for other, logprob in token.logprobs.top}


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _call(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _readable(data), "logprob": _finite(logprob), "bytes": list(data)}


def _readable(data: bytes) -> str:
    """A token as text; one that is not whole characters is written as OpenAI writes it."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
