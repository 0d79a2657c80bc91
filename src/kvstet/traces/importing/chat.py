"""Chat messages as clients write them, from what their session files hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvstet.dialects.values import Object, obj, objects, text, to_json
from kvstet.traces.format import Call, Plan

Message = dict[str, Any]


def assistant_message(plan: Plan) -> Message:
    """What was said, as it goes into the next request."""
    message: Message = {"role": "assistant", "content": plan.text or None}
    if plan.reasoning:
        message["reasoning_content"] = plan.reasoning
    if plan.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.args_raw}}
            for call in plan.calls
        ]
    return message


def user_message(parts: Sequence[Object]) -> Message:
    """A single text stands alone."""
    if len(parts) == 1 and parts[0].get("type") == "text":
        return {"role": "user", "content": parts[0]["text"]}
    return {"role": "user", "content": list(parts)}


def tool_message(id: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": id, "content": content}


def image_part(mime: str, data: str) -> Message:
    """``data`` is in Base64."""
    return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{data}"}}


def text_part(value: str) -> Message:
    return {"type": "text", "text": value}


def plan_of(message: Object) -> Plan:
    """What an assistant's message says."""
    return Plan(
        reasoning=text(message.get("reasoning_content")) or text(message.get("reasoning")),
        text=text_of(message.get("content")),
        calls=[_call(call) for call in objects(message.get("tool_calls"))],
    )


def text_of(content: object) -> str:
    """A message's content, without what is no text."""
    return content if isinstance(content, str) else "".join(text(part.get("text")) for part in objects(content))


def arguments_of(value: object) -> str:
    """A call's arguments as JSON text; those that a file holds as text stay as they are."""
    return value if isinstance(value, str) else to_json({} if value is None else value)


def _call(call: Object) -> Call:
    function = obj(call.get("function"))
    arguments = arguments_of(function.get("arguments"))
    return Call(name=text(function.get("name")), args_raw=arguments, id=text(call.get("id")))
