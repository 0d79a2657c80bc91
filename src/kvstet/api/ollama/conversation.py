"""An Ollama chat as a conversation in OpenAI's form.

Ollama's calls may have no ids, and its results then say which tool they come from and nothing more. Calls without an
id are numbered, and a result answers the first open call of its tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstet.api.job import Conversation
from kvstet.api.ollama.requests import ChatMessage, ChatRequest, GenerateRequest, GenerationFields, Tool, ToolCall
from kvstet.api.openai.prompts import NO_REASONING
from kvstet.api.ports import Message
from kvstet.errors import InvalidRequest

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


def conversation_of(fields: ChatRequest) -> Conversation:
    """A chat's messages and tools. InvalidRequest names the message that cannot be used."""
    return Conversation(
        messages=_Translation().messages(fields.messages),
        tools=[_function_tool(tool) for tool in fields.tools or ()],
        variables=variables_of(fields),
    )


def prompt_conversation(fields: GenerateRequest) -> Conversation:
    """The conversation that a prompt opens. InvalidRequest for images."""
    check_images(fields.images, "images")
    system: list[Message] = [{"role": "system", "content": fields.system}] if fields.system else []
    return Conversation(
        messages=[*system, {"role": "user", "content": fields.prompt or ""}], variables=variables_of(fields)
    )


def variables_of(fields: GenerationFields) -> dict[str, Any]:
    """Of the template. What is not asked for is left to it."""
    match fields.think:
        case None:
            return {}
        case bool():
            return {"enable_thinking": fields.think}
        case effort:
            return {"enable_thinking": effort != NO_REASONING, "reasoning_effort": effort}


def check_images(images: Sequence[object] | None, where: str) -> None:
    if images:
        raise InvalidRequest(f"{where} holds images, but this model takes text only.", param=where)


def _function_tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    described = {} if function.description is None else {"description": function.description}
    parameters = _NO_PARAMETERS if function.parameters is None else function.parameters
    return {"type": "function", "function": {"name": function.name, **described, "parameters": parameters}}


class _Translation:
    """Of one request's messages. Knows the calls so far, and which of them no result has answered."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._open_calls: dict[str, str] = {}
        """Id -> name of the tool, in the order of the calls."""

    def messages(self, messages: Sequence[ChatMessage]) -> list[Message]:
        return [self._message(message, f"messages[{index}]") for index, message in enumerate(messages)]

    def _message(self, message: ChatMessage, where: str) -> Message:
        check_images(message.images, f"{where}.images")
        translated: Message = {"role": message.role, "content": message.content or ""}
        match message.role:
            case "assistant":
                return translated | self._said(message)
            case "tool":
                return translated | self._answered(message)
            case _:
                return translated

    def _said(self, message: ChatMessage) -> Message:
        reasoning = {"reasoning_content": message.thinking} if message.thinking else {}
        calls = [self._call(call) for call in message.tool_calls or ()]
        return reasoning | ({"tool_calls": calls} if calls else {})

    def _call(self, call: ToolCall) -> Message:
        # Nine characters, letters and digits: the only ids that the templates of Mistral take.
        id = call.id or f"call{self._num_calls:05}"
        self._num_calls += 1
        name, arguments = call.function.name, call.function.arguments or {}
        self._open_calls[id] = name
        return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _answered(self, message: ChatMessage) -> Message:
        id = message.tool_call_id or self._open_call_of(message.tool_name)
        name = self._open_calls.pop(id, None) if id else None
        named = {"name": message.tool_name or name, "tool_call_id": id}
        return {key: value for key, value in named.items() if value}

    def _open_call_of(self, tool_name: str | None) -> str | None:
        return next((id for id, name in self._open_calls.items() if tool_name in (None, "", name)), None)
