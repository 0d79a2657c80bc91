"""Items to the messages of a chat.

A reply is one message there: its reasoning, its text and its calls. In a request it lies in several items, so those
that stand together become one message. Ids that were given here say which reply an item is of; without them, reasoning
or a text that follows what cannot stand before it in a message begins a new one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from kvstet.api.job import Conversation
from kvstet.api.openai.prompts import NO_REASONING
from kvstet.api.ports import Message
from kvstet.api.responses.requests import (
    ActionCallItem,
    ActionOutputItem,
    CustomCallItem,
    FunctionCallItem,
    Item,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ReferenceItem,
    ResponsesRequest,
    SearchCallItem,
    SearchOutputItem,
    read_item,
)
from kvstet.api.responses.sealed import unseal
from kvstet.api.responses.tools import SEARCH_NAME, Toolbox, ToolName, functions_of
from kvstet.chat.messages import text_of
from kvstet.errors import InvalidRequest

Find = Callable[[str], Item | None]
"""A stored item by its id."""

_OUR_ID = re.compile(r"(?:rs|msg|fc|ctc|tsc)_([0-9a-f]{32})_\d+")
"""As `kvstet.api.responses.items` gives them."""

_RUN_ELSEWHERE = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "image_generation_call",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
    }
)
"""What another server's own tools did, in a conversation that was begun there. It left its traces in the answers."""


def items_of(given: str | Sequence[Item] | None) -> list[Item]:
    """An input as items; a text is a user's message."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return list(given or ())


def resolved(items: Iterable[Item], find: Find) -> list[Item]:
    """The items with those in place that others refer to. InvalidRequest where one is not kept here."""
    return [_resolved(item, find, f"input[{index}]") for index, item in enumerate(items)]


def found_tools(items: Iterable[Item]) -> list[object]:
    """Tools that searches have found in the conversation so far."""
    outputs = (item.get("tools") for item in items if item.get("type") == "tool_search_output")
    return [tool for tools in outputs if isinstance(tools, list) for tool in cast("list[object]", tools)]


def conversation_of(
    fields: ResponsesRequest, history: Sequence[Item], new: Sequence[Item], tools: Toolbox
) -> Conversation:
    """A request's conversation: what was said in earlier responses, and its own input. InvalidRequest names the item
    that cannot be used."""
    writer = _Writer()
    if fields.instructions:
        writer.say("system", fields.instructions)
    for index, item in enumerate(history):
        writer.add(item, f"previous[{index}]")
    for index, item in enumerate(new):
        writer.add(item, f"input[{index}]")
    if not writer.messages:
        raise InvalidRequest("The input is empty.", param="input")
    return Conversation(
        messages=writer.messages,
        tools=list(tools.functions),
        deferred_tools=list(tools.found),
        calls_tools=fields.tool_choice != "none",
        demand=tools.demand(fields.tool_choice, is_parallel=fields.parallel_tool_calls is not False),
        variables=_variables(fields),
    )


def _variables(fields: ResponsesRequest) -> dict[str, Any]:
    effort = fields.reasoning.effort if fields.reasoning else None
    if effort is None:
        return {}
    return {"reasoning_effort": effort, **({"enable_thinking": False} if effort == NO_REASONING else {})}


def _resolved(item: Item, find: Find, where: str) -> Item:
    kind = item.get("type")
    if kind != "item_reference" and not (kind is None and "role" not in item and "id" in item):
        return item
    id = read_item(item, ReferenceItem, where).id
    stored = find(id)
    if stored is None:
        raise InvalidRequest(
            f"Item with id {id!r} not found: items are kept only with store, and until the server restarts.",
            param=where,
        )
    return stored


@dataclass(slots=True)
class _Reply:
    """An assistant's message that is being put together."""

    message: Message
    source: str | None
    """The response it is of, where that is known."""
    calls: list[Message] = field(default_factory=list[Message])
    is_open: bool = True
    """Nothing else has been said since."""

    def takes(self, source: str | None, *, fits: bool) -> bool:
        """Whether an item belongs to it: it is known to, or it follows and ``fits``."""
        if source is not None and self.source is not None:
            return source == self.source
        return self.is_open and fits


class _Writer:
    """Writes messages, item by item."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._reply: _Reply | None = None

    def say(self, role: str, text: str, **more: Any) -> None:
        """A message of anyone but the assistant."""
        if self._reply is not None:
            self._reply.is_open = False
        self.messages.append({"role": role, "content": text, **more})

    def add(self, item: Item, where: str) -> None:
        kind = str(item.get("type") or "message")
        if kind in _RUN_ELSEWHERE:
            return
        if kind == "compaction":
            raise InvalidRequest(f"{where} was compacted by another server, which alone can read it.", param=where)
        read = _READERS.get(kind)
        if read is None:
            raise InvalidRequest(f"{where} is of type {kind!r}, which is not supported.", param=f"{where}.type")
        read(self, item, where)

    def message(self, item: Item, where: str) -> None:
        fields = read_item(item, MessageItem, where)
        text = text_of(fields.content, f"{where}.content")
        if fields.role != "assistant":
            self.say(fields.role, text)
            return
        source, reply = _source_of(fields.id), self._reply
        is_free = reply is not None and not reply.message["content"] and not reply.calls
        self._open(source, fits=is_free).message["content"] += text

    def reasoning(self, item: Item, where: str) -> None:
        fields = read_item(item, ReasoningItem, where)
        text = _reasoning_text(fields, where)
        if not text:
            return
        source, reply = _source_of(fields.id), self._reply
        is_free = reply is not None and not reply.message["content"] and not reply.calls
        message = self._open(source, fits=is_free).message
        before = message.get("reasoning_content", "")
        # Parts of one reply lie as close as the model wrote them.
        message["reasoning_content"] = before + ("\n\n" if before and source is None else "") + text

    def function_call(self, item: Item, where: str) -> None:
        fields = read_item(item, FunctionCallItem, where)
        name = ToolName(fields.name, fields.namespace).for_model
        self._call(fields.id, fields.call_id, name, fields.arguments or "{}")

    def custom_call(self, item: Item, where: str) -> None:
        fields = read_item(item, CustomCallItem, where)
        name = ToolName(fields.name, fields.namespace).for_model
        self._call(fields.id, fields.call_id, name, _json({"input": fields.input}))

    def search_call(self, item: Item, where: str) -> None:
        fields = read_item(item, SearchCallItem, where)
        arguments = fields.arguments if isinstance(fields.arguments, str) else _json(fields.arguments or {})
        self._call(fields.id, fields.call_id or fields.id or "", SEARCH_NAME, arguments)

    def action_call(self, item: Item, where: str) -> None:
        fields = read_item(item, ActionCallItem, where)
        action = fields.action or fields.operation or {}
        arguments = {key: value for key, value in action.items() if key != "type" and value is not None}
        name = str(item["type"]).removesuffix("_call")
        self._call(fields.id, fields.call_id or fields.id or "", name, _json(arguments))

    def output(self, item: Item, where: str) -> None:
        fields = read_item(item, OutputItem, where)
        self.say("tool", text_of(fields.output, f"{where}.output"), tool_call_id=fields.call_id)

    def action_output(self, item: Item, where: str) -> None:
        fields = read_item(item, ActionOutputItem, where)
        text = fields.output if isinstance(fields.output, str) else _json(fields.output)
        self.say("tool", text, tool_call_id=fields.call_id or fields.id or "")

    def search_output(self, item: Item, where: str) -> None:
        fields = read_item(item, SearchOutputItem, where)
        tools = "\n".join(_json(function) for function in functions_of(fields.tools, where))
        self.say("tool", tools or "No tools were found.", tool_call_id=fields.call_id or fields.id or "")

    def _call(self, id: str | None, call_id: str, name: str, arguments: str) -> None:
        reply = self._open(_source_of(id), fits=True)
        reply.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
        reply.message["tool_calls"] = reply.calls

    def _open(self, source: str | None, *, fits: bool) -> _Reply:
        """The reply that an item belongs to, begun where it is of a new one."""
        if self._reply is None or not self._reply.takes(source, fits=fits):
            self._reply = _Reply({"role": "assistant", "content": ""}, source)
            self.messages.append(self._reply.message)
        return self._reply


_READERS: Mapping[str, Callable[[_Writer, Item, str], None]] = {
    "message": _Writer.message,
    "reasoning": _Writer.reasoning,
    "function_call": _Writer.function_call,
    "function_call_output": _Writer.output,
    "custom_tool_call": _Writer.custom_call,
    "custom_tool_call_output": _Writer.output,
    "tool_search_call": _Writer.search_call,
    "tool_search_output": _Writer.search_output,
    "local_shell_call": _Writer.action_call,
    "local_shell_call_output": _Writer.action_output,
    "shell_call": _Writer.action_call,
    "shell_call_output": _Writer.action_output,
    "apply_patch_call": _Writer.action_call,
    "apply_patch_call_output": _Writer.action_output,
}


def _reasoning_text(fields: ReasoningItem, where: str) -> str:
    """The whole text where the item shows it or carries it, or else what its summary tells of it."""
    if fields.content:
        return _parts_text(fields.content, f"{where}.content")
    sealed = unseal(fields.encrypted_content) if fields.encrypted_content else None
    return sealed if sealed is not None else _parts_text(fields.summary, f"{where}.summary")


def _parts_text(parts: str | list[dict[str, Any]] | None, where: str) -> str:
    if not isinstance(parts, list):
        return parts or ""
    return "\n\n".join(_part_text(part, f"{where}[{index}]") for index, part in enumerate(parts))


def _part_text(part: dict[str, Any], where: str) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.text must be a string.", param=f"{where}.text")
    return text


def _source_of(id: str | None) -> str | None:
    """The response that gave an item its id; None where that was elsewhere."""
    match = _OUR_ID.fullmatch(id or "")
    return match[1] if match else None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
