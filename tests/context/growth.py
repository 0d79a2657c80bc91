"""Conversations that only grow."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st
from tests.context.conversations import assistant, head, result, tool, user

MOMENTS = st.fixed_dictionaries(
    {
        "date": st.sampled_from(["2026-11-21", "2026-11-22"]),
        "time": st.sampled_from(["10:00:00", "10:01:00", "12:30:00"]),
        "git": st.sampled_from(["(clean)", " M a.py", " M a.py\n?? b.py"]),
        "billing": st.sampled_from(["abc", "xyz"]),
    }
)
NOTES = st.sampled_from(["", "\n<system-reminder>\nToday's date is 2026-11-22.\n</system-reminder>"])
OUTPUT = "something that a tool has said\n" * 20


@st.composite
def growing(draw: st.DrawFn) -> list[tuple[list[dict[str, Any]], list[Any]]]:
    """Requests of one conversation that only grows, at different moments, from a client that prunes and reorders."""
    requests: list[tuple[list[dict[str, Any]], list[Any]]] = []
    tools = [tool("a"), tool("b"), tool("c")]
    history: list[dict[str, Any]] = [user("Fix it." + draw(NOTES))]
    num_sent = 0
    for number in range(draw(st.integers(1, 5))):
        sent = [head(**draw(MOMENTS)), *map(copy.copy, history)]
        for message in sent[1 : 1 + num_sent]:
            if message["role"] == "tool" and draw(st.booleans()):
                message["content"] = "[Old tool result content cleared]"
            if message["role"] == "assistant" and draw(st.booleans()):
                call = message["tool_calls"][0]
                spelt = f'{{"n":{call["id"].removeprefix("call_")},"path":"."}}'
                message["tool_calls"] = [{**call, "function": {"name": "ls", "arguments": spelt}}]
            if message["role"] == "user" and draw(st.booleans()):
                message["content"] = message["content"].partition("\n")[0]
        requests.append((sent, draw(st.permutations(tools))))
        num_sent = len(history)
        history.append(assistant("Hm.", f'{{"path": ".", "n": {number}}}', id=f"call_{number}"))
        history.append(result(OUTPUT, id=f"call_{number}"))
        if draw(st.booleans()):
            history.append(user(f"And {number}?" + draw(NOTES)))
    return requests
