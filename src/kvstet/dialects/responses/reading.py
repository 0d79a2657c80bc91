"""A Responses request into the neutral form.

A reply is one message there: its reasoning, its text and its calls, which are items of their own here. Reasoning, or a
text, that follows what cannot stand before it in a message begins a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kvstet.dialects.content import Content, image_part, marked, simplest, text_part
from kvstet.dialects.request import OPENAI_FORMAT, Message, Part, Reasoning, Request, Terms, Tool, ToolChoice
from kvstet.dialects.seals import Detail, carried_in, with_text
from kvstet.dialects.tools import (
    ToolName,
    arguments_of_input,
    arguments_text,
    custom_tool,
    function_tool,
    namespaced_tool,
)
from kvstet.dialects.values import (
    Object,
    boolean,
    integer,
    items,
    number,
    obj,
    objects,
    optional_text,
    text,
    unread,
)
from kvstet.dialects.whole import neutral_call
from kvstet.errors import InvalidRequest

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")

_KNOWN = frozenset(
    {
        "model",
        "input",
        "instructions",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning",
        "text",
        "include",
        "max_output_tokens",
        "temperature",
        "top_p",
        "stream",
        "stream_options",
        "metadata",
        "prompt_cache_key",
        "user",
        "safety_identifier",
        "store",
        "client_metadata",
        "previous_response_id",
        "conversation",
        "prompt",
    }
)
"""``store``, ``include`` and ``client_metadata`` say nothing about the reply."""

_KEPT_BY_THE_VENDOR = {
    "previous_response_id": "Send the whole conversation as input.",
    "conversation": "Send the whole conversation as input.",
    "prompt": "Send its text as instructions.",
}
"""Only the server that keeps them can say what these stand for."""


def read_request(body: Mapping[str, Any]) -> Request:
    """InvalidRequest where there is no input, or it refers to what only the vendor's server has."""
    for name, advice in _KEPT_BY_THE_VENDOR.items():
        if body.get(name) is not None:
            raise InvalidRequest(f"{name} cannot be translated for another API. {advice}", param=name)
    reader = _Reader()
    reader.dropped += unread(body, _KNOWN)
    if instructions := text(body.get("instructions")):
        reader.messages.append({"role": "system", "content": instructions})
    for index, item in enumerate(_items(body.get("input"))):
        reader.add(item, f"input[{index}]")
    if not reader.messages:
        raise InvalidRequest("The input is empty.", param="input")
    tools = [*reader.tools(body.get("tools"), "tools"), *reader.found]
    terms = _terms(body)
    messages = tuple(reader.messages)
    return Request(model=text(body.get("model")), messages=messages, tools=tuple(tools), terms=terms).dropping(
        reader.dropped
    )


def _items(given: object) -> Sequence[Object]:
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    return [obj(item) for item in items(given)]


class _Reader:
    """Of one request; notes what it leaves out."""

    def __init__(self) -> None:
        self.dropped: list[str] = []
        self.messages: list[Message] = []
        self.found: list[Tool] = []
        """Tools that searches brought into the conversation."""

    def add(self, item: Object, where: str) -> None:
        kind = text(item.get("type")) or ("message" if "role" in item else "item_reference")
        if kind in ("item_reference", "compaction"):
            raise InvalidRequest(f"{where} is of type {kind!r}: only its own server can read it.", param=where)
        read = _ITEMS.get(kind)
        if read is None:
            self.dropped.append(f"input.{kind}")
        else:
            read(self, item, where)

    def message(self, item: Object, where: str) -> None:
        role = _ROLES.get(text(item.get("role")))
        if role is None:
            raise InvalidRequest(f"{where} has no role that is known: {item.get('role')!r}.", param=f"{where}.role")
        if item.get("phase") is not None:
            self.dropped.append("input.phase")
        content = self._content(item.get("content"))
        if role != "assistant":
            self.messages.append({"role": role, "content": content})
            return
        refusal = "".join(text(part.get("refusal")) for part in objects(item.get("content")))
        message = self._reply(needs_silence=True)
        message["content"] = content
        if refusal:
            message["refusal"] = refusal

    def reasoning(self, item: Object, where: str) -> None:
        said = _texts(item.get("content")) or _texts(item.get("summary"))
        details = _details(item, said)
        if not said and not details:
            return
        message = self._reply(needs_silence=True)
        if said:
            before = message.get("reasoning_content", "")
            message["reasoning_content"] = f"{before}\n\n{said}" if before else said
        if details:
            message["reasoning_details"] = [*message.get("reasoning_details", ()), *details]

    def call(self, item: Object, where: str) -> None:
        name = ToolName(text(item.get("name")), optional_text(item.get("namespace"))).neutral
        is_custom = item.get("type") == "custom_tool_call"
        said = arguments_of_input(text(item.get("input"))) if is_custom else arguments_text(item.get("arguments"))
        message = self._reply(needs_silence=False)
        calls = message.setdefault("tool_calls", [])
        calls.append(neutral_call(text(item.get("call_id")) or text(item.get("id")), name, said))

    def output(self, item: Object, where: str) -> None:
        id = text(item.get("call_id"))
        self.messages.append({"role": "tool", "content": self._content(item.get("output")), "tool_call_id": id})

    def found_tools(self, item: Object, where: str) -> None:
        self.dropped.append("input.tool_search_output")
        self.found += self.tools(item.get("tools"), f"{where}.tools")

    def _reply(self, *, needs_silence: bool) -> Message:
        """The assistant's message that an item belongs to; ``needs_silence``: nothing may have been said in it yet."""
        last = self.messages[-1] if self.messages else {}
        is_open = last.get("role") == "assistant"
        if not is_open or (needs_silence and (last["content"] or last.get("refusal") or last.get("tool_calls"))):
            self.messages.append({"role": "assistant", "content": ""})
        return self.messages[-1]

    def _content(self, content: object) -> Content:
        return content if isinstance(content, str) else simplest([*self._parts(content)])

    def _parts(self, content: object) -> Iterator[Part]:
        for part in objects(content):
            kind = text(part.get("type"))
            read = _part(part, kind)
            if read is not None:
                yield marked(read, part)
            elif kind != "refusal":
                self.dropped.append(f"input.content.{kind}")

    def tools(self, tools: object, where: str) -> Iterator[Tool]:
        """Deferred ones are there from the start: the search that would bring them is the vendor's own."""
        for index, tool in enumerate(objects(tools)):
            place = f"{where}[{index}]"
            match text(tool.get("type")):
                case "function":
                    yield function_tool(tool, place)
                case "custom":
                    yield custom_tool(tool, place)
                case "namespace":
                    inner = [part for part in objects(tool.get("tools")) if part.get("type") == "function"]
                    yield from (namespaced_tool(part, tool, f"{place}.tools") for part in inner)
                case kind:
                    self.dropped.append(f"tools.{kind}")


_ITEMS: Mapping[str, Callable[[_Reader, Object, str], None]] = {
    "message": _Reader.message,
    "reasoning": _Reader.reasoning,
    "function_call": _Reader.call,
    "custom_tool_call": _Reader.call,
    "function_call_output": _Reader.output,
    "custom_tool_call_output": _Reader.output,
    "tool_search_output": _Reader.found_tools,
}


def _part(part: Object, kind: str) -> Part | None:
    if kind in _TEXT_TYPES:
        return text_part(text(part.get("text")))
    if kind == "input_image" and (url := text(part.get("image_url"))):
        detail = optional_text(part.get("detail"))
        return image_part(url, None if detail == "auto" else detail)
    if kind == "input_file" and (part.get("file_data") or part.get("file_url")):
        return {
            "type": "file",
            "file": {key: part[key] for key in ("file_data", "file_url", "filename") if part.get(key)},
        }
    return None


def _texts(parts: object) -> str:
    return parts if isinstance(parts, str) else "\n\n".join(text(part.get("text")) for part in objects(parts))


def _details(item: Object, said: str) -> list[Detail]:
    seal = text(item.get("encrypted_content"))
    if not seal:
        return []
    carried = carried_in(seal, said)
    if carried is not None:
        return carried
    own: Detail = {"type": "reasoning.encrypted", "data": seal, "id": text(item.get("id")), "format": OPENAI_FORMAT}
    return [with_text(own, said)]


def _terms(body: Object) -> Terms:
    reasoning = obj(body.get("reasoning"))
    wants = obj(body.get("text"))
    return Terms(
        max_output_tokens=integer(body.get("max_output_tokens")),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        tool_choice=_tool_choice(body.get("tool_choice")),
        allows_parallel_calls=boolean(body.get("parallel_tool_calls")),
        reasoning=Reasoning(optional_text(reasoning.get("effort"))) if reasoning else None,
        response_format=_response_format(obj(wants.get("format"))),
        verbosity=optional_text(wants.get("verbosity")),
        is_streamed=body.get("stream") is True,
        user=optional_text(body.get("safety_identifier")) or optional_text(body.get("user")),
        session=optional_text(body.get("prompt_cache_key")),
        metadata=obj(body.get("metadata")) or None,
    )


def _tool_choice(choice: object) -> ToolChoice | None:
    if choice in ("auto", "none", "required"):
        return ToolChoice(choice)
    fields = obj(choice)
    if fields.get("type") == "allowed_tools":
        names = tuple(name for tool in objects(fields.get("tools")) if (name := _neutral_name(tool)))
        return ToolChoice("required" if fields.get("mode") == "required" else "auto", names)
    name = _neutral_name(fields) if fields.get("type") in ("function", "custom") else ""
    return ToolChoice("required", (name,)) if name else None


def _neutral_name(fields: Object) -> str:
    return ToolName(text(fields.get("name")), optional_text(fields.get("namespace"))).neutral


def _response_format(wanted: Object) -> Mapping[str, Any] | None:
    if wanted.get("type") == "json_object":
        return {"type": "json_object"}
    if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
        return None
    kept = {key: wanted[key] for key in ("name", "description", "schema", "strict") if wanted.get(key) is not None}
    return {"type": "json_schema", "json_schema": kept}
