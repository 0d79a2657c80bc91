"""Cut the demo's session out of two traces of opencode: ``make_demo_session.py MAIN_TRACE PRUNE_TRACE [OUT]``.

A trace holds one JSON record per line (plain or xz): requests with their exact body as ``body_raw``, and the scripted
responses with the assistant message as ``plan``. The first trace is a session of four turns with a title request and a
sub-agent; the second is a session in which the client clears old tool results. Both share client, project, system
prompt and tools, so the second starts from the first one's prefix, as a user's next session does.

Two things are done to make 600,000 characters fit a small model, and both are functions of the text alone, so that
what was equal stays equal and what differed still differs:

* whole steps are left out, as the same range of messages from every request of that session;
* long texts are cut, with a note of how many characters are gone.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).parent.parent / "src/kvstet/demo/session.jsonl"

SYSTEM_ENDS = (330, 1310)
"""Most characters kept at the start and at the end of a system prompt; opencode puts the date and the project last."""
MESSAGE_ENDS = (470, 470)
"""The same of any other message."""
TOOL_CHARS = 110
"""Most characters of a tool's description."""
PARAMETER_CHARS = 40
"""Most characters of a parameter's description."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One request to keep, and what the demo's table calls it."""

    seq: int
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to take from one trace; ``left_out`` are message indices of its main conversation."""

    left_out: frozenset[int]
    picks: tuple[Pick, ...]


MAIN = Recipe(
    # Step 1 (ls and the README), all of turn 2 (median), and two readings of the long log.
    left_out=frozenset([*range(2, 5), *range(15, 31), *range(32, 36)]),
    picks=(
        Pick(1, "title", "title request"),
        Pick(3, "first", "turn 1: find the bug"),
        Pick(4, "step", "pytest output added"),
        Pick(5, "step", "two files read"),
        Pick(6, "step", "bug fixed"),
        Pick(7, "step", "tests pass"),
        Pick(17, "turn", "turn 2: count the errors"),
        Pick(18, "subagent", "sub-agent starts"),
        Pick(20, "subagent", "sub-agent ends"),
        Pick(21, "step", "back in the main thread"),
    ),
)
PRUNE = Recipe(
    # Turns 2 to 4, in which the same files are read again.
    left_out=frozenset(range(8, 20)),
    picks=(
        Pick(2, "first", "a second session"),
        Pick(3, "step", "four long files read"),
        Pick(9, "edit", "three old results cleared"),
        Pick(10, "edit", "a fourth one cleared"),
    ),
)

SIDE_KINDS = {"title", "subagent"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("main_trace", type=Path)
    arguments.add_argument("prune_trace", type=Path)
    arguments.add_argument("out", type=Path, nargs="?", default=OUT)
    options = arguments.parse_args()
    lines = [header(), *take(options.main_trace, MAIN), *take(options.prune_trace, PRUNE)]
    text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
    options.out.write_text(text, encoding="utf-8")
    for line in lines[1:]:
        body = line["body"]
        print(f"{line['label']:28} {len(body['messages']):3} messages {len(json.dumps(body)):7} characters")


def header() -> dict[str, Any]:
    return {
        "client": "opencode 1.18.33",
        "recorded": "2026-11-21",
        "server": "a scripted one: the replies were written beforehand, the requests are the client's own",
        "cut": "whole steps left out; long texts and tool descriptions shortened, equal ones equally; $schema removed",
        "rights": "prompts and tool descriptions are excerpts of opencode (https://github.com/anomalyco/opencode, MIT)",
    }


def take(trace: Path, recipe: Recipe) -> Iterator[dict[str, Any]]:
    requests, replies = read(trace)
    for pick in recipe.picks:
        body = requests[pick.seq]
        left_out = frozenset[int]() if pick.kind in SIDE_KINDS else recipe.left_out
        yield {
            "label": pick.label,
            "kind": pick.kind,
            "body": cut_body(body, left_out),
            "recorded_reply": reply_message(replies[pick.seq]),
        }


def read(trace: Path) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Request bodies and scripted replies, by sequence number."""
    requests: dict[int, dict[str, Any]] = {}
    replies: dict[int, dict[str, Any]] = {}
    opener = lzma.open if trace.suffix == ".xz" else open
    with opener(trace, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record["dir"] == "request":
                requests[record["seq"]] = json.loads(record["body_raw"])
            elif record["dir"] == "response":
                replies[record["seq"]] = record["plan"]
    return requests, replies


def cut_body(body: dict[str, Any], left_out: frozenset[int]) -> dict[str, Any]:
    messages = [cut_message(message) for index, message in enumerate(body["messages"]) if index not in left_out]
    cut = body | {"messages": messages}
    if "tools" in body:
        cut["tools"] = [cut_tool(tool) for tool in body["tools"]]
    return cut


def cut_message(message: dict[str, Any]) -> dict[str, Any]:
    ends = SYSTEM_ENDS if message["role"] == "system" else MESSAGE_ENDS
    return message | {"content": cut_text(message["content"], *ends)}


def cut_text(text: str, head_chars: int, tail_chars: int) -> str:
    """Both ends of a long text, in whole lines where there are any, and a note between them."""
    if len(text) <= head_chars + tail_chars:
        return text
    head = text[:head_chars]
    tail = text[-tail_chars:]
    head = head[: head.rfind("\n") + 1] or head
    tail = tail[tail.find("\n") + 1 :]
    return f"{head}[{len(text) - len(head) - len(tail)} characters cut]\n{tail}"


def cut_tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    cut = function | {
        "description": first_words(function["description"], TOOL_CHARS),
        "parameters": cut_schema(function["parameters"]),
    }
    return tool | {"function": cut}


def cut_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [cut_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: first_words(value, PARAMETER_CHARS)
        if key == "description" and isinstance(value, str)
        else cut_schema(value)
        for key, value in schema.items()
        if key != "$schema"
    }


def first_words(text: str, limit: int) -> str:
    """The first line, or as many of its words as fit."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= limit else line[:limit].rpartition(" ")[0] + " ..."


def reply_message(plan: dict[str, Any]) -> dict[str, Any]:
    """The scripted reply as an assistant message, its arguments in the bytes that were streamed."""
    message: dict[str, Any] = {"role": "assistant", "content": plan.get("text", "")}
    if plan.get("reasoning"):
        message["reasoning_content"] = plan["reasoning"]
    if plan.get("calls"):
        message["tool_calls"] = [
            {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["args_raw"]}}
            for call in plan["calls"]
        ]
    return message


if __name__ == "__main__":
    main()
