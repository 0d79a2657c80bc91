"""A Messages request as a conversation in OpenAI's form.

- Results become messages of the role ``tool``, right behind the assistant message that called and in the order of its
  calls, since most templates print no call ids. Text that came beside them follows.
- Thinking becomes ``reasoning_content``; what is redacted is dropped, since nobody here can read it.
- Deferred tools stay out of the prompt's head. Where one is referenced, its definition is told in full.
- Texts of one assistant message are joined as they are, since that is how a reply is cut into blocks; other texts stand
  on lines of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from kvstet.api.anthropic.requests import (
    Block,
    CountRequest,
    DefinedTool,
    DocumentBlock,
    ImageBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolAdditionBlock,
    ToolReference,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from kvstet.api.anthropic.signatures import thinking_in
from kvstet.api.job import Conversation
from kvstet.api.ports import Message
from kvstet.canonical import canonical
from kvstet.chat.reply.grammar import ANY_CALL, CallDemand
from kvstet.errors import InvalidRequest

_CUSTOM = (None, "custom")

FunctionTool = dict[str, Any]
"""A tool in OpenAI's form."""


def conversation_of(fields: CountRequest) -> Conversation:
    """The prompt's part of a request. InvalidRequest names the block or tool that cannot be used."""
    tools = [(tool, _function_tool(tool, f"tools[{index}]")) for index, tool in enumerate(fields.tools or ())]
    brought = _brought_tools(fields.messages)
    translation = _Translation([*(function for _, function in tools), *brought])
    _check_choice(fields)
    return Conversation(
        messages=[*_system(fields), *translation.messages(fields.messages)],
        tools=[function for tool, function in tools if not tool.defer_loading],
        deferred_tools=[*(function for tool, function in tools if tool.defer_loading), *brought],
        calls_tools=fields.tool_choice is None or fields.tool_choice.type != "none",
        demand=_demand(fields),
        variables=_variables(fields),
    )


def _system(fields: CountRequest) -> list[Message]:
    if not fields.system:
        return []
    return [{"role": "system", "content": fields.system if isinstance(fields.system, str) else _parts(fields.system)}]


def _variables(fields: CountRequest) -> dict[str, Any]:
    """Of the template. What is not asked for is left to it."""
    variables: dict[str, Any] = {}
    if fields.thinking is not None:
        variables["enable_thinking"] = fields.thinking.type != "disabled"
    if fields.output_config is not None and fields.output_config.effort:
        variables["reasoning_effort"] = fields.output_config.effort
    return variables


def _function_tool(tool: Tool, where: str) -> FunctionTool:
    if tool.type not in _CUSTOM:
        # To drop it would be worse: the model would make up what the tool was to find out.
        raise InvalidRequest(
            f"{where} is of type {tool.type!r}, a tool of Anthropic's own that this server does not have."
            " Leave it out, or define a tool of type 'custom'.",
            param=f"{where}.type",
        )
    if not tool.name:
        raise InvalidRequest(f"{where} has no name.", param=f"{where}.name")
    if tool.input_schema is None:
        raise InvalidRequest(f"{where} has no input_schema.", param=f"{where}.input_schema")
    described = {} if tool.description is None else {"description": tool.description}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": tool.input_schema}}


def _brought_tools(turns: Sequence[Turn]) -> list[FunctionTool]:
    """Tools that messages define themselves."""
    return [
        _function_tool(block.tool.definition, f"messages[{number}].content[{index}].tool.definition")
        for number, turn in enumerate(turns)
        for index, block in enumerate(_blocks(turn))
        if isinstance(block, ToolAdditionBlock) and isinstance(block.tool, DefinedTool)
    ]


def _demand(fields: CountRequest) -> CallDemand:
    choice = fields.tool_choice
    if choice is None:
        return ANY_CALL
    names = (choice.name,) if choice.type == "tool" and choice.name else None
    is_parallel = names is None and not choice.disable_parallel_tool_use
    return CallDemand(is_required=choice.type in ("any", "tool"), is_parallel=is_parallel, names=names)


def _check_choice(fields: CountRequest) -> None:
    choice = fields.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return
    names = {tool.name for tool in fields.tools or ()}
    if not names:
        raise InvalidRequest(f"A tool_choice of type {choice.type!r} needs tools.", param="tool_choice")
    if choice.type == "tool" and choice.name not in names:
        raise InvalidRequest(f"tool_choice names a tool that is not there: {choice.name!r}.", param="tool_choice.name")


class _Translation:
    """Of one request's messages. Knows which tools there are, and which calls were made so far."""

    def __init__(self, tools: Iterable[FunctionTool]) -> None:
        self._functions = {tool["function"]["name"]: tool["function"] for tool in tools}
        self._calls: dict[str, tuple[int, str]] = {}
        """Id of a call -> its place among all calls, and the tool's name."""

    def messages(self, turns: Sequence[Turn]) -> list[Message]:
        messages: list[Message] = []
        between: list[Message] = []
        for index, turn in enumerate(turns):
            where = f"messages[{index}].content"
            if turn.role == "assistant":
                messages += self._results_first(between)
                between = []
                messages.append(self._assistant(turn, where))
            else:
                between += self._others(turn, where)
        return messages + self._results_first(between)

    def _results_first(self, messages: Sequence[Message]) -> list[Message]:
        """What stands between two assistant messages: results in the order of their calls, then the rest as it came."""
        unknown = len(self._calls), ""
        results = [message for message in messages if message["role"] == "tool"]
        results.sort(key=lambda message: self._calls.get(message["tool_call_id"], unknown)[0])
        return results + [message for message in messages if message["role"] != "tool"]

    def _assistant(self, turn: Turn, where: str) -> Message:
        thinking: list[str] = []
        texts: list[str] = []
        calls: list[Message] = []
        for index, block in enumerate(_blocks(turn)):
            match block:
                case TextBlock(text=text):
                    texts.append(text)
                case ThinkingBlock():
                    thinking.append(thinking_in(block.thinking, block.signature or ""))
                case ToolUseBlock():
                    self._calls[block.id] = len(self._calls), block.name
                    calls.append(_call(block))
                case RedactedThinkingBlock():
                    pass
                case _:
                    raise _unusable(block, turn, f"{where}[{index}]")
        message: Message = {"role": "assistant", "content": "".join(texts)}
        if reasoning := "".join(thinking):
            message["reasoning_content"] = reasoning
        return message | ({"tool_calls": calls} if calls else {})

    def _others(self, turn: Turn, where: str) -> list[Message]:
        results: list[Message] = []
        texts: list[TextBlock] = []
        for index, block in enumerate(_blocks(turn)):
            match block:
                case TextBlock():
                    texts.append(block)
                case ToolResultBlock() if turn.role == "user":
                    results.append(self._result(block, turn, f"{where}[{index}]"))
                case ToolAdditionBlock(tool=tool) if turn.role == "system":
                    name = tool.definition.name if isinstance(tool, DefinedTool) else tool.name
                    texts.append(TextBlock(self._definition(name)))
                case ToolRemovalBlock(tool=tool) if turn.role == "system":
                    texts.append(TextBlock(f"The tool {tool.name} can no longer be called."))
                case _:
                    raise _unusable(block, turn, f"{where}[{index}]")
        if texts or not results:
            results.append({"role": turn.role, "content": _parts(texts)})
        return results

    def _result(self, block: ToolResultBlock, turn: Turn, where: str) -> Message:
        text = self._result_text(block, turn, where)
        if block.is_error and "error" not in text.partition("\n")[0].casefold():
            text = f"Error: {text}"
        message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
        if block.tool_use_id in self._calls:
            message["name"] = self._calls[block.tool_use_id][1]
        return message

    def _result_text(self, block: ToolResultBlock, turn: Turn, where: str) -> str:
        if block.content is None or isinstance(block.content, str):
            return block.content or ""
        texts: list[str] = []
        for index, part in enumerate(block.content):
            match part:
                case TextBlock(text=text):
                    texts.append(text)
                case ToolReference(tool_name=name):
                    texts.append(self._definition(name))
                case _:
                    raise _unusable(part, turn, f"{where}.content[{index}]")
        return _lines(texts)

    def _definition(self, name: str) -> str:
        """What the model reads where a tool is referenced; the order of keys in its schema makes no difference."""
        function = self._functions.get(name)
        if function is None:
            return f"The tool {name} is not there."
        return f"This tool can be called from here on:\n{_as_json(function)}"


def _blocks(turn: Turn) -> Sequence[Block]:
    return [TextBlock(turn.content)] if isinstance(turn.content, str) else turn.content


def _call(block: ToolUseBlock) -> Message:
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}


def _parts(blocks: Sequence[TextBlock]) -> str | list[dict[str, Any]]:
    """Content in OpenAI's form, which stands on lines of its own; in parts where one is marked before the end."""
    if not any(block.cache_control for block in blocks[:-1]):
        return _lines(block.text for block in blocks)
    return [{"type": "text", "text": block.text, "cache_control": block.cache_control} for block in blocks]


def _lines(texts: Iterable[str]) -> str:
    return "\n".join(texts)


def _as_json(function: dict[str, Any]) -> str:
    try:
        return json.dumps(canonical(function), ensure_ascii=False)
    except RecursionError:
        raise InvalidRequest(f"The input_schema of {function['name']} is nested too deeply.", param="tools") from None


def _unusable(block: Struct, turn: Turn, where: str) -> InvalidRequest:
    kind = block.__struct_config__.tag
    if isinstance(block, ImageBlock | DocumentBlock):
        return InvalidRequest(f"{where} is of type {kind!r}, but this model takes text only.", param=where)
    return InvalidRequest(f"{where} is of type {kind!r}, which {turn.role} messages cannot hold.", param=where)
