"""What a chat template can print, found by trying: templates differ, and say so nowhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Literal

from kvstet.chat.builtin import knows_tools
from kvstet.chat.template import ChatTemplate
from kvstet.errors import TemplateError

Place = Literal["in_place", "elsewhere"]
ReasoningKey = Literal["reasoning_content", "reasoning", "thinking"]


@dataclass(frozen=True, slots=True)
class CallShape:
    """How the template wants an assistant message that calls tools."""

    arguments: Literal["object", "text"] = "object"
    empty_content: Literal["", "null"] = ""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a template can print. "Elsewhere" means: not at all, in another place, or it raises."""

    knows_tools: bool
    knows_developer: bool
    first_system: Place
    """A system message at the start."""
    later_system: Place
    """A system message in the middle of the conversation."""
    calls: CallShape
    reasoning_key: ReasoningKey
    mixed_calls: Literal["accepted", "refused"]
    """An assistant message with reasoning and text and calls."""
    call_ids: Literal["any", "named", "short"]
    """"Named": calls are printed by their ids alone, so that these must say what is called (Kimi). "Short": they must
    be nine letters and digits (Mistral)."""
    calls_at_once: Literal["many", "one"]
    """How many calls an assistant message may have."""
    roles: Literal["any", "alternate"]
    """Whether two messages of one role may follow each other."""


_SHAPES = (CallShape("object", ""), CallShape("text", ""), CallShape("object", "null"), CallShape("text", "null"))
_REASONING_KEYS: tuple[ReasoningKey, ...] = ("reasoning_content", "reasoning", "thinking")
_ARGUMENTS = {"kvstet_key": "kvstet_value"}
_SPOILT = (str(_ARGUMENTS), r"\"kvstet_key")
"""The arguments printed as Python would, or as JSON within JSON."""


def traits_of(template: ChatTemplate) -> Traits:
    """Try the template on a few short conversations."""
    shapes = (shape for shape in _SHAPES if _prints_call(template, shape))
    shape = next(shapes, CallShape())
    key = _reasoning_key(template)
    mixed = {key: "kvstet_reasoning", "content": "kvstet_text"}
    return Traits(
        knows_tools=knows_tools(template.source),
        knows_developer="developer" in template.source,
        first_system=_place(template, ["system", "user"]),
        later_system=_place(template, ["user", "assistant", "system", "user"]),
        calls=shape,
        reasoning_key=key,
        mixed_calls="accepted" if _prints_call(template, shape, mixed) else "refused",
        call_ids=_call_ids(template, shape),
        calls_at_once="one" if _refuses(template, [_USER, _calling(shape, "kvstet123", "kvstet456")]) else "many",
        roles="alternate" if _refuses(template, [_USER, _USER]) else "any",
    )


def _reasoning_key(template: ChatTemplate) -> ReasoningKey:
    """The key that the template reads as ``.key``, ``['key']`` or ``get('key')``."""
    for key in _REASONING_KEYS:
        if any(form in template.source for form in (f".{key}", f"'{key}'", f'"{key}"')):
            return key
    return "reasoning_content"


def _place(template: ChatTemplate, roles: Sequence[str]) -> Place:
    """Whether each message is printed, in the order of the conversation."""
    messages = [{"role": role, "content": f"kvstet_{number}_"} for number, role in enumerate(roles)]
    output = _try(template, messages)
    places = [output.find(message["content"]) for message in messages]
    return "in_place" if min(places) >= 0 and places == sorted(places) else "elsewhere"


def _prints_call(template: ChatTemplate, shape: CallShape, fields: Mapping[str, str] = MappingProxyType({})) -> bool:
    """Whether an assistant message with these fields shows its call, spelt as JSON where it is JSON at all."""
    output = _call_output(template, shape, fields)
    return "kvstet_value" in output and not any(spoilt in output for spoilt in _SPOILT)


def _call_ids(template: ChatTemplate, shape: CallShape) -> Literal["any", "named", "short"]:
    _, _, output = _call_output(template, shape, {}).partition("kvstet_user")
    call, _, _ = output.partition("kvstet_value")
    if "kvstet123" in call and "kvstet_tool" not in call:
        return "named"
    return "short" if _refuses(template, [_USER, _calling(shape, "call_kvstet_0123456789")]) else "any"


_USER: Mapping[str, object] = {"role": "user", "content": "kvstet_user"}


def _calling(shape: CallShape, *ids: str) -> Mapping[str, object]:
    """An assistant message that calls a tool once for each id."""
    arguments = _ARGUMENTS if shape.arguments == "object" else json.dumps(_ARGUMENTS)
    function = {"name": "kvstet_tool", "arguments": arguments}
    calls = [{"id": id, "type": "function", "function": function} for id in ids]
    return {"role": "assistant", "content": None if shape.empty_content == "null" else "", "tool_calls": calls}


def _refuses(template: ChatTemplate, messages: Sequence[Mapping[str, object]]) -> bool:
    """Whether the template takes the first of these messages, and not all of them."""
    return bool(_try(template, messages[:1])) and not _try(template, messages)


def _call_output(template: ChatTemplate, shape: CallShape, fields: Mapping[str, str]) -> str:
    arguments = _ARGUMENTS if shape.arguments == "object" else json.dumps(_ARGUMENTS)
    call = {"id": "kvstet123", "type": "function", "function": {"name": "kvstet_tool", "arguments": arguments}}
    content = None if shape.empty_content == "null" else ""
    return _try(
        template,
        [
            {"role": "user", "content": "kvstet_user"},
            {"role": "assistant", "content": content, "tool_calls": [call], **fields},
            {"role": "tool", "tool_call_id": "kvstet123", "name": "kvstet_tool", "content": "kvstet_result"},
        ],
    )


def _try(template: ChatTemplate, messages: Sequence[Mapping[str, object]]) -> str:
    """What the template prints; nothing where it refuses."""
    try:
        return template.render(messages, tools=[_TOOL], now=datetime(2000, 1, 1)).text
    except TemplateError:
        return ""


_TOOL: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": "kvstet_tool",
        "description": "",
        "parameters": {"type": "object", "properties": {"kvstet_key": {"type": "string"}}},
    },
}
