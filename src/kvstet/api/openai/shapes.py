"""The two shapes of an answer: chat completions and text completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from kvstet.api.decoding import TokenText
from kvstet.types import Tokenizer

_LOWEST_LOGPROB = -9999.0
"""What OpenAI sends for impossible tokens; JSON has no infinity."""


class Shape(Protocol):
    """How text is put into choices."""

    object_name: str
    chunk_object_name: str
    before_text: bytes
    """JSON of a chunk's choice, up to its text; ``after_text`` follows it."""
    after_text: bytes

    def opening(self, text: str) -> dict[str, Any] | None:
        """A choice's first fields in a stream, given the echoed prompt; None: there is nothing to send."""
        ...

    def ending(self) -> dict[str, Any]:
        """A choice's fields in its last chunk, where no text is left."""
        ...

    def whole(self, text: str) -> dict[str, Any]:
        """A choice's fields in an answer that is not streamed."""
        ...

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        """``offset``: characters that come before the reply in the choice's text."""
        ...


class ChatShape:
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"
    before_text = b'"delta":{"content":'
    after_text = b"}"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, text: str) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": text}}

    def ending(self) -> dict[str, Any]:
        return {"delta": {}}

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        return {"content": [self._position(token) for token in tokens], "refusal": None}

    def _position(self, token: TokenText) -> dict[str, Any]:
        chosen = _entry(token.data, token.logprobs.logprob)
        top = [_entry(self._tokenizer.piece(other), logprob) for other, logprob in token.logprobs.top]
        return {**chosen, "top_logprobs": top}


class TextShape:
    object_name = "text_completion"
    chunk_object_name = "text_completion"
    before_text = b'"text":'
    after_text = b""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def opening(self, text: str) -> dict[str, Any] | None:
        return {"text": text} if text else None

    def ending(self) -> dict[str, Any]:
        return {"text": ""}

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, tokens: Sequence[TokenText], offset: int) -> dict[str, Any]:
        return {
            "tokens": [_readable(token.data) for token in tokens],
            "token_logprobs": [_finite(token.logprobs.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [offset + token.start for token in tokens],
        }

    def _top(self, token: TokenText) -> dict[str, float]:
        return {_readable(self._tokenizer.piece(other)): _finite(logprob) for other, logprob in token.logprobs.top}


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
