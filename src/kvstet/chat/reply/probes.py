"""Conversations that are rendered to see how a template writes replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType

from kvstet.chat.template import ChatTemplate
from kvstet.chat.traits import CallShape, Traits, traits_of
from kvstet.errors import TemplateError

USER = "kvstet_user"
TEXT = "kvstet_text"
REASON = "kvstet_reason"
RESULT = "kvstet_result"
NAMES = ("kvstet_tool", "kvstet_toom")
IDS = ("kvstetid1", "kvstetid2")
KEYS = ("kvstet_key", "kvstet_kez")
VALUES = ("kvstet_value", "kvstet_valuf")
NUMBER = 27182818

_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
TOOLS: Sequence[Mapping[str, object]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": ""} for key in KEYS},
                "required": [],
                "additionalProperties": False,
            },
        },
    }
    for name in NAMES
]

Arguments = Mapping[str, object]


class Probes:
    """Renders probe conversations. Each rendering starts behind the user's message; None where the template refuses."""

    def __init__(self, template: ChatTemplate, extra: Mapping[str, object] = MappingProxyType({})) -> None:
        """``extra`` are variables of the template."""
        self._template = template
        self._extra = extra
        self.traits: Traits = traits_of(template)

    def thinking(self) -> Probes:
        """The same with reasoning switched on, for templates that have a switch."""
        return Probes(self._template, {"enable_thinking": True, "thinking": True})

    def __repr__(self) -> str:
        return f"Probes({self._template!r})"

    @cached_property
    def prompt(self) -> str | None:
        """The generation prompt."""
        return self._render([], generation_prompt=True)

    def reply(self, text: str = "", calls: Sequence[Arguments] = (), reasoning: str = "", then: str = "") -> str | None:
        """An assistant's message at the end of the conversation, or with ``then`` (a role) behind it.

        It calls a tool of `NAMES` for each of ``calls``.
        """
        message = _assistant(text, tuple(calls), reasoning, self.traits.calls)
        following = {
            "": [],
            "user": [{"role": "user", "content": RESULT}],
            "tool": [{"role": "tool", "tool_call_id": IDS[0], "name": NAMES[0], "content": RESULT}],
        }[then]
        rendered = self._render([message, *following])
        if rendered is None and reasoning:
            parts = [{"type": "thinking", "thinking": reasoning}, *([{"type": "text", "text": text}] if text else [])]
            rendered = self._render([{**message, "content": parts}, *following])
        return rendered

    def reply_in_parts(self, text: str, reasoning: str) -> str | None:
        """Reasoning as a part of the content."""
        parts = [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": text}]
        return self._render([{"role": "assistant", "content": parts}])

    def _render(self, messages: Sequence[Mapping[str, object]], generation_prompt: bool = False) -> str | None:
        try:
            rendered = self._template.render(
                [{"role": "user", "content": USER}, *messages],
                tools=TOOLS,
                add_generation_prompt=generation_prompt,
                now=datetime(2000, 1, 1),
                extra=self._extra,
            )
        except TemplateError:
            return None
        _, found, tail = rendered.text.rpartition(USER)
        return tail if found else None


def _assistant(text: str, calls: Sequence[Arguments], reasoning: str, shape: CallShape) -> Mapping[str, object]:
    message: dict[str, object] = {"role": "assistant", "content": text}
    if reasoning:
        message |= dict.fromkeys(_REASONING_KEYS, reasoning)
    if calls:
        pairs = zip(NAMES, IDS, calls, strict=False)
        message["tool_calls"] = [_call(name, id_, arguments, shape) for name, id_, arguments in pairs]
        if not text and shape.empty_content == "null":
            message["content"] = None
    return message


def _call(name: str, id_: str, arguments: Arguments, shape: CallShape) -> Mapping[str, object]:
    value = json.dumps(arguments) if shape.arguments == "text" else arguments
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": value}}
