"""A Chat request into the neutral form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from kvstet.dialects.content import Content, image_part, mark_of, marked, simplest, text_part
from kvstet.dialects.request import CACHE_MARK, NO_REASONING, Message, Part, Reasoning, Request, Terms, Tool, ToolChoice
from kvstet.dialects.tools import arguments_of_input, arguments_text, custom_tool, function_tool
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

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_TEXT_TYPES = ("text", "input_text", "output_text")

_KNOWN = frozenset(
    {
        "model",
        "messages",
        "tools",
        "functions",
        "max_tokens",
        "max_completion_tokens",
        "n_predict",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning_effort",
        "reasoning",
        "thinking",
        "chat_template_kwargs",
        "response_format",
        "verbosity",
        "stream",
        "stream_options",
        "user",
        "prompt_cache_key",
        "session_id",
        "metadata",
        "store",
    }
)
"""``store`` says what OpenAI is to keep, and nothing about the reply."""

_KNOWN_OF_MESSAGE = frozenset(
    {
        "role",
        "content",
        "name",
        "reasoning_content",
        "reasoning",
        "reasoning_details",
        "tool_calls",
        "tool_call_id",
        "refusal",
        "cache_control",
        "prompt_cache_breakpoint",
        "is_error",
        "annotations",
        "provider_specific_fields",
    }
)


def read_request(body: Mapping[str, Any]) -> Request:
    """InvalidRequest where there are no messages, or one of them has no role that is known."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list, and must not be empty.", param="messages")
    reader = _Reader()
    reader.dropped += unread(body, _KNOWN)
    if integer(body.get("n")) == 1:
        reader.dropped.remove("n")
    return Request(
        model=text(body.get("model")),
        messages=tuple(
            reader.message(obj(message), f"messages[{index}]")
            for index, message in enumerate(cast("list[object]", messages))
        ),
        tools=tuple(reader.tools(body)),
        terms=_terms(body),
    ).dropping(reader.dropped)


class _Reader:
    """Of one request; notes what it leaves out."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def message(self, fields: Object, where: str) -> Message:
        role = _ROLES.get(text(fields.get("role")))
        if role is None:
            raise InvalidRequest(f"{where} has no role that is known: {fields.get('role')!r}.", param=f"{where}.role")
        self.dropped += unread(fields, _KNOWN_OF_MESSAGE, "messages.")
        message: Message = {"role": role, "content": self._content(fields)}
        if role == "assistant":
            return message | self._said(fields)
        if role == "tool":
            message["tool_call_id"] = text(fields.get("tool_call_id"))
            if fields.get("is_error") is True:
                message["is_error"] = True
        elif fields.get("name"):
            self.dropped.append("messages.name")
        return message

    def _content(self, fields: Object) -> Content:
        content: object = fields.get("content")
        parts = [text_part(content)] if isinstance(content, str) else list(self._parts(content))
        mark = mark_of(fields)
        if mark is not None and parts:
            parts[-1] = {**parts[-1], CACHE_MARK: mark}
        return content if isinstance(content, str) and mark is None else simplest(parts)

    def _parts(self, content: object) -> Iterator[Part]:
        for part in items(content):
            if isinstance(part, str):
                yield text_part(part)
                continue
            fields = obj(part)
            read = self._part(fields, text(fields.get("type")) or "text")
            if read is not None:
                yield marked(read, fields)

    def _part(self, fields: Object, kind: str) -> Part | None:
        if kind in _TEXT_TYPES:
            return text_part(text(fields.get("text")))
        if kind == "image_url":
            image = fields.get("image_url")
            url = image if isinstance(image, str) else text(obj(image).get("url"))
            return image_part(url, optional_text(obj(image).get("detail"))) if url else None
        if kind == "file" and (file := obj(fields.get("file"))).get("file_data"):
            return {"type": "file", "file": {key: file[key] for key in ("file_data", "filename") if file.get(key)}}
        if kind != "refusal":
            self.dropped.append(f"messages.content.{kind}")
        return None

    def _said(self, fields: Object) -> Message:
        """What only an assistant's message has."""
        said: Message = {}
        if reasoning := text(fields.get("reasoning_content")) or text(fields.get("reasoning")):
            said["reasoning_content"] = reasoning
        if details := objects(fields.get("reasoning_details")):
            said["reasoning_details"] = [dict(detail) for detail in details]
        refusals = [text(part.get("refusal")) for part in objects(fields.get("content"))]
        if refusal := text(fields.get("refusal")) or "".join(refusals):
            said["refusal"] = refusal
        if calls := [self._call(call) for call in objects(fields.get("tool_calls"))]:
            said["tool_calls"] = calls
        return said

    def _call(self, call: Object) -> Message:
        id, custom = text(call.get("id")), obj(call.get("custom"))
        if call.get("type") == "custom" and custom:
            return neutral_call(id, text(custom.get("name")), arguments_of_input(text(custom.get("input"))))
        function = obj(call.get("function"))
        return neutral_call(id, text(function.get("name")), arguments_text(function.get("arguments")))

    def tools(self, body: Mapping[str, Any]) -> Iterator[Tool]:
        legacy = ({"type": "function", "function": function} for function in objects(body.get("functions")))
        for index, tool in enumerate([*objects(body.get("tools")), *legacy]):
            where = f"tools[{index}]"
            match text(tool.get("type")) or "function":
                case "function":
                    read = function_tool(obj(tool.get("function")) or tool, f"{where}.function")
                case "custom":
                    read = custom_tool(obj(tool.get("custom")), f"{where}.custom")
                case kind:
                    self.dropped.append(f"tools.{kind}")
                    continue
            yield marked(read, tool)


def _terms(body: Object) -> Terms:
    limits = (integer(body.get(name)) for name in ("max_completion_tokens", "max_tokens", "n_predict"))
    stop = body.get("stop")
    return Terms(
        max_output_tokens=next((limit for limit in limits if limit is not None), None),
        temperature=number(body.get("temperature")),
        top_p=number(body.get("top_p")),
        top_k=integer(body.get("top_k")),
        stop=tuple(text(end) for end in ([stop] if isinstance(stop, str) else items(stop)) if text(end)),
        tool_choice=_tool_choice(body.get("tool_choice")),
        allows_parallel_calls=boolean(body.get("parallel_tool_calls")),
        reasoning=_reasoning(body),
        response_format=_response_format(obj(body.get("response_format"))),
        verbosity=optional_text(body.get("verbosity")),
        is_streamed=body.get("stream") is True,
        includes_usage=boolean(obj(body.get("stream_options")).get("include_usage")),
        user=optional_text(body.get("user")),
        session=optional_text(body.get("prompt_cache_key")) or optional_text(body.get("session_id")),
        metadata=obj(body.get("metadata")) or None,
    )


def _tool_choice(choice: object) -> ToolChoice | None:
    if choice in ("auto", "none", "required"):
        return ToolChoice(choice)
    if choice == "any":  # Mistral's word
        return ToolChoice("required")
    fields = obj(choice)
    allowed = obj(fields.get("allowed_tools"))
    if allowed:
        names = tuple(name for tool in objects(allowed.get("tools")) if (name := _chosen_name(tool)))
        return ToolChoice("required" if allowed.get("mode") == "required" else "auto", names)
    name = _chosen_name(fields)
    return ToolChoice("required", (name,)) if name else None


def _chosen_name(fields: Object) -> str:
    return text((obj(fields.get("function")) or obj(fields.get("custom"))).get("name"))


def _reasoning(body: Object) -> Reasoning | None:
    """OpenAI's effort, OpenRouter's object, or the switches of Z.ai, DeepSeek and chat templates."""
    own = obj(body.get("reasoning"))
    effort = optional_text(body.get("reasoning_effort")) or optional_text(own.get("effort"))
    budget = integer(own.get("max_tokens"))
    thinking = obj(body.get("thinking")).get("type")
    template = obj(body.get("chat_template_kwargs")).get("enable_thinking")
    if own.get("enabled") is False or thinking == "disabled" or template is False:
        return Reasoning(NO_REASONING)
    if effort is not None or budget is not None:
        return Reasoning(effort, None if effort is not None else budget)
    return Reasoning() if own.get("enabled") is True or thinking == "enabled" or template is True else None


def _response_format(wanted: Object) -> Mapping[str, Any] | None:
    if wanted.get("type") == "json_object":
        return {"type": "json_object"}
    if wanted.get("type") != "json_schema":
        return None
    schema = obj(wanted.get("json_schema"))
    return {"type": "json_schema", "json_schema": dict(schema)} if isinstance(schema.get("schema"), dict) else None
