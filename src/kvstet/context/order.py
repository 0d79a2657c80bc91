"""Tools in the order in which they were first sent; arguments as they were first written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from kvstet.context.memory import Recollection, digest
from kvstet.context.message import Message, arguments_of, calls_of

Tool = dict[str, Any]

_ORDER, _ARGUMENTS = "order", "arguments"


def ordered(tools: Sequence[Tool], recollection: Recollection) -> list[Tool]:
    """The same tools. Of those that were sent before in this conversation, or together by this owner, in that order;
    others behind them, as they are."""
    digests = [digest(tool) for tool in tools]
    together = digest(sorted(part.hex() for part in digests))
    order = cast("tuple[bytes, ...] | None", recollection.of_all.get(_ORDER, together))
    if order is None:
        order = _continued(tools, digests, recollection)
        recollection.of_all.keep(_ORDER, together, order)
    recollection.keep(_ORDER, b"", tuple(name_of(tools[digests.index(part)]) for part in order))
    places = {part: place for place, part in enumerate(order)}
    ranked = sorted(zip(digests, tools, strict=True), key=lambda pair: places[pair[0]])
    return [tool for _, tool in ranked]


def _continued(tools: Sequence[Tool], digests: Sequence[bytes], recollection: Recollection) -> tuple[bytes, ...]:
    """The conversation's order, if the tools are others by now."""
    names = cast("tuple[str, ...]", recollection.get(_ORDER) or ())
    places = {name: place for place, name in enumerate(names)}
    ranked = sorted(zip(digests, tools, strict=True), key=lambda pair: places.get(name_of(pair[1]), len(places)))
    return tuple(dict.fromkeys(part for part, _ in ranked))


def name_of(tool: Tool) -> str:
    """A tool's name, in whichever dialect it is written."""
    function: object = tool.get("function")
    fields = cast("Mapping[str, object]", function) if isinstance(function, Mapping) else tool
    return str(fields.get("name", ""))


def as_first_written(message: Message, meaning: bytes, recollection: Recollection) -> Message:
    """The message, whose calls have the arguments that it had when this meaning was first sent.

    It is the same object where they would be printed the same.
    """
    written = [function.get("arguments") for function in calls_of(message) or ()]
    first = cast("list[object] | None", recollection.get(_ARGUMENTS, meaning))
    if first is None:
        recollection.keep(_ARGUMENTS, meaning, written, len(str(written)))
        return message
    if list(map(_printed, first)) == list(map(_printed, written)):
        return message
    pairs = zip(message["tool_calls"], first, strict=True)
    calls = [{**call, "function": {**call["function"], "arguments": arguments}} for call, arguments in pairs]
    return {**message, "tool_calls": calls}


def _printed(arguments: object) -> str:
    """As templates print them: the order of keys shows, white space does not."""
    return json.dumps(arguments_of({"arguments": arguments}))
