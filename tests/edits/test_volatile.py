from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.api.traces import steps

from kvstet.edits.volatile import Volatile, reminders, volatile_spans


def found(text: str) -> list[tuple[str, str]]:
    return [(span.kind, text[span.start : span.stop]) for span in volatile_spans(text)]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("Today's date is 2026-11-21.", "date", "2026-11-21"),
        ("  Today's date: Sat Nov 21 2026", "date", "Sat Nov 21 2026"),
        ("Today's date is Saturday, November 21, 2026.", "date", "Saturday, November 21, 2026"),
        ("2. Date: 11/21/2026", "date", "11/21/2026"),
        ("<current_date>2026-11-21</current_date>", "date", "2026-11-21"),
        ("Current time: 2026-11-21T13:05:22Z", "clock", "2026-11-21T13:05:22Z"),
        ("The time is now 1:05 PM.", "clock", "1:05 PM"),
        ("Now: Sat Nov 21 13:05:22 UTC 2026", "clock", "Sat Nov 21 13:05:22 UTC 2026"),
        ("timestamp: 1763730322.125", "clock", "1763730322.125"),
        ("x-anthropic-billing-header: cc_version=2.1.330.bce; cc_entrypoint=cli;", "billing header", None),
        ("request_id: req_0a1b2c3d4e", "request id", "req_0a1b2c3d4e"),
        ('{"trace_id": "4bf92f3577b34da6"}', "request id", "4bf92f3577b34da6"),
        ("Token usage: 45,120/200,000; be brief", "counter", "45,120/200,000"),
        ("Turn 7 of 40", "counter", "7 of 40"),
        ("You have 12,000 tokens left.", "counter", "12,000"),
        ("Working directory: /home/dev/project", "working directory", "/home/dev/project"),
        ("<cwd>/home/dev/project</cwd>", "working directory", "/home/dev/project"),
        ("git: (clean)\ngit: 8aab42e Initial import\n", "git status", "git: (clean)\ngit: 8aab42e Initial import"),
        ('<context name="gitStatus">Working tree clean</context>', "git status", "Working tree clean"),
        ("gitStatus:\n M a.py\n?? b.py\n\nMore.", "git status", " M a.py\n?? b.py"),
    ],
)
def test_what_is_of_the_moment_is_known(text: str, kind: str, value: str | None):
    ((found_kind, found_value),) = found(text)
    assert found_kind == kind
    assert value is None or found_value == value


@pytest.mark.parametrize(
    "text",
    [
        "Released on 2024-06-01, and again on 2025-01-01.",
        "def mean(xs):\n    return sum(xs) / (len(xs) - 1)",
        "Run at most 40 commands; use a timeout of 120000 ms.",
        "request_id: unknown",
        "Never commit to git unless you are asked to.",
        "Look up the date in the calendar.",
    ],
)
def test_what_stays_is_left_alone(text: str):
    assert found(text) == []


def test_gits_paragraphs_go_together_and_end_where_others_begin():
    status = "Current branch: main\n\nStatus:\nM a.py\n\nRecent commits:\n8aab42e Initial import"
    text = f"<system-reminder>\n# gitStatus\n{status}\n\nThis is something else.\n</system-reminder>"
    assert found(text)[1] == ("git status", status)
    assert found(text)[0][0] == found(text)[2][0] == "reminder"


def test_the_rest_of_a_reminder_lies_around_what_is_known_of_it():
    text = "<system-reminder>\nToday's date is 2026-11-21.\nBe kind.\n</system-reminder>Hello"
    assert [kind for kind, _ in found(text)] == ["reminder", "date", "reminder"]
    (block,) = reminders(text)
    assert text[block.stop :] == "Hello"


def test_a_block_that_does_not_end_is_none():
    assert found("<system-reminder> and so on") == []
    assert reminders("<system-reminder> and so on") == ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key in ("text", "content"):
            yield from _texts(value.get(key))


def _heads(name: str) -> list[str]:
    """System prompts of a recorded session, in order."""
    heads: list[str] = []
    for step in steps(name):
        body = json.loads(step.body)
        system = [m for m in body.get("messages", []) if m.get("role") in ("system", "developer")]
        heads += ["\n".join(_texts(body.get("system") or [message["content"] for message in system[:1]]))]
    return [head for head in heads if head]


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("claude", {"billing header"}),
        ("continue", {"working directory", "date", "git status"}),
        ("opencode", {"working directory", "date", "memory file"}),
        ("cline", {"working directory", "date"}),
        ("aider", {"date"}),
        ("qwen", {"git status", "memory file", "date"}),
    ],
)
def test_recorded_prompts_hold_what_they_hold(name: str, kinds: set[str]):
    assert {span.kind for head in _heads(name) for span in volatile_spans(head)} == kinds


@pytest.mark.parametrize("name", ["qwen", "continue"])
def test_all_that_changes_in_recorded_system_prompts_is_known(name: str):
    """But for those of agents of another kind, which are much shorter or longer."""
    heads = _heads(name)
    first = heads[0]
    bare = {_without(head) for head in heads if abs(len(head) - len(first)) < 100}
    assert len(set(heads)) > 1
    assert bare == {_without(first)}


def _without(text: str) -> str:
    places = [0, *(place for span in volatile_spans(text) for place in (span.start, span.stop)), len(text)]
    return "|".join(text[start:stop] for start, stop in zip(places[::2], places[1::2], strict=True))


WORDS = st.sampled_from(
    [
        *("date: ", "2026-11-21", "10:15", "\n", "git status\n", "git: a\n", "<system-reminder>", "</system-reminder>"),
        *(
            "<cwd>",
            "</cwd>",
            "tokens: 5 ",
            "turn 3/4",
            "request_id: a1b2c3d4",
            "İ",
            "ß",
            " ",
            "now ",
            "Instructions from: ",
        ),
    ]
)


@given(st.lists(WORDS, max_size=40).map("".join))
@example("İ" * 3 + "date: 2026-11-21")
def test_spans_lie_in_order_without_overlap(text: str):
    spans = volatile_spans(text)
    places = [place for span in spans for place in (span.start, span.stop)]
    assert places == sorted(places)
    assert all(0 <= span.start < span.stop <= len(text) for span in spans)
    assert all(isinstance(span, Volatile) for span in reminders(text))


def test_a_long_prompt_takes_no_time():
    text = "\n".join(dict.fromkeys(_heads("qwen") + _heads("opencode") + _heads("claude")))
    text = (text * (200_000 // len(text) + 1))[:200_000]
    assert _seconds(text) < 0.05, "10 ms, on a machine that does nothing else"


@pytest.mark.parametrize(
    "line",
    [
        *("date 2026-11-21 ", "turn 5 of 20 tokens left: 7\n", "<system-reminder>", "git: a\n", "git status\n"),
        *("11:11:11 ", "Instructions from: ", "tokens: 1,1,1,1,1", "Monday Monday ", "x" * 50, "now at at at 10 "),
    ],
)
def test_time_is_linear_whatever_the_text(line: str):
    short, long = (_seconds((line * (size // len(line) + 1))[:size]) for size in (50_000, 400_000))
    assert long < 8 * 4 * max(short, 0.002)


def _seconds(text: str) -> float:
    def once() -> float:
        begin = time.perf_counter()
        volatile_spans(text)
        return time.perf_counter() - begin

    return min(once() for _ in range(5))
