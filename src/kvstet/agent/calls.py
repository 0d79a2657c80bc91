"""The calls of a reply, and those that nobody has answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from kvstet.context.message import Message
from kvstet.dialects.whole import Call, Reply


def identified(reply: Reply, step: int) -> Reply:
    """The reply with an id for each call that is its own: some servers give none, or the same one twice."""
    taken: set[str] = set()
    calls: list[Call] = []
    for index, call in enumerate(reply.calls):
        id = call.id if call.id and call.id not in taken else f"call_{step}_{index}"
        taken.add(id)
        calls.append(replace(call, id=id))
    return replace(reply, calls=tuple(calls))


def unanswered(messages: Sequence[Message]) -> list[Call]:
    """Calls of the latest reply that have no result yet."""
    place = next(
        (index for index in reversed(range(len(messages))) if messages[index].get("role") == "assistant"), None
    )
    if place is None:
        return []
    answered = {message.get("tool_call_id") for message in messages[place + 1 :]}
    calls = map(_call, cast("list[dict[str, Any]]", messages[place].get("tool_calls") or []))
    return [call for call in calls if call.id not in answered]


def _call(fields: dict[str, Any]) -> Call:
    function = fields["function"]
    return Call(str(fields["id"]), str(function["name"]), str(function["arguments"]))
