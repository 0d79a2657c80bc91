"""A request as it was sent, read tolerantly: whatever it holds, it can be compared with another one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import xxhash

from kvstet.types import HEAD_ROLES, MessageSpan, Prompt
from kvstet.untrusted import mapping_of

Digest = bytes

Defaults = Mapping[str, Mapping[str, object]]
"""Tool -> parameter -> what it is where a call says nothing of it."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call. ``arguments`` are canonical JSON without those that say what is the default anyway."""

    name: str
    arguments: str
    texts: tuple[str, ...] = ()
    """Arguments that are text."""


@dataclass(frozen=True, slots=True)
class Item:
    """One message."""

    role: str
    text: str = field(repr=False)
    reasoning: str = field(repr=False)
    calls: tuple[Call, ...] = field(repr=False)
    call_id: str | None
    meaning: Digest = field(repr=False)
    """Equal for messages that mean the same: ids, the spelling of arguments and white space around replies do not
    count."""
    exact: Digest = field(repr=False)

    @property
    def num_characters(self) -> int:
        arguments = sum(len(call.name) + len(call.arguments) for call in self.calls)
        return len(self.text) + len(self.reasoning) + arguments

    @property
    def is_head(self) -> bool:
        return self.role in HEAD_ROLES


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool; ``meaning`` does not depend on the order of keys."""

    name: str
    meaning: Digest = field(repr=False)
    num_characters: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One request, and the reply to it where it is known."""

    items: tuple[Item, ...]
    tools: tuple[Tool, ...] = ()
    model: str | None = None
    session: str | None = None
    """The id that the client sent; shared by all that it does at a time."""
    settings: Digest = b""
    """Of the template's variables, and of the template."""
    reply: Item | None = None
    spans: tuple[MessageSpan, ...] = field(default=(), repr=False)
    """Of the messages in the rendered prompt; empty where none was rendered."""
    unthought: frozenset[int] = frozenset()
    """Messages whose reasoning the template leaves out."""
    defaults: Defaults = field(default_factory=dict[str, Mapping[str, object]], repr=False)

    @property
    def told(self) -> tuple[Item, ...]:
        """All that the model knows once it has replied."""
        return self.items if self.reply is None else (*self.items, self.reply)

    @property
    def tool_names(self) -> frozenset[str]:
        """By which clients are told apart."""
        return frozenset(tool.name for tool in self.tools)

    @property
    def num_head_items(self) -> int:
        """Messages before the first that is no system prompt."""
        return next((index for index, item in enumerate(self.items) if not item.is_head), len(self.items))

    @property
    def system_text(self) -> str:
        return "\n".join(item.text for item in self.items[: self.num_head_items])

    def reply_of(self, text: str, reasoning: str, calls: Iterable[tuple[str, str]]) -> Item:
        """A reply to this request; ``calls`` are names and arguments, as JSON."""
        functions = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
        message = {"role": "assistant", "content": text, "reasoning_content": reasoning, "tool_calls": functions}
        return item_of(message, self.defaults)

    def with_reply(self, reply: Item) -> Snapshot:
        return replace(self, reply=reply)

    def with_prompt(self, prompt: Prompt) -> Snapshot:
        return replace(self, spans=prompt.spans, unthought=frozenset(_unthought(self.items, prompt.text)))


def snapshot_of(
    messages: object,
    tools: object = (),
    *,
    model: str | None = None,
    session: str | None = None,
    settings: object = None,
) -> Snapshot:
    """Of messages and tools in OpenAI's form. Never raises, whatever they hold."""
    listed = [mapping_of(tool) for tool in _sequence(tools)]
    defaults = dict(_defaults(tool) for tool in listed)
    return Snapshot(
        tuple(item_of(mapping_of(message), defaults) for message in _sequence(messages)),
        tuple(map(_tool, listed)),
        model,
        session,
        _digest(_json(settings)) if settings else b"",
        defaults=defaults,
    )


def item_of(message: Mapping[str, object], defaults: Defaults | None = None) -> Item:
    """One message in OpenAI's form."""
    role = message.get("role")
    role = role if isinstance(role, str) else "?"
    text, reasoning = text_of(message.get("content")), text_of(message.get("reasoning_content"))
    given = [mapping_of(mapping_of(call).get("function")) for call in _sequence(message.get("tool_calls"))]
    calls = tuple(_call(function, defaults or {}) for function in given)
    call_id = message.get("tool_call_id")
    call_id = call_id if isinstance(call_id, str) else None
    meant = (text.strip(), reasoning.strip()) if role == "assistant" else (text, reasoning)
    meaning = _digest(role, *meant, *(part for call in calls for part in (call.name, call.arguments)))
    # What the meaning does not say: ids, white space around texts, and how calls are written.
    spelling = (call_id or "", *_blanks(text, meant[0]), *_blanks(reasoning, meant[1]), *map(_json, given))
    return Item(role, text, reasoning, calls, call_id, meaning, _digest(meaning.hex(), *spelling))


def _blanks(text: str, inner: str) -> tuple[str, str]:
    """What stands around a text."""
    if len(text) == len(inner):
        return "", ""
    start = text.index(inner)
    return text[:start], text[start + len(inner) :]


def _unthought(items: Sequence[Item], text: str) -> Iterator[int]:
    place = 0
    for index, item in enumerate(items):
        if reasoning := item.reasoning.strip():
            found = text.find(reasoning, place)
            if found < 0:
                yield index
            else:
                place = found


def _call(function: Mapping[str, object], defaults: Defaults) -> Call:
    name = str(function.get("name"))
    arguments = _arguments(function.get("arguments"))
    if isinstance(arguments, str):
        return Call(name, arguments.strip())
    usual = defaults.get(name, {})
    meant = {key: value for key, value in arguments.items() if key not in usual or value != usual[key]}
    return Call(name, _json(meant), tuple(value for value in meant.values() if isinstance(value, str)))


def _arguments(arguments: object) -> Mapping[str, object] | str:
    """An object; a text that does not hold one stays as it is."""
    if isinstance(arguments, str):
        try:
            parsed: object = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            return arguments
        return cast("Mapping[str, object]", parsed) if isinstance(parsed, dict) else arguments
    return mapping_of(arguments)


def _tool(tool: Mapping[str, object]) -> Tool:
    function = mapping_of(tool.get("function"))
    written = _json(tool)
    return Tool(str(function.get("name")), _digest(written), len(written))


def _defaults(tool: Mapping[str, object]) -> tuple[str, dict[str, object]]:
    function = mapping_of(tool.get("function"))
    properties = mapping_of(mapping_of(function.get("parameters")).get("properties"))
    schemas = {name: mapping_of(schema) for name, schema in properties.items()}
    return str(function.get("name")), {
        name: schema["default"] for name, schema in schemas.items() if "default" in schema
    }


def text_of(content: object) -> str:
    """Text of a string or of text parts, each on lines of its own; other parts as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list | tuple):
        return "\n".join(map(_part, cast("Sequence[object]", content)))
    return _json(content)


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    text = mapping_of(part).get("text")
    return text if isinstance(text, str) else _json(part)


_ENCODER = json.JSONEncoder(sort_keys=True, default=repr)


def _json(value: object) -> str:
    try:
        return _ENCODER.encode(value)
    except (RecursionError, TypeError, ValueError):
        return f"<{type(value).__name__} that cannot be written>"


def _digest(*parts: str) -> Digest:
    # Read for every message of every request; what is told by it is a verdict, and nobody's state.
    text = "".join([f"{len(part)}:{part}" for part in parts])
    return xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"))


def _sequence(value: object) -> Sequence[object]:
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()
