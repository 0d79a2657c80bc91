"""The items of a reply that is written, and the events that tell of them as they grow."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from kvstet.dialects.names import wire_id
from kvstet.dialects.seals import carrier_of
from kvstet.dialects.tools import ToolName, input_of_arguments
from kvstet.dialects.values import present

Event = dict[str, Any]
"""Without its ``sequence_number`` and ``output_index``."""

Item = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


class GrowingItem(Protocol):
    """``begin``, ``feed``... and ``end`` give the events of each step."""

    @property
    def data(self) -> Item:
        """The item as far as it has come."""
        ...

    def begin(self) -> Iterator[Event]: ...

    def feed(self, said: str) -> Iterator[Event]: ...

    def end(self, status: Status) -> Iterator[Event]: ...


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


def _added(item: Item) -> Event:
    return {"type": "response.output_item.added", "item": item}


def _done(item: Item) -> Event:
    return {"type": "response.output_item.done", "item": item}


class ReasoningItem:
    """Shows all of the reasoning as its summary. Its encrypted content carries what must go back to another vendor."""

    def __init__(self) -> None:
        self.seal: Mapping[str, Any] | None = None
        self._id = _id("rs")
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        said = "".join(self._parts)
        seal = carrier_of([] if self.seal is None else [self.seal])
        summary = [_summary(said)] if said else []
        kept = {} if self._status == "in_progress" else {"encrypted_content": seal}
        return {"id": self._id, "type": "reasoning", "summary": summary, **kept, "status": self._status}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, said: str) -> Iterator[Event]:
        if not self._parts:
            yield self._event("response.reasoning_summary_part.added", part=_summary(""))
        self._parts.append(said)
        yield self._event("response.reasoning_summary_text.delta", delta=said)

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        if self._parts:
            said = "".join(self._parts)
            yield self._event("response.reasoning_summary_text.done", text=said)
            yield self._event("response.reasoning_summary_part.done", part=_summary(said))
        yield _done(self.data)

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "summary_index": 0, **fields}


class MessageItem:
    """Text, or the refusal to answer."""

    def __init__(self, kind: Literal["output_text", "refusal"] = "output_text") -> None:
        self.kind = kind
        self._id = _id("msg")
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        said = "".join(self._parts)
        content = [self._part(said)] if said else []
        return {"id": self._id, "type": "message", "status": self._status, "role": "assistant", "content": content}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)
        yield self._event("response.content_part.added", part=self._part(""))

    def feed(self, said: str) -> Iterator[Event]:
        self._parts.append(said)
        more: Item = {"logprobs": []} if self.kind == "output_text" else {}
        yield self._event(f"response.{self.kind}.delta", delta=said, **more)

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        said = "".join(self._parts)
        told: Item = {"text": said, "logprobs": []} if self.kind == "output_text" else {"refusal": said}
        yield self._event(f"response.{self.kind}.done", **told)
        yield self._event("response.content_part.done", part=self._part(said))
        yield _done(self.data)

    def _part(self, said: str) -> Item:
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": said}
        return {"type": "output_text", "text": said, "annotations": [], "logprobs": []}

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "item_id": self._id, "content_index": 0, **fields}


class FunctionCallItem:
    def __init__(self, call_id: str, name: ToolName) -> None:
        self._id = _id("fc")
        self._names = _names(call_id, name)
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        item = {"id": self._id, "type": "function_call", "status": self._status}
        return {**item, **self._names, "arguments": "".join(self._parts)}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, said: str) -> Iterator[Event]:
        self._parts.append(said)
        yield {"type": "response.function_call_arguments.delta", "item_id": self._id, "delta": said}

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        done = "response.function_call_arguments.done"
        yield {"type": done, "item_id": self._id, "name": self._names["name"], "arguments": "".join(self._parts)}
        yield _done(self.data)


class CustomCallItem:
    """Its input lies within the JSON text that the model writes, so it is told when that is whole."""

    def __init__(self, call_id: str, name: ToolName) -> None:
        self._id = _id("ctc")
        self._names = _names(call_id, name)
        self._parts: list[str] = []
        self._status: Status = "in_progress"

    @property
    def data(self) -> Item:
        is_whole = self._status != "in_progress"
        said = input_of_arguments("".join(self._parts)) if is_whole else ""
        return {"id": self._id, "type": "custom_tool_call", "status": self._status, **self._names, "input": said}

    def begin(self) -> Iterator[Event]:
        yield _added(self.data)

    def feed(self, said: str) -> Iterator[Event]:
        self._parts.append(said)
        yield from ()

    def end(self, status: Status) -> Iterator[Event]:
        self._status = status
        said = self.data["input"]
        yield {"type": "response.custom_tool_call_input.delta", "item_id": self._id, "delta": said}
        yield {"type": "response.custom_tool_call_input.done", "item_id": self._id, "input": said}
        yield _done(self.data)


def call_item(call_id: str, name: ToolName) -> GrowingItem:
    """As the kind of its tool wants it."""
    return CustomCallItem(call_id, name) if name.kind == "custom" else FunctionCallItem(call_id, name)


def _names(call_id: str, name: ToolName) -> dict[str, str]:
    return {"call_id": wire_id(call_id), "name": name.name, **present({"namespace": name.namespace})}


def _summary(said: str) -> Item:
    return {"type": "summary_text", "text": said}
