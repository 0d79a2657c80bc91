"""What the model says in a session: for each of the user's turns a few steps, spelt in the client's own tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]
"""Name of a tool, and its arguments."""


@dataclass(frozen=True)
class Tools:
    """How a client's tools are called."""

    shell: Callable[[str], Call]
    """For a command."""
    read: Callable[[str], Call]
    """For the path of a file, absolute."""
    edit: Callable[[str, str, str], Call]
    """For the path of a file, absolute, what stands there, and what should."""


@dataclass(frozen=True)
class Say:
    """One reply."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()

    @property
    def plan(self) -> dict[str, Any]:
        """As in recorded sessions; see `tests.api.traces.reply_text`."""
        calls = [{"name": name, "args_raw": json.dumps(given, ensure_ascii=False)} for name, given in self.calls]
        return {"reasoning": self.reasoning, "text": self.text, "calls": calls}


@dataclass(frozen=True)
class Turn:
    """What the user says, and the replies until it is the user's turn again."""

    prompt: str
    steps: tuple[Say, ...]


SUMMARY = Say(
    "<summary>\n1. Primary request: find the bug in the `inventory` package, and look at data/events.log.\n"
    "2. Key facts: `mean()` divided by `len(xs) - 1`; fixed.\n3. Pending: go on with the log.\n</summary>"
)
ASIDE = Say("Fix the mean")
"""A title, a commit message."""

MEAN_WRONG, MEAN_RIGHT = "sum(xs) / (len(xs) - 1)", "sum(xs) / len(xs)"
CHECK = "python3 -c \"from inventory.stats import mean; print('mean of three:', mean([1, 2, 3]))\""
CHECKED_WRONG, CHECKED_RIGHT = "mean of three: 3.0", "mean of three: 2.0"
NOTE = 'na\u00efve "quotes" and \u65e5\u672c\u8a9e \\ done'


def main_session(tools: Tools, project: str, end: Callable[[Say], Say] = lambda say: say) -> list[Turn]:
    """Four turns: a bug is found and fixed, a file written, a long file read, a question answered without tools."""
    stats = f"{project}/inventory/stats.py"
    return [
        Turn(
            "The test suite in this repo fails. Find the bug, fix it, and run the tests again.",
            (
                Say(
                    "\n\nLet me look.\n\n", "The user wants `mean` fixed.\n\n1. Look.\n2. Fix.\n", (tools.shell(CHECK),)
                ),
                Say("", "3.0 is wrong.\n", (tools.read(stats), tools.shell("ls inventory"))),
                Say("Found it \u2014 fixing.", "There: `len(xs) - 1`.", (tools.edit(stats, MEAN_WRONG, MEAN_RIGHT),)),
                Say(calls=(tools.shell(CHECK),)),
                end(Say("`mean()` divided by `len(xs) - 1`; **fixed**. \u2705\n", "I can answer.")),
            ),
        ),
        Turn(
            "Good. Now write down what you did in NOTES.md.",
            (
                Say("Writing.", "", (tools.shell(f"cat > NOTES.md <<'EOT'\n{NOTE}\nEOT"), tools.shell("cat NOTES.md"))),
                end(Say("Done: it is in `NOTES.md`.")),
            ),
        ),
        Turn(
            "Next: read the first lines of data/events.log and tell me which component has the most ERROR lines.",
            (
                Say("", "A part is enough.", (tools.shell("head -n 60 data/events.log"),)),
                Say("", "", (tools.shell("grep -c ERROR data/events.log || true"),)),
                end(Say("`billing`, it seems.", "Counted.")),
            ),
        ),
        Turn("Thanks. Is there anything left to do?", (end(Say("No, *nothing* is left to do.", "Simple.")),)),
    ]


def long_session(tools: Tools, end: Callable[[Say], Say] = lambda say: say) -> list[Turn]:
    """Four turns that read a long file in parts, and a last one that asks a question."""
    turns = [
        Turn(
            f"Look at part {part} of data/events.log.",
            (
                Say(
                    "",
                    f"Part {part}.",
                    (tools.shell(f"sed -n '{100 * part + 1},{100 * part + 100}p' data/events.log"),),
                ),
                end(Say(f"Part {part} is dominated by `INFO` lines.", "Enough.")),
            ),
        )
        for part in range(4)
    ]
    return [*turns, Turn("What did you learn from all of it?", (end(Say("That most is well.")),))]


class Script:
    """Chooses the reply to each request of a session. Knows where the session is, so that retries are no trouble."""

    def __init__(self, turns: Sequence[Turn], is_main: Callable[[Sequence[Mapping[str, Any]], set[str]], bool]) -> None:
        self.turns = turns
        self._is_main = is_main
        self._turn = self._step = 0
        self.chosen: list[str] = []
        """``turn.step``, ``summary`` or ``aside``, for each reply."""

    @property
    def num_turns_done(self) -> int:
        return self._turn + (self._step >= len(self.turns[self._turn].steps))

    def reply(self, messages: Sequence[Mapping[str, Any]], tools: set[str]) -> Say:
        users = [str(message["content"]) for message in messages if message["role"] == "user"]
        if asks_for_summary(messages):
            return self._chosen("summary", SUMMARY)
        if not self._is_main(messages, tools):
            return self._chosen("aside", ASIDE)
        for number in range(len(self.turns) - 1, self._turn, -1):
            if any(self.turns[number].prompt in text for text in users):
                self._turn, self._step = number, 0
                break
        steps = self.turns[self._turn].steps
        say = steps[min(self._step, len(steps) - 1)]
        self._step += 1
        return self._chosen(f"{self._turn + 1}.{self._step}", say)

    def _chosen(self, what: str, say: Say) -> Say:
        self.chosen.append(what)
        return say


def asks_for_summary(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last thing said is a demand to sum the conversation up, rather than a turn of it."""
    last = messages[-1]
    system = str(messages[0]["content"]) if messages[0]["role"] in ("system", "developer") else ""
    words = re.compile(r"summar|compact|checkpoint|handoff", re.IGNORECASE)
    is_asked = last["role"] == "user" and len(str(last["content"])) > 400 and words.search(str(last["content"]))
    return bool(is_asked) or system[:300].lower().count("summar") > 0
