"""A conversation as a coding agent holds it, and what agents do to theirs; every change makes a new one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from kvstet.bench.steps import Ask, Body

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages and tools in OpenAI's dialect."""

    messages: tuple[Message, ...]
    tools: tuple[Message, ...] = ()

    def __len__(self) -> int:
        return len(self.messages)

    def ask(self, label: str) -> Ask:
        """Send it as it stands."""
        return Ask(label, self.body)

    @property
    def body(self) -> Body:
        body: Body = {"messages": list(self.messages)}
        return {**body, "tools": list(self.tools)} if self.tools else body

    def adding(self, *messages: Message) -> Chat:
        return replace(self, messages=(*self.messages, *messages))

    def inserting(self, index: int, *messages: Message) -> Chat:
        return replace(self, messages=(*self.messages[:index], *messages, *self.messages[index:]))

    def without(self, indices: Iterable[int]) -> Chat:
        gone = set(indices)
        return replace(self, messages=tuple(m for index, m in enumerate(self.messages) if index not in gone))

    def cut(self, num_messages: int) -> Chat:
        """Only the first so many."""
        return replace(self, messages=self.messages[:num_messages])

    def changing(self, indices: Iterable[int], change: Callable[[Message], Message]) -> Chat:
        wanted = set(indices)
        messages = (change(m) if index in wanted else m for index, m in enumerate(self.messages))
        return replace(self, messages=tuple(messages))

    def where(self, role: str) -> list[int]:
        """Indices of the messages of a role."""
        return [index for index, message in enumerate(self.messages) if message["role"] == role]

    def with_tools(self, tools: Iterable[Message]) -> Chat:
        return replace(self, tools=tuple(tools))


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Message:
    message = {"role": "assistant", "content": text}
    return {**message, "reasoning_content": reasoning} if reasoning else message


def calling(text: str, call_id: str, name: str, arguments: Message, reasoning: str = "") -> Message:
    """A reply that calls a tool; arguments are spelt as models spell them."""
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return {**assistant(text, reasoning), "tool_calls": [call]}


def result(call_id: str, text: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def tool(name: str, description: str, *parameters: str) -> Message:
    """A tool; all of its parameters are text."""
    properties = {parameter: {"type": "string"} for parameter in parameters}
    schema = {"type": "object", "properties": properties, "required": list(parameters[:1])}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


def without_reasoning(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "reasoning_content"}


def saying(text: str) -> Callable[[Message], Message]:
    """Another text in the place of a message's."""
    return lambda message: {**message, "content": text}


def respelt(message: Message) -> Message:
    """The same arguments, as a client writes them that has parsed them: without blanks, keys in order."""

    def spell(call: Message) -> Message:
        function = call["function"]
        arguments = json.dumps(json.loads(function["arguments"]), separators=(",", ":"), sort_keys=True)
        return {**call, "function": {**function, "arguments": arguments}}

    return {**message, "tool_calls": [spell(call) for call in message["tool_calls"]]}
