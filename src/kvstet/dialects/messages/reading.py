"""A Messages request into the neutral form.

Results become messages of the role ``tool``, in their order and before the text beside them. An assistant's turn in
which the model thought again, after it had said something, becomes several messages: so thinking keeps its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from kvstet.dialects.content import mark_of, marked, simplest
from kvstet.dialects.messages.blocks import arguments_of, read_part
from kvstet.dialects.request import (
    ANTHROPIC_FORMAT,
    CACHE_MARK,
    NO_REASONING,
    Message,
    Part,
    Reasoning,
    Request,
    Terms,
    Tool,
    ToolChoice,
)
from kvstet.dialects.seals import Detail, carried_in
from kvstet.dialects.tools import function_tool
from kvstet.dialects.values import Object, integer, items, number, obj, objects, optional_text, text, unread
from kvstet.dialects.whole import neutral_call
from kvstet.errors import InvalidRequest

_ROLES = ("user", "assistant", "system")
_BILLING_HEADER = "x-anthropic-billing-header:"
"""A line of Claude Code's system prompt that changes within a session, and is for Anthropic's own servers."""

_KNOWN = frozenset(
    {
        "model",
        "system",
        "messages",
        "tools",
        "tool_choice",
        "max_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "thinking",
        "output_config",
        "output_format",
        "metadata",
    }
)
_KNOWN_OF_TOOL = frozenset(
    {
        "name",
        "type",
        "description",
        "input_schema",
        "cache_control",
        "defer_loading",
        "strict",
        "eager_input_streaming",
    }
)
_CUSTOM = ("", "custom")


def read_request(body: Mapping[str, Any]) -> Request:
    """InvalidRequest where there are no messages, or one of them has no role that is known."""
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns:
        raise InvalidRequest("messages must be a list, and must not be empty.", param="messages")
    reader = _Reader()
    reader.dropped += unread(body, _KNOWN)
    messages = [*reader.system(body.get("system"))]
    for index, turn in enumerate(cast("list[object]", turns)):
        messages += reader.turn(obj(turn), f"messages[{index}]")
    tools = tuple(reader.tools(body))
    terms = _terms(body)
    return Request(model=text(body.get("model")), messages=tuple(messages), tools=tools, terms=terms).dropping(
        reader.dropped
    )


class _Reader:
    """Of one request; notes what it leaves out."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def system(self, system: object) -> Iterator[Message]:
        parts = [*self._parts(_blocks(system), "system")]
        own = [part for part in parts if text(part.get("text")).startswith(_BILLING_HEADER)]
        if own:
            self.dropped.append("system.x-anthropic-billing-header")
            parts = [part for part in parts if part not in own]
        if parts:
            yield {"role": "system", "content": simplest(parts)}

    def turn(self, turn: Object, where: str) -> Iterator[Message]:
        role = turn.get("role")
        if role not in _ROLES:
            raise InvalidRequest(f"{where} has no role that is known: {role!r}.", param=f"{where}.role")
        blocks = _blocks(turn.get("content"))
        if role == "assistant":
            yield from self._assistant(blocks)
            return
        results = [block for block in blocks if block.get("type") == "tool_result"]
        others = [block for block in blocks if block.get("type") != "tool_result"]
        yield from map(self._result, results)
        parts = [*self._parts(others, "messages.content")]
        if parts or not blocks:
            yield {"role": role, "content": simplest(parts)}

    def _result(self, block: Object) -> Message:
        parts = [*self._parts(_blocks(block.get("content")), "messages.content.tool_result")]
        mark = mark_of(block)
        if mark is not None and parts:
            parts[-1] = {**parts[-1], CACHE_MARK: mark}
        message: Message = {"role": "tool", "content": simplest(parts), "tool_call_id": text(block.get("tool_use_id"))}
        return message | ({"is_error": True} if block.get("is_error") is True else {})

    def _parts(self, blocks: Iterable[Object], where: str) -> Iterator[Part]:
        for block in blocks:
            part = read_part(block)
            if part is None:
                self.dropped.append(f"{where}.{text(block.get('type')) or 'block'}")
            else:
                yield marked(part, block)

    def _assistant(self, blocks: Iterable[Object]) -> Iterator[Message]:
        said = _Said()
        num_messages = 0
        for block in blocks:
            kind = block.get("type")
            if kind in ("thinking", "redacted_thinking"):
                if said.has_spoken:
                    yield said.message
                    num_messages += 1
                    said = _Said()
                said.think(block)
            elif kind == "tool_use":
                said.calls.append(_call(block))
            else:
                said.parts += self._parts([block], "messages.content")
        if said.has_content or not num_messages:
            yield said.message

    def tools(self, body: Object) -> Iterator[Tool]:
        for index, fields in enumerate(objects(body.get("tools"))):
            kind = text(fields.get("type"))
            if kind not in _CUSTOM:
                self.dropped.append(f"tools.{kind}")
                continue
            self.dropped += unread(fields, _KNOWN_OF_TOOL, "tools.")
            tool = function_tool(fields, f"tools[{index}]", parameters_key="input_schema")
            if fields.get("defer_loading") is True:
                tool["defer_loading"] = True
            yield marked(tool, fields)


class _Said:
    """An assistant's message that is being put together."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.calls: list[Message] = []
        self._thoughts: list[str] = []
        self._details: list[Detail] = []

    def __repr__(self) -> str:
        return f"_Said({len(self._thoughts)} thoughts, {len(self.parts)} parts, {len(self.calls)} calls)"

    @property
    def has_spoken(self) -> bool:
        return bool(self.parts or self.calls)

    @property
    def has_content(self) -> bool:
        return bool(self.has_spoken or self._thoughts or self._details)

    @property
    def message(self) -> Message:
        message: Message = {"role": "assistant", "content": simplest(self.parts)}
        if self._thoughts:
            message["reasoning_content"] = "".join(self._thoughts)
        if self._details:
            message["reasoning_details"] = self._details
        return message | ({"tool_calls": self.calls} if self.calls else {})

    def think(self, block: Object) -> None:
        said = text(block.get("thinking"))
        seal = text(block.get("signature")) or text(block.get("data"))
        carried = carried_in(seal, said)
        if carried is not None:
            self._details += carried
        elif seal:
            self._details.append(_own_detail(block, seal, said))
        if said:
            self._thoughts.append(said)


def _own_detail(block: Object, seal: str, said: str) -> Detail:
    """Of reasoning that Anthropic itself sealed."""
    if block.get("type") == "redacted_thinking":
        return {"type": "reasoning.encrypted", "data": seal, "format": ANTHROPIC_FORMAT}
    return {"type": "reasoning.text", "text": said, "signature": seal, "format": ANTHROPIC_FORMAT}


def _blocks(content: object) -> list[Object]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [{"type": "text", "text": block} if isinstance(block, str) else obj(block) for block in items(content)]


def _call(block: Object) -> Message:
    call = neutral_call(text(block.get("id")), text(block.get("name")), arguments_of(block.get("input")))
    return marked(call, block)


def _terms(body: Object) -> Terms:
    choice = obj(body.get("tool_choice"))
    return Terms(
        max_output_tokens=integer(body.get("max_tokens")),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        top_k=integer(body.get("top_k")),
        stop=tuple(text(stop) for stop in items(body.get("stop_sequences")) if text(stop)),
        tool_choice=_tool_choice(choice),
        allows_parallel_calls=False if choice.get("disable_parallel_tool_use") is True else None,
        reasoning=_reasoning(body),
        response_format=_response_format(body),
        is_streamed=body.get("stream") is True,
        user=optional_text(obj(body.get("metadata")).get("user_id")),
    )


def _tool_choice(choice: Object) -> ToolChoice | None:
    match text(choice.get("type")):
        case "auto":
            return ToolChoice("auto")
        case "none":
            return ToolChoice("none")
        case "any":
            return ToolChoice("required")
        case "tool" if text(choice.get("name")):
            return ToolChoice("required", (text(choice.get("name")),))
        case _:
            return None


def _reasoning(body: Object) -> Reasoning | None:
    """A budget says more than an effort, and to think not at all more than both."""
    thinking = obj(body.get("thinking"))
    effort = optional_text(obj(body.get("output_config")).get("effort"))
    match thinking.get("type"):
        case "disabled":
            return Reasoning(NO_REASONING)
        case "enabled" if effort is None:
            return Reasoning(budget_tokens=integer(thinking.get("budget_tokens")))
        case None:
            return None if effort is None else Reasoning(effort)
        case _:
            return Reasoning(effort)


def _response_format(body: Object) -> Mapping[str, Any] | None:
    form = obj(obj(body.get("output_config")).get("format")) or obj(body.get("output_format"))
    schema = form.get("schema")
    if form.get("type") != "json_schema" or not isinstance(schema, dict):
        return None
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": cast("dict[str, Any]", schema)}}
