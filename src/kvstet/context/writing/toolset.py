"""The tools of a conversation: in one order, spelt in one way, and never changed once they were sent.

Every template and every provider renders tools before the conversation. A tool that comes or goes there costs the whole
prompt. So the list stays what it was. A tool that comes later is told in a message and called through one tool that was
there from the start, `USE_TOOL`; one that goes is told to be gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from kvstet.canonical import canonical
from kvstet.context.message import Message
from kvstet.context.order import Tool, name_of

USE_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "use_tool",
        "description": "Call a tool that was announced in a message after the conversation began.",
        "parameters": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "Name of the announced tool."},
                "arguments": {"type": "object", "description": "Its arguments, as its schema says."},
            },
            "required": ["name", "arguments"],
        },
    },
}

_NAME = "use_tool"
_OPENING = "<system-reminder>\n"


def deterministic(tools: Iterable[Mapping[str, Any]]) -> list[Tool]:
    """The tools sorted by name, the keys of their schemas in one order: however they were gathered, byte for byte the
    same."""
    return sorted((cast("Tool", canonical(tool)) for tool in tools), key=lambda tool: (name_of(tool), json.dumps(tool)))


@dataclass(frozen=True, slots=True)
class Toolset:
    """``sent`` stand in every request; ``late`` were announced since, ``gone`` taken back."""

    sent: tuple[Tool, ...]
    late: Mapping[str, Tool] = field(default_factory=dict[str, Tool])
    gone: frozenset[str] = frozenset()

    @staticmethod
    def of(tools: Iterable[Mapping[str, Any]], *, takes_late: bool) -> Toolset:
        """Of a new conversation; ``takes_late``: tools may come later, so `USE_TOOL` is among them."""
        return Toolset(tuple(deterministic([*tools, *([USE_TOOL] if takes_late else [])])))

    @property
    def names(self) -> frozenset[str]:
        """Those that can be called now, by whatever way."""
        return (frozenset(map(name_of, self.sent)) - {_NAME} | frozenset(self.late)) - self.gone

    @property
    def takes_late(self) -> bool:
        return any(name_of(tool) == _NAME for tool in self.sent)

    def changed_to(self, tools: Iterable[Mapping[str, Any]]) -> tuple[Toolset, str]:
        """With these tools, and what to tell the model; empty where nothing is new. ValueError: none may come later."""
        wanted = {name_of(tool): tool for tool in deterministic(tools)}
        known = {**{name_of(tool): tool for tool in self.sent}, **self.late}
        come = {name: tool for name, tool in wanted.items() if known.get(name) != tool}
        back = sorted(name for name in wanted if name in self.gone and name not in come)
        gone = sorted(self.names - wanted.keys())
        if come and not self.takes_late:
            raise ValueError(f"These tools came after the conversation began, which takes none: {', '.join(come)}.")
        toolset = Toolset(self.sent, {**self.late, **come}, self.gone - wanted.keys() | frozenset(gone))
        return toolset, "\n".join([*_announced(come.values()), *_back(back), *_gone(gone)])

    def announcement(self) -> str:
        """All that has changed since the beginning: told again where the messages that told it are gone."""
        return "\n".join([*_announced(self.late[name] for name in sorted(self.late)), *_gone(sorted(self.gone))])

    def resolved(self, name: str, arguments: str) -> tuple[str, str]:
        """Which tool a call means, and its arguments as JSON."""
        if name != _NAME:
            return name, arguments
        try:
            fields = cast("object", json.loads(arguments))
        except (ValueError, RecursionError):
            return name, arguments
        match fields:
            case {"name": str(meant), "arguments": str(inner)}:
                return meant, inner
            case {"name": str(meant)}:
                return meant, json.dumps(cast("dict[str, Any]", fields).get("arguments", {}))
            case _:
                return name, arguments


def _announced(tools: Iterable[Tool]) -> list[str]:
    return [f"A tool can be called from here on, through {_NAME}:\n{_schema(tool)}" for tool in tools]


def _back(names: Sequence[str]) -> list[str]:
    return [f"The tool {name} can be called again." for name in names]


def _gone(names: Sequence[str]) -> list[str]:
    return [f"The tool {name} can no longer be called." for name in names]


def _schema(tool: Tool) -> str:
    return json.dumps(tool.get("function", tool), ensure_ascii=False)


def with_announcement(message: Message, text: str) -> Message:
    """A message that tells of tools, or of whatever else has changed."""
    return {**message, "content": f"{_OPENING}{text}\n</system-reminder>\n\n{message['content']}"}


def is_announcing(text: str) -> bool:
    return text.startswith(_OPENING)
