"""Conversations for the tests of `kvstet.edits`, in OpenAI's form."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from kvstet.edits.snapshot import Snapshot, snapshot_of

Message = dict[str, Any]

SYSTEM = (
    "You are a coding agent.\nAnswer in few words.\nUse the tools.\n\n<env>\nWorking directory: /home/dev/project\n"
    "Today's date: 2026-11-21\n</env>\n"
    + "\n".join(f"Rule {number}: be precise in case {number}." for number in range(40))
)


def tool(name: str, description: str = "Does something.") -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {"path": {"type": "string"}, "all": {"type": "boolean", "default": False}},
        "required": ["path"],
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [tool("read"), tool("write"), tool("run"), tool("task")]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def call(number: int, path: str = "") -> Message:
    return {
        "role": "assistant",
        "content": f"Looking at part {number}.",
        "reasoning_content": f"I should read part {number} before I say anything.",
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": "read", "arguments": f'{{"path": "{path or number}.txt"}}'},
            }
        ],
    }


def result(number: int, num_lines: int = 30) -> Message:
    text = "\n".join(f"{number}.{line}: value {number * line}" for line in range(num_lines))
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": text}


def conversation(num_steps: int = 4) -> list[Message]:
    """A question and steps of a call and its result each."""
    steps = [message for number in range(1, num_steps + 1) for message in (call(number), result(number))]
    return deepcopy([{"role": "system", "content": SYSTEM}, user("Find the bug in the numbers, please."), *steps])


def snap(messages: object, tools: object = TOOLS, **more: Any) -> Snapshot:
    return snapshot_of(messages, tools, **more)
