"""A neutral request as a Responses request. Nothing is to be kept at the vendor: ``store`` is false."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kvstet.dialects.content import is_all_text, parts_of, reference_text, result_parts, unsealed
from kvstet.dialects.effort import effort_of
from kvstet.dialects.names import wire_id, wire_name, wire_user
from kvstet.dialects.openai_models import fitting_terms, is_openai_model, reasons
from kvstet.dialects.request import (
    NO_REASONING,
    OPENAI_FORMAT,
    Message,
    Part,
    Request,
    Terms,
    Tool,
    ToolChoice,
    Written,
    unmarked,
)
from kvstet.dialects.tools import ToolName, callable_tools, input_of_arguments, is_custom, tool_names
from kvstet.dialects.values import Object, obj, objects, present, text

Item = dict[str, Any]

_SEALED = "reasoning.encrypted_content"


def write_request(request: Request) -> Written:
    """Cache marks do not survive: here a cache is found without them, and older models refuse OpenAI's own."""
    request = unmarked(request)
    terms, lost = fitting_terms(request.model, request.terms)
    tools = callable_tools(request.tools, request.messages)
    writer = _Writer(request)
    instructions, rest = _instructions(request.messages)
    body = {
        "model": request.model,
        **present({"instructions": instructions}),
        "input": [*writer.items(rest)],
        **({"tools": [*_tools(tools)]} if tools else {}),
        **_terms(request.model, terms, tools),
        "store": False,
    }
    return Written(body, request.dropping([*writer.dropped, *lost, *_lost_terms(terms)]).dropped)


def _instructions(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    first = messages[0] if messages else {}
    content = first.get("content")
    if first.get("role") == "system" and isinstance(content, str) and len(messages) > 1:
        return content, messages[1:]
    return None, messages


class _Writer:
    """Of one request's messages; notes what it leaves out."""

    def __init__(self, request: Request) -> None:
        self.dropped: list[str] = []
        self._names = tool_names(request.tools)
        self._refuses_unsealed = is_openai_model(request.model)
        self._custom_ids: set[str] = set()

    def items(self, messages: Iterable[Message]) -> Iterator[Item]:
        for message in messages:
            match message["role"]:
                case "assistant":
                    yield from self._assistant(message)
                case "tool":
                    yield self._output(message)
                case role:
                    name = "developer" if role == "system" else role
                    content = self._content(parts_of(message.get("content")))
                    yield {"type": "message", "role": name, "content": content}

    def _assistant(self, message: Message) -> Iterator[Item]:
        yield from self._reasoning(message)
        content = self._said(message)
        if content:
            yield {"type": "message", "role": "assistant", "content": content}
        for call in objects(message.get("tool_calls")):
            yield self._call(call)

    def _said(self, message: Message) -> str | list[Item]:
        parts = parts_of(message.get("content"))
        if not is_all_text(parts):
            self.dropped.append("messages.content.image_url")
        texts = [text(part.get("text")) for part in parts if part["type"] == "text"]
        refusal = text(message.get("refusal"))
        if not refusal and len(texts) <= 1:
            return "".join(texts)
        said: list[Item] = [{"type": "output_text", "text": part, "annotations": []} for part in texts]
        return [*said, *([{"type": "refusal", "refusal": refusal}] if refusal else [])]

    def _reasoning(self, message: Message) -> Iterator[Item]:
        details = [
            detail for detail in objects(message.get("reasoning_details")) if detail.get("format") == OPENAI_FORMAT
        ]
        sealed = [detail for detail in details if detail.get("data")]
        for detail in sealed:
            yield _reasoning(text(detail.get("summary")), text(detail.get("id")), text(detail.get("data")))
        reasoning = text(message.get("reasoning_content"))
        if reasoning and not sealed and not self._refuses_unsealed:
            yield _reasoning(reasoning)
        elif not sealed:
            self.dropped += unsealed(message)

    def _call(self, call: Object) -> Item:
        function, id = obj(call.get("function")), wire_id(text(call.get("id")))
        wire = wire_name(text(function.get("name")))
        name = self._names.get(wire) or ToolName(wire)
        named = {"call_id": id, "name": wire_name(name.name), **present({"namespace": name.namespace})}
        arguments = text(function.get("arguments"))
        if name.kind == "custom":
            self._custom_ids.add(id)
            return {"type": "custom_tool_call", **named, "input": input_of_arguments(arguments)}
        return {"type": "function_call", **named, "arguments": arguments or "{}"}

    def _output(self, message: Message) -> Item:
        id = wire_id(text(message.get("tool_call_id")))
        kind = "custom_tool_call_output" if id in self._custom_ids else "function_call_output"
        return {"type": kind, "call_id": id, "output": self._content(result_parts(message), as_text=True)}

    def _content(self, parts: Sequence[Part], *, as_text: bool = False) -> str | list[Item]:
        """A result of one text is a string, as is a message of none."""
        content = [item for part in parts if (item := self._part(part)) is not None]
        is_plain = len(content) == 1 and content[0]["type"] == "input_text"
        if not content:
            return ""
        return str(content[0]["text"]) if is_plain and as_text else content

    def _part(self, part: Part) -> Item | None:
        match part["type"]:
            case "text":
                return {"type": "input_text", "text": part["text"]}
            case "image_url":
                image = obj(part["image_url"])
                url = text(image.get("url"))
                return {"type": "input_image", "image_url": url, "detail": text(image.get("detail")) or "auto"}
            case "file":
                return {"type": "input_file", **part["file"]}
            case "tool_reference":
                return {"type": "input_text", "text": reference_text(text(part.get("tool_name")))}
            case kind:
                self.dropped.append(f"messages.content.{kind}")
                return None


def _reasoning(said: str, id: str = "", sealed: str = "") -> Item:
    digest = hashlib.sha256(said.encode(errors="replace")).hexdigest()[:32]
    summary = [{"type": "summary_text", "text": said}] if said else []
    item: Item = {"type": "reasoning", "id": id or f"rs_{digest}", "summary": summary}
    return {**item, "encrypted_content": sealed} if sealed else item


def _tools(tools: Iterable[Tool]) -> Iterator[Item]:
    """Those of one namespace that stand together are put into it again."""
    space: Item | None = None
    for tool in tools:
        origin = obj(tool.get("origin"))
        name = text(origin.get("namespace"))
        if space is not None and space["name"] != name:
            yield space
            space = None
        if not name:
            yield _tool(tool, origin)
            continue
        space = space or {"type": "namespace", "name": name, "description": text(origin.get("about")), "tools": []}
        space["tools"].append(_tool(tool, origin))
    if space is not None:
        yield space


def _tool(tool: Tool, origin: Object) -> Item:
    function = obj(tool["function"])
    name = wire_name(text(origin.get("name")) or text(function.get("name")))
    if is_custom(tool):
        return {"type": "custom", "name": name, **present({key: origin.get(key) for key in ("description", "format")})}
    return {
        "type": "function",
        "name": name,
        **present({"description": function.get("description")}),
        "parameters": function.get("parameters"),
        # Without it, OpenAI takes a schema here for a strict one.
        "strict": function.get("strict") is True,
    }


def _terms(model: str, terms: Terms, tools: Sequence[Tool]) -> dict[str, Any]:
    return present(
        {
            "max_output_tokens": terms.max_output_tokens,
            "temperature": terms.temperature,
            "top_p": terms.top_p,
            "tool_choice": _tool_choice(terms.tool_choice, tool_names(tools)) if tools else None,
            "parallel_tool_calls": terms.allows_parallel_calls if tools else None,
            "reasoning": _effort(terms),
            # OpenAI refuses it for models that do not reason.
            "include": [_SEALED] if reasons(model) or not is_openai_model(model) else None,
            "text": present({"format": _format(terms), "verbosity": terms.verbosity}) or None,
            "stream": True if terms.is_streamed else None,
            "user": wire_user(terms.user),
            "prompt_cache_key": terms.session,
            "metadata": terms.metadata,
        }
    )


def _lost_terms(terms: Terms) -> Iterator[str]:
    if terms.stop:
        yield "stop"
    if terms.top_k is not None:
        yield "top_k"


def _effort(terms: Terms) -> dict[str, Any] | None:
    if terms.reasoning is None:
        return None
    effort = effort_of(terms.reasoning, terms.max_output_tokens)
    return present({"effort": effort, "summary": None if effort == NO_REASONING else "auto"})


def _format(terms: Terms) -> dict[str, Any] | None:
    form = terms.response_format
    if form is None:
        return None
    return {
        "type": form["type"],
        **({"name": "reply"} if form["type"] == "json_schema" else {}),
        **obj(form.get("json_schema")),
    }


def _tool_choice(choice: ToolChoice | None, names: Any) -> object:
    if choice is None or not choice.names:
        return choice and choice.mode
    chosen = [_chosen(names.get(wire_name(name)) or ToolName(name)) for name in choice.names]
    if choice.mode == "required" and len(chosen) == 1:
        return chosen[0]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": chosen}


def _chosen(name: ToolName) -> Item:
    return {"type": name.kind, "name": wire_name(name.name), **present({"namespace": name.namespace})}
