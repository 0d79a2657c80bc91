"""Requests for tests of cache rules: texts whose number of tokens is known."""

from __future__ import annotations

from typing import Any

from kvstet.providers.estimate import num_tokens

Body = dict[str, Any]
MARK = {"cache_control": {"type": "ephemeral"}}
LONG_MARK = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def words(number: int, seed: str = "word") -> str:
    """A text of exactly so many tokens, which begins as no other seed's does."""
    text = seed + " so" * (number - num_tokens(seed))
    assert num_tokens(text) == number
    return text


def block(text: str, **more: Any) -> Body:
    return {"type": "text", "text": text, **more}


def messages_body(*turns: list[Body], system: list[Body] | None = None, **more: Any) -> Body:
    """Anthropic's: user and assistant take turns."""
    said = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"model": "m", "system": system or [], "messages": said, **more}


def chat_body(*turns: str, system: str = "be brief", **more: Any) -> Body:
    """OpenAI's: the system prompt, then user and assistant in turns."""
    said = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"model": "m", "messages": [{"role": "system", "content": system}, *said], **more}
