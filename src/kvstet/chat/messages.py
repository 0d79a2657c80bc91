"""Messages as clients send them, in OpenAI's form, made into what chat templates expect.

A chat template wants ``content`` as a string and the arguments of tool calls as an object. Content that is left out,
null or empty is the same, and so are a string and a list of one text part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from kvstet.errors import InvalidRequest

Message = dict[str, object]

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Types of content parts that hold text, and the key they hold it under."""

_NOT_FOR_THE_MODEL = frozenset({"refusal", "annotations", "audio", "cache_control", "provider_specific_fields"})
_KEPT_IF_FILLED = frozenset({"tool_calls", "reasoning_content"})


def normalise(messages: Sequence[Mapping[str, object]]) -> list[Message]:
    """One new message for each. InvalidRequest names the message and the field that cannot be used."""
    if not messages:
        raise InvalidRequest("messages is empty.", param="messages")
    return [_normalise(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _normalise(message: object, where: str) -> Message:
    fields = _mapping(message, where)
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(ROLES))
        raise InvalidRequest(f"{where}: the role {role!r} is not known; it is one of {known}.", param=f"{where}.role")
    kept = {key: value for key, value in fields.items() if _is_kept(key, value)}
    kept |= {"role": role, "content": text_of(fields.get("content"), f"{where}.content")}
    if "tool_calls" in kept:
        kept["tool_calls"] = _tool_calls(kept["tool_calls"], f"{where}.tool_calls")
    return kept


def _is_kept(key: str, value: object) -> bool:
    if key in _KEPT_IF_FILLED:
        return bool(value)
    return value is not None and key not in _NOT_FOR_THE_MODEL


def text_of(content: object, where: str) -> str:
    """Text of a string, of text parts (each on lines of its own), or of nothing. InvalidRequest for images and such."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise InvalidRequest(f"{where} must be a string or a list of parts.", param=where)
    parts = cast("Sequence[object]", content)
    return "\n".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(parts))


def marked_parts(messages: Sequence[Mapping[str, object]]) -> list[str]:
    """Texts behind which the client wants a cut within a message (``cache_control``), in order."""
    marked: list[str] = []
    for content in (message.get("content") for message in messages):
        if isinstance(content, list | tuple):
            # The last part's end is the message's, where there is a cut anyway.
            parts = cast("Sequence[object]", content)[:-1]
            fields = [cast("Mapping[str, object]", part) for part in parts if isinstance(part, Mapping)]
            marked += [str(part.get("text", "")).strip() for part in fields if part.get("cache_control")]
    return [text for text in marked if text]


def _part_text(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    fields = _mapping(part, where)
    kind = fields.get("type", "text")
    key = _TEXT_KEYS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise InvalidRequest(f"{where} is of type {kind!r}, but this model takes text only.", param=where)
    text = fields.get(key)
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{key} must be a string.", param=f"{where}.{key}")
    return text


def _tool_calls(calls: object, where: str) -> list[Message]:
    if not isinstance(calls, list | tuple):
        raise InvalidRequest(f"{where} must be a list.", param=where)
    return [_tool_call(call, f"{where}[{i}]") for i, call in enumerate(cast("Sequence[object]", calls))]


def _tool_call(call: object, where: str) -> Message:
    fields = _mapping(call, where)
    function = _mapping(fields.get("function"), f"{where}.function")
    if not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where}.function.name must be a string.", param=f"{where}.function.name")
    kept = {key: value for key, value in fields.items() if key != "index" and value is not None}
    arguments = _arguments(function.get("arguments"))
    return {**kept, "type": "function", "function": {**function, "arguments": arguments}}


def _arguments(arguments: object) -> object:
    """An object, in the client's order of keys; a string that does not hold one is left as it is."""
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        return arguments
    try:
        parsed: object = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return cast("object", parsed) if isinstance(parsed, dict) else arguments


def _mapping(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{where} must be an object.", param=where)
    return cast("Mapping[str, object]", value)
