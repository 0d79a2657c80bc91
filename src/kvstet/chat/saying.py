"""What a model generates to say a given reply: the reply as its template shows it, from behind the generation prompt.

Where the template shows the reply otherwise than it is generated (it leaves the reasoning out, or the generation prompt
has opened or closed it already), the reasoning is written between the markers that are known of it
(`kvstet.chat.reply`), and the rest taken as it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kvstet.chat.deltas import ParsedReply
from kvstet.chat.reply.syntax import Marker, Reasoning


def message_of_reply(reply: ParsedReply) -> dict[str, Any]:
    """The reply as a client sends it back, in OpenAI's form."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.calls:
        message["tool_calls"] = [
            {"id": call_id(index), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for index, call in enumerate(reply.calls)
        ]
    return message


def call_id(index: int) -> str:
    """Nine letters and digits: some templates refuse all others."""
    return f"call{index:05}"


def ways_to_say(shown: str, opening: str, reply: ParsedReply, reasoning: Reasoning | None) -> Iterator[str]:
    """Texts that may follow the generation prompt ``opening``, the likeliest first; ``shown`` is the message as the
    template prints it. Whether one of them says the reply has to be found out by reading it."""
    if shown.startswith(opening):
        yield shown[len(opening) :]
    if reasoning is None:
        return
    header, state = _opened(opening, reasoning)
    if not shown.startswith(header):
        return
    said = _without_reasoning(shown[len(header) :], reply, reasoning)
    if state == "open":
        yield reply.reasoning + _spelt(reasoning.close) + said
    elif reply.reasoning:
        yield _spelt(reasoning.open) + reply.reasoning + _spelt(reasoning.close) + said
    else:
        yield said


def _opened(opening: str, reasoning: Reasoning) -> tuple[str, str]:
    """The header that every reply has, and whether the generation prompt has begun or ended the reasoning behind it."""
    begun = re.search(f"{_pattern(reasoning.open)}\\s*(?P<close>{_pattern(reasoning.close)}\\s*)?$", opening)
    if begun is None:
        return opening, "unopened"
    return opening[: begun.start()], "closed" if begun["close"] else "open"


def _without_reasoning(shown: str, reply: ParsedReply, reasoning: Reasoning) -> str:
    """What is shown behind the reasoning, whether there is any."""
    thought = re.escape(reply.reasoning.strip())
    block = f"\\s*{_pattern(reasoning.open)}\\s*(?:{thought})?\\s*{_pattern(reasoning.close)}\\s*"
    found = re.match(block, shown)
    return shown[found.end() :] if found else shown


def _pattern(marker: Marker) -> str:
    return r"\s*".join(map(re.escape, marker.parts))


def _spelt(marker: Marker) -> str:
    return marker.before + "".join(marker.parts) + marker.after
