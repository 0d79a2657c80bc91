"""Conversations in OpenAI's form, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstet.context.equivalent.catalogue import NAMES
from kvstet.context.equivalent.equivalence import Equivalence, Equivalent

Message = dict[str, Any]

RULES = "\n".join(f"{number}. Do what you are told, and do it well." for number in range(12))


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def head(*, date: str = "2026-11-21", time: str = "10:00:00", git: str = "(clean)", billing: str = "abc") -> Message:
    """A system prompt with all that varies in those of real clients."""
    return system(
        f"x-anthropic-billing-header: cc_version=2.1.330.{billing}; cc_entrypoint=cli;\n"
        f"You are an agent.\n{RULES}\n<env>\nToday's date: {date}\nThe time is now {time}\n</env>\n"
        f'<context name="gitStatus">{git}</context>\n{RULES}'
    )


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, arguments: str | None = None, id: str = "call_1", **more: Any) -> Message:
    """With ``arguments``, it calls the tool ``ls``."""
    if arguments is None:
        return {"role": "assistant", "content": text, **more}
    call = {"id": id, "type": "function", "function": {"name": "ls", "arguments": arguments}}
    return {"role": "assistant", "content": text, "tool_calls": [call], **more}


def result(text: str, id: str = "call_1") -> Message:
    return {"role": "tool", "tool_call_id": id, "content": text}


def tool(name: str, description: str = "") -> Message:
    parameters = {"type": "object", "properties": {"path": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def follow(
    equivalence: Equivalence,
    *messages: Message,
    tools: Sequence[Message] = (),
    owner: str = "",
    without: Sequence[str] = (),
) -> Equivalent:
    return equivalence.follow(messages, tools, owner=owner, names=NAMES - set(without))


def texts(said: Equivalent) -> list[str]:
    """Of the messages."""
    return [text_of(message) for message in said.messages]


def text_of(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or [])


def names(said: Equivalent) -> list[tuple[str, int | None]]:
    return [(each.name, each.message) for each in said.substitutions]
