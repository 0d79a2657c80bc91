"""Parts of messages, which the three APIs name differently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from kvstet.dialects.request import CACHE_MARK, Message, Part
from kvstet.dialects.values import Object, obj, objects, text

_DATA_URL = re.compile(r"data:([^;,]*)(?:;[^,]*?)?;base64,", re.IGNORECASE)
_ERROR_WORD = "error"

Content = str | list[Part]


def text_part(said: str) -> Part:
    return {"type": "text", "text": said}


def image_part(url: str, detail: str | None = None) -> Part:
    return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}


def data_url(media_type: str, data: str) -> str:
    return f"data:{media_type};base64,{data}"


def split_data_url(url: str) -> tuple[str, str] | None:
    """Media type and Base64 text; None where it is another kind of URL."""
    match = _DATA_URL.match(url)
    return (match[1] or "application/octet-stream", url[match.end() :]) if match else None


def marked(part: Part, source: Object) -> Part:
    """The part with the cache mark of what it was read from."""
    mark = mark_of(source)
    return {**part, CACHE_MARK: mark} if mark is not None else part


def mark_of(source: Object) -> dict[str, Any] | None:
    """A mark in Anthropic's form, or OpenAI's ``prompt_cache_breakpoint`` in the same words."""
    if mark := obj(source.get(CACHE_MARK)):
        return dict(mark)
    own = obj(source.get("prompt_cache_breakpoint"))
    if not own:
        return None
    # Anthropic has 5 minutes and 1 hour; OpenAI 30 minutes and 12 hours.
    return {"type": "ephemeral", "ttl": "1h"} if own.get("ttl") == "12h" else {"type": "ephemeral"}


def mark_fields(fields: Object) -> dict[str, Any]:
    """The cache mark of something neutral, to be written beside what is made of it."""
    return {CACHE_MARK: fields[CACHE_MARK]} if CACHE_MARK in fields else {}


def simplest(parts: Sequence[Part]) -> Content:
    """One plain text as a string, no parts as an empty one: so content does not change its form with a mark."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return str(parts[0]["text"])
    return list(parts)


def parts_of(content: object) -> list[Part]:
    """Neutral content as parts."""
    if isinstance(content, str):
        return [text_part(content)] if content else []
    return [dict(part) for part in objects(content)]


def plain_text(content: object) -> str:
    """Neutral content as text: parts stand on lines of their own."""
    return "\n".join(text(part.get("text")) for part in parts_of(content) if part.get("type") == "text")


def is_all_text(parts: Iterable[Part]) -> bool:
    return all(part.get("type") == "text" for part in parts)


def result_parts(message: Message) -> list[Part]:
    """A result's content for an API that has no field to say that the call failed."""
    parts = parts_of(message.get("content"))
    if message.get("is_error") is not True:
        return parts
    place = next((index for index, part in enumerate(parts) if part.get("type") == "text"), None)
    if place is None:
        return [text_part("Error"), *parts]
    said = text(parts[place].get("text"))
    if _ERROR_WORD in said.partition("\n")[0].casefold():
        return parts
    return [*parts[:place], {**parts[place], "text": f"Error: {said}"}, *parts[place + 1 :]]


def reference_text(name: str) -> str:
    """For an API without deferred tools: it is in ``tools`` from here on."""
    return f"The tool {name} can be called from here on."


def unsealed(message: Message) -> list[str]:
    """Names of the reasoning that a vendor would refuse, since it has not sealed it."""
    return [f"messages.{name}" for name in ("reasoning_content", "reasoning_details") if message.get(name)]
