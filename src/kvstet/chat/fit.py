"""Fits a conversation to what a template can print.

What a template would drop, move or refuse is said in another way:

- ``developer`` becomes ``system`` where the template does not know it.
- System messages that would not stand where they were sent: those at the start are joined into one, later ones become
  user messages within ``<system-reminder>`` (Claude Code's own form for the same thing).
- A template that knows no tools gets them as text, in the Hermes form of the built-in ``chatml-tools`` template: the
  list in the system message (in the first user message where there can be none), calls in the assistant's text, and
  results in user messages.

- Calls get other ids, where a template prints nothing of a call but its id and its arguments.
- Text beside reasoning and calls joins the reasoning, where the template refuses to have all three in one message.

Everything else stays as it is, and what a template then still refuses is an error for the client.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import cast

from kvstet.chat.messages import Message
from kvstet.chat.traits import Traits


@dataclass(frozen=True, slots=True)
class Fitted:
    """Messages for the template. ``origins[i]`` is the first of the sent messages that ``messages[i]`` stands for."""

    messages: tuple[Message, ...]
    origins: tuple[int, ...]
    tools: tuple[Mapping[str, object], ...]


@dataclass(frozen=True, slots=True)
class _Turn:
    origin: int
    message: Message

    @property
    def role(self) -> str:
        return str(self.message["role"])

    @property
    def text(self) -> str:
        return str(self.message["content"])

    def saying(self, text: str, role: str | None = None) -> _Turn:
        return _Turn(self.origin, {**self.message, "role": role or self.role, "content": text})


def fit(messages: Sequence[Message], tools: Sequence[Mapping[str, object]], traits: Traits) -> Fitted:
    """Fit normalised messages and tools to a template with these traits."""
    turns = [_Turn(index, message) for index, message in enumerate(messages)]
    if not traits.knows_developer:
        turns = [turn.saying(turn.text, "system") if turn.role == "developer" else turn for turn in turns]
    if traits.later_system == "elsewhere":
        turns = _settle_system(turns)
    if not traits.knows_tools:
        turns = _tell_tools(_tell_calls(turns), tools, traits)
    if traits.call_ids == "named":
        turns = _name_by_id(turns)
    return Fitted(
        messages=tuple(_shape(turn.message, traits) for turn in turns),
        origins=tuple(turn.origin for turn in turns),
        tools=tuple(tools) if traits.knows_tools else (),
    )


def _name_by_id(turns: Sequence[_Turn]) -> list[_Turn]:
    """Calls get the ids that the model would have written, which name the tool and count its calls."""
    ids: dict[object, str] = {}
    named: list[_Turn] = []
    for turn in turns:
        message = dict(turn.message)
        calls: list[Message] = []
        for call in cast("Sequence[Message]", message.get("tool_calls", ())):
            id = f"functions.{cast('Message', call['function'])['name']}:{len(ids)}"
            ids[call.get("id", id)] = id
            calls.append({**call, "id": id})
        if calls:
            message["tool_calls"] = calls
        if message.get("tool_call_id") in ids:
            message["tool_call_id"] = ids[message["tool_call_id"]]
        named.append(_Turn(turn.origin, message))
    return named


def _settle_system(turns: list[_Turn]) -> list[_Turn]:
    """At most one system message, and that at the start."""
    first = list(takewhile(lambda turn: turn.role == "system", turns))
    rest = (_remind(turn) if turn.role == "system" else turn for turn in turns[len(first) :])
    return [*_join(first, "\n\n"), *rest]


def _remind(turn: _Turn) -> _Turn:
    return turn.saying(f"<system-reminder>\n{turn.text}\n</system-reminder>", "user")


def _join(turns: Sequence[_Turn], separator: str) -> list[_Turn]:
    return [turns[0].saying(separator.join(turn.text for turn in turns))] if turns else []


def _tell_calls(turns: Iterable[_Turn]) -> list[_Turn]:
    """Calls and results as text; results that follow each other become one message, for roles that must alternate."""
    told: list[_Turn] = []
    for role, group in groupby(turns, key=lambda turn: turn.role):
        if role == "tool":
            results = [t.saying(f"<tool_response>\n{t.text}\n</tool_response>", "user") for t in group]
            told += [_Turn(turn.origin, {"role": "user", "content": turn.text}) for turn in _join(results, "\n")]
        else:
            told += [_tell_calls_of(turn) for turn in group]
    return told


def _tell_calls_of(turn: _Turn) -> _Turn:
    calls = cast("Sequence[Mapping[str, Mapping[str, object]]]", turn.message.get("tool_calls", ()))
    texts = [_call_text(call["function"]) for call in calls]
    message = {key: value for key, value in turn.message.items() if key != "tool_calls"}
    return _Turn(turn.origin, message).saying("\n".join([*([turn.text] if turn.text else []), *texts]))


def _call_text(function: Mapping[str, object]) -> str:
    arguments = function["arguments"]
    name = json.dumps(function["name"], ensure_ascii=False)
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _tell_tools(turns: list[_Turn], tools: Sequence[Mapping[str, object]], traits: Traits) -> list[_Turn]:
    if not tools:
        return turns
    text = _TOOLS_TEXT.format("\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    host = "system" if traits.first_system == "in_place" else "user"
    if host == "system" and turns[0].role != "system":
        return [_Turn(turns[0].origin, {"role": "system", "content": text}), *turns]
    place = next((place for place, turn in enumerate(turns) if turn.role == host), None)
    if place is None:
        return [_Turn(turns[0].origin, {"role": "user", "content": text}), *turns]
    parts = [turns[place].text, text] if host == "system" else [text, turns[place].text]
    return [*turns[:place], turns[place].saying("\n\n".join(filter(None, parts))), *turns[place + 1 :]]


_TOOLS_TEXT = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def _shape(message: Message, traits: Traits) -> Message:
    """Names and forms as the template reads them."""
    shaped = dict(message)
    if traits.mixed_calls == "refused" and {"reasoning_content", "tool_calls"} <= shaped.keys() and shaped["content"]:
        shaped |= {"reasoning_content": f"{shaped['reasoning_content']}\n\n{shaped['content']}", "content": ""}
    if traits.reasoning_key != "reasoning_content" and "reasoning_content" in shaped:
        shaped[traits.reasoning_key] = shaped.pop("reasoning_content")
    if "tool_calls" in shaped:
        calls = cast("Sequence[Message]", shaped["tool_calls"])
        shaped["tool_calls"] = [_shape_call(call, traits) for call in calls]
        if traits.calls.empty_content == "null" and not shaped["content"]:
            shaped["content"] = None
    return shaped


def _shape_call(call: Message, traits: Traits) -> Message:
    function = cast("Message", call["function"])
    arguments = function["arguments"]
    if traits.calls.arguments == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}
