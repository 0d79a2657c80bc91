"""Bodies checked by the types of the official SDKs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from anthropic.types import message_create_params as messages
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from pydantic import TypeAdapter

from kvstet.dialects.dialect import DialectName

_TYPES = {
    ("chat", False): chat.CompletionCreateParamsNonStreaming,
    ("chat", True): chat.CompletionCreateParamsStreaming,
    ("messages", False): messages.MessageCreateParamsNonStreaming,
    ("messages", True): messages.MessageCreateParamsStreaming,
    ("responses", False): responses.ResponseCreateParamsNonStreaming,
    ("responses", True): responses.ResponseCreateParamsStreaming,
}


@cache
def _adapter(name: str, is_streamed: bool) -> TypeAdapter[Any]:
    return TypeAdapter(_TYPES[name, is_streamed])


def check_body(name: DialectName, body: dict[str, Any]) -> None:
    """Raises what pydantic has to say against it."""
    _exhaust(_adapter(name, bool(body.get("stream"))).validate_python(body))


def _exhaust(value: Any) -> None:
    """Lists are validated only while they are walked."""
    match value:
        case dict():
            _exhaust(list(value.values()))
        case list() | tuple() | Iterator():
            for item in value:
                _exhaust(item)
        case _ if type(value).__name__ == "ValidatorIterator":
            for item in value:
                _exhaust(item)
        case _:
            return
