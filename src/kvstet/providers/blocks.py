"""A request's own JSON as the blocks that a provider caches by: tools, then the system prompt, then messages.

The order is Anthropic's ("the full prompt: tools, system, and messages, in that order", its guide on prompt caching);
other vendors say only that tools belong to the prefix, and are read the same way. Each block knows its tokens, and
where the client marks it. What is not understood is a block of its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np

from kvstet.providers.estimate import TokenIds, opaque, tokens_of
from kvstet.providers.provider import CacheRule
from kvstet.untrusted import list_of, mapping_of

Part = Literal["tools", "system", "messages"]
Body = Mapping[str, Any]

IMAGE_TOKENS = 1_000
"""For one picture: its size is not looked at. Anthropic takes width x height / 750, at most about 1,600."""

_CHARS_PER_OPAQUE_TOKEN = 5
"""Of encrypted reasoning: base64 of what was about 4 characters per token."""

_HEADS = frozenset({"system", "developer"})
_IMAGES = frozenset({"image", "image_url", "input_image"})
_THINKING = frozenset({"thinking", "redacted_thinking", "reasoning"})
_MARKS = ("cache_control", "prompt_cache_breakpoint")
_UNREAD = frozenset({*_MARKS, "signature"})
"""No part of what the model reads."""
_OPAQUE = frozenset({"data", "encrypted_content", "image_url", "file_data"})


@dataclass(frozen=True, slots=True)
class Mark:
    """The client wants everything up to here cached."""

    ttl: str | None = None
    """None: as long as it is by default."""


@dataclass(frozen=True, slots=True)
class Block:
    """What a provider counts as one content block."""

    part: Part
    role: str
    """``tool`` for what a tool gave; empty for a tool's description."""
    tokens: TokenIds = field(repr=False)
    kind: str = "text"
    mark: Mark | None = None
    ends_message: bool = False

    @property
    def is_markable(self) -> bool:
        """Thinking takes no mark, and neither does an empty text."""
        return self.kind not in _THINKING and len(self.tokens) > 0


def blocks_of(body: Body, dialect: str, rule: CacheRule) -> list[Block]:
    """In the order in which they are read, with the marks that this rule's provider heeds."""
    blocks = [*_tools(body), *_content_of(body, dialect)]
    if rule.strips_old_thinking:
        blocks = _without_old_thinking(blocks)
    mark = _mark_of(body, rule)
    last = next((index for index in range(len(blocks) - 1, -1, -1) if blocks[index].is_markable), None)
    if mark is not None and last is not None and rule.breakpoint_style == "cache_control" and not blocks[last].mark:
        blocks[last] = replace(blocks[last], mark=mark)
    return blocks if rule.breakpoint_style else [replace(each, mark=None) if each.mark else each for each in blocks]


def value_at(body: Body, path: str) -> object:
    """Of a field whose name has dots; None where it is not there."""
    value: object = body
    for name in path.split("."):
        value = mapping_of(value).get(name)
    return value


def dependencies(body: Body, blocks: Iterable[Block], names: Iterable[str]) -> str:
    """The values of what a part of the cache depends on; what is the default anyway is as if it were not sent."""
    return json.dumps([_dependency(body, blocks, name) for name in names], sort_keys=True, default=str)


def _dependency(body: Body, blocks: Iterable[Block], name: str) -> object:
    if name == "images":
        return any(block.kind in _IMAGES for block in blocks)
    value = value_at(body, name)
    kind = mapping_of(value).get("type", value)
    return None if kind in ("auto", "disabled", "standard") and len(mapping_of(value)) <= 1 else value


def _without_old_thinking(blocks: list[Block]) -> list[Block]:
    """Up to the last plain message of the user."""
    plain = (index for index in range(len(blocks) - 1, -1, -1) if _is_plain(blocks[index]))
    turn = next(plain, 0)
    return [block for index, block in enumerate(blocks) if index > turn or block.kind not in _THINKING]


def _is_plain(block: Block) -> bool:
    return block.part == "messages" and block.role == "user" and block.kind != "tool_result"


def _tools(body: Body) -> Iterator[Block]:
    for tool in list_of(body.get("tools")):
        yield Block("tools", "", tokens_of(_spelt(tool)), "tool", _mark(tool))


def _content_of(body: Body, dialect: str) -> Iterator[Block]:
    match dialect:
        case "messages":
            yield from _message("system", body.get("system"), "system")
            yield from _messages(body.get("messages"), has_head=False)
        case "responses":
            yield from _message("system", body.get("instructions"), "system")
            given = body.get("input")
            yield from _message("messages", given, "user") if isinstance(given, str) else _messages(given)
        case _:
            yield from _messages(body.get("messages"))


def _messages(messages: object, *, has_head: bool = True) -> Iterator[Block]:
    is_head = has_head
    for message in list_of(messages):
        fields = mapping_of(message)
        role = str(fields.get("role", "assistant" if "call_id" in fields else ""))
        is_head = is_head and role in _HEADS
        yield from _of_message("system" if is_head else "messages", fields, role)


def _of_message(part: Part, fields: Mapping[str, Any], role: str) -> Iterator[Block]:
    if fields.get("type", "message") != "message":
        yield _item(part, fields)
        return
    calls = list_of(fields.get("tool_calls"))
    rest = {key: fields[key] for key in ("reasoning_content", "tool_call_id") if fields.get(key)}
    content = list(_message(part, fields.get("content"), role))
    if rest:
        content.insert(0, Block(part, role, tokens_of(_spelt(rest))))
    content += [Block(part, role, tokens_of(_spelt(call)), "tool_use") for call in calls]
    content = [replace(block, ends_message=index == len(content) - 1) for index, block in enumerate(content)]
    yield from content


def _item(part: Part, fields: Mapping[str, Any]) -> Block:
    """An item of the Responses API that is not a message."""
    kind = str(fields.get("type"))
    if kind.endswith("_output"):
        output = fields.get("output")
        parts = [output] if isinstance(output, str) else list_of(output)
        said = (tokens_of(each) if isinstance(each, str) else _tokens(mapping_of(each)) for each in parts)
        tokens = np.concatenate([tokens_of(f"<tool>{fields.get('call_id')}"), *said])
        mark = next((mark for each in (fields, *parts) if (mark := _mark(each))), None)
        return Block(part, "tool", tokens, "tool_result", mark, ends_message=True)
    return Block(part, "assistant", _tokens(fields), kind, _mark(fields), ends_message=True)


def _message(part: Part, content: object, role: str) -> Iterator[Block]:
    """Blocks of one content, a string or a list; the first says who speaks."""
    parts: list[Any] = [content] if isinstance(content, str) else list_of(content)
    for index, value in enumerate(parts):
        fields = mapping_of(value)
        kind = str(fields.get("type", "text"))
        said = tokens_of(value) if isinstance(value, str) else _tokens(fields)
        tokens = np.concatenate([tokens_of(f"<{role}>"), said]) if index == 0 and len(said) else said
        yield Block(
            part, "tool" if kind == "tool_result" else role, tokens, kind, _mark(value), index == len(parts) - 1
        )


def _tokens(fields: Mapping[str, Any]) -> TokenIds:
    if set(fields) - set(_MARKS) <= {"type", "text"} and isinstance(fields.get("text"), str):
        return tokens_of(fields["text"])
    hidden = "".join(_hidden(fields))
    told = tokens_of(_spelt(fields))
    if not hidden:
        return told
    is_image = fields.get("type") in _IMAGES or "base64" in hidden[:64]
    num_tokens = IMAGE_TOKENS if is_image else max(1, len(hidden) // _CHARS_PER_OPAQUE_TOKEN)
    return np.concatenate([told, opaque(hidden, num_tokens)])


def _spelt(value: object) -> str:
    """As JSON with the keys in the order in which they were sent; without marks, which are no part of the prompt."""
    return json.dumps(_bare(value), ensure_ascii=False, separators=(",", ":"), default=str)


def _bare(value: object) -> object:
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return {key: _bare(each) for key, each in fields.items() if key not in _UNREAD and not _is_hidden(key, each)}
    return [_bare(each) for each in list_of(cast("object", value))] if isinstance(value, list) else value


def _hidden(value: object) -> Iterator[str]:
    """What stands in a block and is no text."""
    for key, each in mapping_of(value).items():
        if _is_hidden(key, each):
            yield json.dumps(each, sort_keys=True)
        else:
            yield from _hidden(each)
    for each in list_of(value):
        yield from _hidden(each)


def _is_hidden(key: str, value: object) -> bool:
    return key in _OPAQUE and (isinstance(value, str) or key == "image_url")


def _mark(value: object) -> Mark | None:
    """Of either style: a request has only its provider's."""
    fields = mapping_of(value)
    wanted = next((fields[name] for name in _MARKS if isinstance(fields.get(name), Mapping)), None)
    if wanted is None:
        inner = list_of(fields.get("content")) if fields.get("type") == "tool_result" else []
        return next((mark for each in reversed(inner) if (mark := _mark(each)) is not None), None)
    ttl = mapping_of(wanted).get("ttl")
    return Mark(ttl if isinstance(ttl, str) else None)


def _mark_of(body: Body, rule: CacheRule) -> Mark | None:
    """The mark of the whole request: Anthropic puts it on the last block that takes one."""
    return _mark({"cache_control": body.get("cache_control")}) if rule.breakpoint_style == "cache_control" else None
