"""How long it takes to find out what a request is and what was changed in it.

::

    python bench/explain.py                          a conversation of 100,000 tokens, and the recorded sessions
    python bench/explain.py --tokens 200000 --limit-ms 20

Told is CPU time, the best of several runs: whatever else the machine does only adds to it. *Reading* is to make a
snapshot of the request's messages and tools; *placing* to find the conversation that it goes on with among 64 others,
and to compare the two. The exit status is 1 where the latter takes longer than ``--limit-ms`` for the long
conversation.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from kvstet.cli.recordings import read_recording
from kvstet.edits.history import History
from kvstet.edits.snapshot import Snapshot, snapshot_of

TRACES = Path(__file__).parents[1] / "tests" / "data" / "traces"
CHARACTERS_PER_TOKEN = 4
RESULT_LINES = 60
NUM_OTHERS = 64
NUM_RUNS = 25

Messages = list[dict[str, Any]]


def conversation(num_tokens: int, name: str = "") -> Messages:
    """Steps of an agent: a call, and a result of a few thousand characters."""
    messages: Messages = [
        {"role": "system", "content": "You are a coding agent.\n" + "Be precise in all you do.\n" * 600}
    ]
    messages.append({"role": "user", "content": f"Find the bug{name}."})
    num_characters, step = len(messages[0]["content"]), 0
    while num_characters < num_tokens * CHARACTERS_PER_TOKEN:
        step += 1
        text = "\n".join(f"{name} line {line} of step {step}: value {step * line}" for line in range(RESULT_LINES))
        function = {"name": "read", "arguments": f'{{"path": "{step}.txt"}}'}
        calls = [{"id": f"call_{step}", "type": "function", "function": function}]
        messages.append({"role": "assistant", "content": "", "reasoning_content": f"Read {step}.", "tool_calls": calls})
        messages.append({"role": "tool", "tool_call_id": f"call_{step}", "content": text})
        num_characters += len(text)
    return messages


def appended(messages: Messages) -> None:
    messages.append({"role": "user", "content": "And now?"})


def system_changed(messages: Messages) -> None:
    messages[0]["content"] = messages[0]["content"].replace("agent.", "agent. Today is Sunday.")


def pruned(messages: Messages) -> None:
    for message in messages[3:-20:2]:
        message["content"] = "[cleared]"


def all_rewritten(messages: Messages) -> None:
    for message in messages[1:]:
        message["content"] += " (rewritten)"


def best_ms(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(NUM_RUNS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times) * 1000


def history_with(before: Snapshot, num_tokens: int) -> History:
    history = History()
    for number in range(NUM_OTHERS):
        history.note(snapshot_of(conversation(num_tokens // 50, f" number {number}")))
    history.note(before)
    return history


def measured(num_tokens: int) -> float:
    """Print a line per change; the longest time to place and compare, in milliseconds."""
    before = conversation(num_tokens)
    history, longest = history_with(snapshot_of(before), num_tokens), 0.0
    print(f"{num_tokens:,} tokens, {len(before)} messages: reading, placing and comparing, ms")
    for change in (appended, system_changed, pruned, all_rewritten):
        after = deepcopy(before)
        change(after)
        sent = snapshot_of(after)
        reading, placing = (
            best_ms(lambda after=after: snapshot_of(after)),
            best_ms(lambda sent=sent: history.peek(sent)),
        )
        kinds = sorted({edit.kind for edit in history.peek(sent).edits})
        print(f"  {change.__name__:15} {reading:6.2f} {placing:6.2f}   {', '.join(kinds) or 'no edit'}")
        longest = max(longest, placing)
    return longest


def measure_recordings() -> None:
    print("recorded sessions: requests, mean and longest ms to place one")
    for path in sorted(TRACES.glob("*.jsonl.xz")):
        if "requests" in path.name:
            continue
        history, times = History(), list[float]()
        for request in read_recording(path):
            start = time.process_time()
            place = history.note(request.snapshot)
            times.append((time.process_time() - start) * 1000)
            if request.reply is not None:
                history.reply(place.branch, request.reply)
        print(f"  {path.name.partition('.')[0]:18} {len(times):3} {sum(times) / len(times):6.2f} {max(times):6.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--limit-ms", type=float, default=10.0)
    options = parser.parse_args()
    longest = measured(options.tokens)
    measure_recordings()
    is_fast = longest <= options.limit_ms
    print(f"longest: {longest:.2f} ms, {'within' if is_fast else 'BEYOND'} {options.limit_ms:g} ms")
    return 0 if is_fast else 1


if __name__ == "__main__":
    sys.exit(main())
