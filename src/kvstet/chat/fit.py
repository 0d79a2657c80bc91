"""Fits a conversation to what a template can print.

What a template would drop, move or refuse is said in another way:

- ``developer`` becomes ``system`` where the template does not know it.
- System messages that would not stand where they were sent: those at the start are joined into one, later ones become
  user messages within ``<system-reminder>`` (Claude Code's own form for the same thing).
- A template that knows no tools gets them as text, in the Hermes form of the built-in ``chatml-tools`` template: the
  list in the system message (in the first user message where there can be none), calls in the assistant's text, and
  results in user messages.

- Calls get other ids, where a template prints nothing of a call but its id and its arguments, or wants short ones.
- Calls that were made at once follow each other, where a template takes one in a message.
- Messages of one role that follow each other are joined, where roles must alternate.
- Text beside reasoning and calls joins the reasoning, where the template refuses to have all three in one message.

Everything else stays as it is, and what a template then still refuses is an error for the client.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    num_sent: int
    """Messages that were sent."""

    @property
    def alone(self) -> tuple[bool, ...]:
        """For each message, whether it stands for one that was sent, and is all that does."""
        counts = Counter((*self.origins, self.num_sent))
        return tuple(counts[origin] == 1 and origin + 1 in counts for origin in self.origins)


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
    if traits.calls_at_once == "one":
        turns = _call_one_by_one(turns)
    if traits.roles == "alternate":
        turns = _alternate(turns)
    if traits.call_ids != "any":
        turns = _with_ids(turns, _named_id if traits.call_ids == "named" else _short_id)
    return Fitted(
        messages=tuple(_shape(turn.message, traits) for turn in turns),
        origins=tuple(turn.origin for turn in turns),
        tools=tuple(tools) if traits.knows_tools else (),
        num_sent=len(messages),
    )


def _call_one_by_one(turns: Sequence[_Turn]) -> list[_Turn]:
    """Calls that were made at once, each with its result behind it."""
    results = {turn.message.get("tool_call_id"): turn for turn in turns if turn.role == "tool"}
    told: list[_Turn] = []
    used: set[object] = set()
    for turn in turns:
        calls = cast("Sequence[Message]", turn.message.get("tool_calls", ()))
        if len(calls) < 2:
            told += [turn] if turn.message.get("tool_call_id") not in used or turn.role != "tool" else []
            continue
        for number, call in enumerate(calls):
            said: Message = {"role": "assistant", "content": ""} if number else turn.message
            message: Message = {**said, "tool_calls": [call]}
            told.append(_Turn(turn.origin, message))
            if call.get("id") in results:
                told.append(results[call.get("id")])
                used.add(call.get("id"))
    return told


def _alternate(turns: Sequence[_Turn]) -> list[_Turn]:
    """No two messages of users or of the assistant behind each other, and a user's first."""
    told: list[_Turn] = []
    for turn in turns:
        before = told[-1] if told else None
        is_plain = "tool_calls" not in turn.message
        if (
            before
            and before.role == turn.role in ("user", "assistant")
            and is_plain
            and "tool_calls" not in before.message
        ):
            told[-1] = before.saying("\n\n".join(filter(None, (before.text, turn.text))))
        else:
            told.append(turn)
    first = next((place for place, turn in enumerate(told) if turn.role != "system"), None)
    if first is not None and told[first].role == "assistant":
        told.insert(first, _Turn(told[first].origin, {"role": "user", "content": ""}))
    return told


def _named_id(name: object, number: int, id: object) -> str:
    """What Kimi writes itself: it names the tool, and counts the calls."""
    return f"functions.{name}:{number}"


def _short_id(name: object, number: int, id: object) -> str:
    """Nine letters and digits; one that is so already stays."""
    if isinstance(id, str) and _SHORT_ID.fullmatch(id):
        return id
    return hashlib.blake2b(str(id).encode(errors="surrogatepass")).hexdigest()[:9]


_SHORT_ID = re.compile("[a-zA-Z0-9]{9}")


def _with_ids(turns: Sequence[_Turn], new_id: Callable[[object, int, object], str]) -> list[_Turn]:
    """Calls and their results get other ids."""
    ids: dict[object, str] = {}
    named: list[_Turn] = []
    for turn in turns:
        message = dict(turn.message)
        calls: list[Message] = []
        for call in cast("Sequence[Message]", message.get("tool_calls", ())):
            id = new_id(cast("Message", call["function"])["name"], len(ids), call.get("id"))
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
