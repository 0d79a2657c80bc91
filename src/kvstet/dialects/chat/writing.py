"""A neutral request as a Chat request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kvstet.dialects.content import (
    is_all_text,
    mark_fields,
    parts_of,
    plain_text,
    reference_text,
    result_parts,
    simplest,
    text_part,
)
from kvstet.dialects.effort import effort_of
from kvstet.dialects.names import wire_id, wire_name, wire_user
from kvstet.dialects.openai_models import fitting_terms, is_openai_model
from kvstet.dialects.request import CACHE_MARK, Message, Part, Request, Terms, Tool, ToolChoice, Written
from kvstet.dialects.tools import callable_tools
from kvstet.dialects.values import objects, present, text

_NO_ASSISTANT: Message = {}


def write_request(request: Request) -> Written:
    """Images and files in results move into a user message behind them: results hold only text here."""
    writer = _Writer()
    messages = list(writer.messages(request.messages))
    tools = [_tool(tool) for tool in callable_tools(request.tools, request.messages)]
    terms, lost = fitting_terms(request.model, request.terms)
    body = {
        "model": request.model,
        "messages": messages,
        **({"tools": tools} if tools else {}),
        **present(_limits(request)),
        **present(
            {
                "temperature": terms.temperature,
                "top_p": terms.top_p,
                "tool_choice": _tool_choice(terms.tool_choice) if tools else None,
                "parallel_tool_calls": terms.allows_parallel_calls if tools else None,
                "reasoning_effort": terms.reasoning and effort_of(terms.reasoning, terms.max_output_tokens),
                "response_format": terms.response_format,
                "verbosity": terms.verbosity,
                "user": wire_user(terms.user),
                "prompt_cache_key": terms.session,
            }
        ),
        **_stream(terms),
    }
    return Written(body, request.dropping([*writer.dropped, *lost, *_lost_terms(terms)]).dropped)


def _limits(request: Request) -> dict[str, Any]:
    # OpenAI's newer models refuse ``max_tokens``; many other servers know nothing else.
    field = "max_completion_tokens" if is_openai_model(request.model) else "max_tokens"
    return {field: request.terms.max_output_tokens, "stop": list(request.terms.stop) or None}


def _stream(terms: Terms) -> dict[str, Any]:
    """The usage is asked for unless the client said that it does not want it: other dialects always tell it."""
    if not terms.is_streamed:
        return {}
    return {"stream": True, "stream_options": {"include_usage": terms.includes_usage is not False}}


def _lost_terms(terms: Terms) -> Iterator[str]:
    if terms.top_k is not None:
        yield "top_k"
    if terms.metadata:
        # OpenAI takes it only together with ``store``.
        yield "metadata"


def _tool_choice(choice: ToolChoice | None) -> object:
    if choice is None or not choice.names:
        return choice and choice.mode
    named = [{"type": "function", "function": {"name": wire_name(name)}} for name in choice.names]
    if choice.mode == "required" and len(named) == 1:
        return named[0]
    return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": named}}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {**tool["function"], "name": wire_name(tool["function"]["name"])}
    return {"type": "function", "function": function, **mark_fields(tool)}


class _Writer:
    """Of one request's messages; notes what it leaves out."""

    def __init__(self) -> None:
        self.dropped: list[str] = []

    def messages(self, messages: Iterable[Message]) -> Iterator[Message]:
        moved: list[Part] = []
        for message in _joined(messages):
            if message["role"] != "tool" and moved:
                yield {"role": "user", "content": moved}
                moved = []
            match message["role"]:
                case "tool":
                    yield self._result(message, moved)
                case "assistant":
                    yield self._assistant(message)
                case role:
                    yield {"role": role, "content": simplest([*self._parts(message.get("content"))])}
        if moved:
            yield {"role": "user", "content": moved}

    def _result(self, message: Message, moved: list[Part]) -> Message:
        parts = list(self._parts(result_parts(message)))
        texts = [part for part in parts if part["type"] == "text"]
        others = [part for part in parts if part["type"] != "text"]
        id = wire_id(text(message.get("tool_call_id")))
        if others:
            moved += [text_part(f"Of the result of call {id}:"), *others]
        return {"role": "tool", "tool_call_id": id, "content": simplest(texts)}

    def _assistant(self, message: Message) -> Message:
        calls = [self._call(call) for call in objects(message.get("tool_calls"))]
        parts = list(self._parts(message.get("content")))
        if not is_all_text(parts):
            self.dropped.append("messages.content.image_url")
            parts = [part for part in parts if part["type"] == "text"]
        content = simplest(parts)
        kept = {key: message[key] for key in ("reasoning_content", "reasoning_details", "refusal") if message.get(key)}
        called = {"tool_calls": calls} if calls else {}
        # OpenAI wants null beside calls and refusals, and a text otherwise.
        return {
            "role": "assistant",
            "content": content or (None if calls or "refusal" in kept else ""),
            **kept,
            **called,
        }

    def _call(self, call: Any) -> Message:
        if CACHE_MARK in call:
            self.dropped.append("messages.tool_calls.cache_control")
        function = call["function"]
        named = {"name": wire_name(function["name"]), "arguments": function["arguments"]}
        return {"id": wire_id(call["id"]), "type": "function", "function": named}

    def _parts(self, content: object) -> Iterator[Part]:
        for part in parts_of(content):
            match part["type"]:
                case "tool_reference":
                    yield text_part(reference_text(text(part.get("tool_name"))))
                case "file" if "file_data" not in part["file"]:
                    self.dropped.append("messages.content.file")
                case _:
                    yield part


def _joined(messages: Iterable[Message]) -> Iterator[Message]:
    """Assistant messages that follow one that calls become part of it: results must stand right behind their calls."""
    open = _NO_ASSISTANT
    for message in messages:
        if open and message["role"] == "assistant" and open.get("tool_calls"):
            open = _join(open, message)
            continue
        if open:
            yield open
        open = message if message["role"] == "assistant" else _NO_ASSISTANT
        if not open:
            yield message
    if open:
        yield open


def _join(first: Message, second: Message) -> Message:
    joined = {**first, **second}
    texts = [said for message in (first, second) if (said := plain_text(message.get("content")))]
    joined["content"] = "\n\n".join(texts)
    for key in ("tool_calls", "reasoning_details"):
        if both := [*(first.get(key) or ()), *(second.get(key) or ())]:
            joined[key] = both
    if thoughts := [message["reasoning_content"] for message in (first, second) if message.get("reasoning_content")]:
        joined["reasoning_content"] = "\n\n".join(thoughts)
    return joined
