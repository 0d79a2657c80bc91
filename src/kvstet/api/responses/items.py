"""The items of a reply, and the events that tell of them as they grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from kvstet.api.openai.shapes import new_call_id
from kvstet.api.responses.requests import Item
from kvstet.api.responses.sealed import seal
from kvstet.api.responses.tools import ToolName
from kvstet.api.responses.unescape import InputReader

Event = dict[str, Any]
"""Without its ``sequence_number`` and ``output_index``."""

Status = Literal["in_progress", "completed", "incomplete"]


class GrowingItem(Protocol):
    """One item, while the model says it. ``begin``, ``feed``... and ``end`` give the events of each step."""

    @property
    def data(self) -> Item:
        """The item as far as it has come."""
        ...

    def begin(self) -> Iterator[Event]: ...

    def feed(self, text: str) -> Iterator[Event]: ...

    def end(self, status: Status) -> Iterator[Event]: ...


def item_id(prefix: str, number: str, index: int) -> str:
    """Says of which response it is, for the time when it comes back."""
    return f"{prefix}_{number}_{index}"


def _added(item: Item) -> Event:
    return {"type": "response.output_item.added", "item": item}


def _done(item: Item) -> Event:
    return {"type": "response.output_item.done", "item": item}


class ReasoningItem:
    """What the model thinks, all of it, where OpenAI shows a summary."""

    def __init__(self, id: str, *, is_sealed: bool) -> None:
        self._id = id
        self._is_sealed = is_sealed
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        text = "".join(self._parts)
        item: Item = {"id": self._id, "type": "reasoning", "summary": [_summary(text)] if text else []}
        if self._is_sealed:
            item["encrypted_content"] = seal(text)
        return {**item, "status": self._status}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)
        yield self._event("response.reasoning_summary_part.added", part=_summary(""))

    def feed(self, text: str) -> Iterator[Event]:
        self._parts.append(text)
        yield self._event("response.reasoning_summary_text.delta", delta=text)

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        text = "".join(self._parts)
        yield self._event("response.reasoning_summary_text.done", text=text)
        yield self._event("response.reasoning_summary_part.done", part=_summary(text))
        yield _done(self.data)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "summary_index": 0, **fields}


class MessageItem:
    """What the model says."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        text = "".join(self._parts)
        content = [_output_text(text)] if text else []
        return {"id": self._id, "type": "message", "status": self._status, "role": "assistant", "content": content}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)
        yield self._event("response.content_part.added", part=_output_text(""))

    def feed(self, text: str) -> Iterator[Event]:
        self._parts.append(text)
        yield self._event("response.output_text.delta", delta=text, logprobs=[])

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        text = "".join(self._parts)
        yield self._event("response.output_text.done", text=text, logprobs=[])
        yield self._event("response.content_part.done", part=_output_text(text))
        yield _done(self.data)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "content_index": 0, **fields}


class FunctionCallItem:
    def __init__(self, id: str, tool: ToolName) -> None:
        self._id = id
        self._names = _names(tool)
        self._call_id = new_call_id()
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        item: Item = {"id": self._id, "type": "function_call", "status": self._status, "call_id": self._call_id}
        return {**item, **self._names, "arguments": "".join(self._parts)}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, text: str) -> Iterator[Event]:
        self._parts.append(text)
        yield {"type": "response.function_call_arguments.delta", "item_id": self._id, "delta": text}

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        arguments = "".join(self._parts)
        yield {
            "type": "response.function_call_arguments.done",
            "item_id": self._id,
            "name": self._names["name"],
            "arguments": arguments,
        }
        yield _done(self.data)


class CustomCallItem:
    """The model writes the input as a JSON string within an object, and the client gets it plain."""

    def __init__(self, id: str, tool: ToolName) -> None:
        self._id = id
        self._names = _names(tool)
        self._call_id = new_call_id()
        self._reader = InputReader()
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        item: Item = {"id": self._id, "type": "custom_tool_call", "status": self._status, "call_id": self._call_id}
        return {**item, **self._names, "input": "".join(self._parts)}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, text: str) -> Iterator[Event]:
        yield from self._grow(self._reader.feed(text))

    def end(self, status: Status) -> Iterator[Event]:
        yield from self._grow(self._reader.flush())
        self._status = status
        done = "response.custom_tool_call_input.done"
        yield {"type": done, "item_id": self._id, "input": "".join(self._parts)}
        yield _done(self.data)

    def _grow(self, text: str) -> Iterator[Event]:
        if text:
            self._parts.append(text)
            yield {"type": "response.custom_tool_call_input.delta", "item_id": self._id, "delta": text}


@dataclass
class SearchCallItem:
    """Has no events of its own while its arguments come."""

    id: str

    def __post_init__(self) -> None:
        self._call_id = new_call_id()
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        return {
            "id": self.id,
            "type": "tool_search_call",
            "execution": "client",
            "call_id": self._call_id,
            "status": self._status,
            "arguments": _object("".join(self._parts)) if self._status != "in_progress" else {},
        }

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, text: str) -> Iterator[Event]:
        self._parts.append(text)
        yield from ()

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        yield _done(self.data)


def call_item(number: str, index: int, tool: ToolName) -> GrowingItem:
    """The item of a call, as the kind of its tool wants it."""
    match tool.kind:
        case "function":
            return FunctionCallItem(item_id("fc", number, index), tool)
        case "custom":
            return CustomCallItem(item_id("ctc", number, index), tool)
        case "tool_search":
            return SearchCallItem(item_id("tsc", number, index))


def _names(tool: ToolName) -> dict[str, str]:
    return {"name": tool.name, **({"namespace": tool.namespace} if tool.namespace else {})}


def _summary(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _object(arguments: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except msgspec.DecodeError:
        return {"query": arguments}
