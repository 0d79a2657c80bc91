"""Messages in OpenAI's form: what they say, and the same with another text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from kvstet.types import HEAD_ROLES

Message = dict[str, Any]

_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})


def role_of(message: Message) -> str:
    role: object = message.get("role")
    return role if isinstance(role, str) else ""


def text_of(message: Message) -> str | None:
    """Its text; None where there is something else in it."""
    content: object = message.get("content")
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        return None
    parts = cast("Sequence[object]", content)
    texts = [text for text in map(_text_of_part, parts) if text is not None]
    return "\n".join(texts) if len(texts) == len(parts) else None


def _text_of_part(part: object) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return None
    fields = cast("Mapping[str, object]", part)
    kind, text = fields.get("type", "text"), fields.get("text")
    return text if isinstance(text, str) and isinstance(kind, str) and kind in _TEXT_TYPES else None


def with_text(message: Message, text: str) -> Message:
    return {**message, "content": text}


def with_more(message: Message, text: str) -> Message:
    """With a paragraph behind its text, which has to be text."""
    content: object = message.get("content")
    if isinstance(content, list | tuple) and content:
        return {**message, "content": [*cast("Sequence[object]", content), {"type": "text", "text": f"\n{text}"}]}
    before = text_of(message)
    return {**message, "content": f"{before}\n\n{text}" if before else text}


def num_head_messages(messages: Sequence[Message]) -> int:
    """How many of the system and the developer it begins with."""
    others = (index for index, message in enumerate(messages) if role_of(message) not in HEAD_ROLES)
    return next(others, len(messages))


def calls_of(message: Message) -> list[Mapping[str, Any]] | None:
    """The functions that it calls; None where they are not in OpenAI's form."""
    calls: object = message.get("tool_calls") or []
    if not isinstance(calls, list | tuple):
        return None
    functions: list[Mapping[str, Any]] = []
    for call in cast("Sequence[object]", calls):
        function = cast("Mapping[str, object]", call).get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            return None
        functions.append(cast("Mapping[str, Any]", function))
    return functions


def arguments_of(function: Mapping[str, Any]) -> object:
    """Arguments of a call, read where they are JSON."""
    arguments: object = function.get("arguments")
    if not isinstance(arguments, str):
        return arguments or {}
    try:
        return cast("object", json.loads(arguments or "{}"))
    except (ValueError, RecursionError):
        return arguments
