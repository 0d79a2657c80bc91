"""What varies in a prompt's head, in the text and at run time."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from tests.context.conversations import assistant, head, result, system, tool, user
from tests.context.recorded import Body, damaged, requests_of

from kvstet.context.arranging.lens import DialectName
from kvstet.context.static import ADVICE, MAX_CHARACTERS, MAX_CONVERSATIONS, Guard, Variation, lint
from kvstet.context.writing.toolset import deterministic
from kvstet.edits.volatile import VolatileKind

PROMPT = """\
You are an agent.
Be careful.
Today's date: 2026-11-22, and the time is now 10:00:00
Working directory: /home/dev/project
Tokens used: 1200
# Git status
On branch main
 M a.py

Request id: 0f3a-991c
"""


def test_each_line_that_will_vary_is_found_and_told_what_to_do_about():
    found = [(each.line, each.kind, each.quote) for each in lint(PROMPT)]
    lines = PROMPT.split("\n")
    assert found == [
        (3, "date", lines[2]),
        (3, "clock", lines[2]),
        (4, "working directory", lines[3]),
        (5, "counter", lines[4]),
        (7, "git status", lines[6]),
        (10, "request id", lines[9]),
    ]
    assert all(each.advice and each.tool is None for each in lint(PROMPT))


def test_there_is_advice_for_every_kind():
    assert {*get_args(VolatileKind), "tool order", "tool spelling", "tool name"} == ADVICE.keys()


def test_a_constant_prompt_is_clean():
    tools = deterministic([tool("read", "Read a file of 2026."), tool("bash")])
    assert lint("You are an agent.\nKeep to Python 3.11, and to RFC 2616 of 1999.", tools) == []
    assert lint("") == []


def test_a_long_line_is_quoted_around_what_varies():
    (found,) = lint("x" * 500 + " Today's date: 2026-11-22 " + "y" * 500)
    assert "2026-11-22" in found.quote and len(found.quote) < 170
    assert found.quote.startswith("…") and found.quote.endswith("…")


def test_tools_are_linted_in_every_dialect():
    plain = {"name": "b", "description": "Lists files.\nToday's date: 2026-11-22", "input_schema": {"type": "object"}}
    for tools in ([plain, {"name": "a"}], [{"type": "function", "function": plain}, tool("a")]):
        found = {each.kind: each for each in lint("", tools)}
        assert (found["date"].tool, found["date"].line, found["date"].quote) == ("b", 2, "Today's date: 2026-11-22")
        assert found["tool order"].quote == "b, a"


def test_tools_that_are_spelt_in_their_own_way_are_found():
    unsorted = {"function": {"description": "", "name": "a"}, "type": "function"}
    (found,) = lint("", [unsorted])
    assert (found.kind, found.tool, found.quote) == ("tool spelling", "a", "a")
    assert lint("", deterministic([unsorted])) == []


def test_two_tools_of_one_name_are_found():
    assert [(each.kind, each.tool) for each in lint("", [tool("a"), tool("a")])] == [("tool name", "a")]


def chat(*messages: Any, tools: Any = ()) -> Body:
    return {"messages": list(messages), "tools": list(tools)}


def varied(guard: Guard, *bodies: Body) -> list[Variation]:
    return [each for body in bodies for each in guard.check(body, "chat")]


def test_the_line_that_varied_is_told_between_which_calls():
    guard = Guard()
    question = user("Fix it.")
    assert varied(guard, chat(head(), question), chat(head(), question, assistant("Hm.", "{}"), result("x"))) == []
    (found,) = varied(guard, chat(head(date="2026-11-22"), question))
    assert (found.kind, found.calls, found.what) == ("line changed", (2, 3), "date")
    assert (found.before, found.after) == ("Today's date: 2026-11-21", "Today's date: 2026-11-22")
    assert found.line is not None and head()["content"].split("\n")[found.line - 1] == found.before
    assert str(found) == (
        f"Between calls 2 and 3: line changed, line {found.line} of the system prompt: "
        '"Today\'s date: 2026-11-21" -> "Today\'s date: 2026-11-22"'
    )


def test_lines_that_come_and_go_are_told_with_their_number():
    guard = Guard()
    first, second = "a\nb\nc\nd\ne\nf", "a\nc\nd\nnew\ne\nf"
    found = varied(guard, chat(system(first), user("Hi")), chat(system(second), user("Hi")))
    assert [(each.kind, each.line, each.before, each.after) for each in found] == [
        ("line removed", 2, "b", None),
        ("line added", 4, None, "new"),
    ]


def test_tools_that_change_are_told_by_name():
    def calls(*tools: Any) -> list[tuple[Any, ...]]:
        guard = Guard()
        found = varied(guard, *(chat(user("Hi"), tools=each) for each in tools))
        return [(each.kind, each.tool, each.calls) for each in found]

    a, b = tool("a", "One."), tool("b")
    assert calls([a], [a, b]) == [("tool added", "b", (1, 2))]
    assert calls([a, b], [a]) == [("tool removed", "b", (1, 2))]
    assert calls([a, b], [b, a]) == [("tools reordered", None, (1, 2))]
    assert calls([a], [tool("a", "Two.")]) == [("tool changed", "a", (1, 2))]
    assert calls([a], [{"function": a["function"], "type": "function"}]) == [("tool respelt", "a", (1, 2))]
    assert calls([a, b], [copy.deepcopy(a), b], [a, b]) == []


def test_the_line_of_a_description_that_varied_is_told():
    guard = Guard()
    long = "Runs a command.\n" + "It is careful.\n" * 50 + "Now: {}\nThe end."
    bodies = [chat(user("Hi"), tools=[tool("a", long.format(time))]) for time in ("10:00", "11:00")]
    (found,) = varied(guard, *bodies)
    assert (found.before, found.after) == ("Now: 10:00", "Now: 11:00")


def test_conversations_are_followed_apart_from_each_other():
    guard = Guard()
    one = chat(system("You are an agent.\nIn a."), user("Fix it."), tools=[tool("a")])
    other = chat(system("You are an agent.\nIn b."), user("Add a test."), tools=[tool("b")])
    assert varied(guard, one, other, one, other, copy.deepcopy(one)) == []
    assert repr(guard) == "Guard(5 calls, 2 conversations)"


def test_a_helper_that_looks_at_a_conversation_has_a_prompt_of_its_own():
    guard = Guard()
    found = [
        (recorded.number, each)
        for recorded in requests_of("qwen")
        for each in guard.check(recorded.body, recorded.dialect, call=recorded.number)
    ]
    assert {each.what for _, each in found} == {"git status"}
    assert {number for number, _ in found} == {7, 13}


@pytest.mark.parametrize(
    ("name", "what"), [("continue", {"git status"}), ("pi", set[str]()), ("claude-par", {"billing header"})]
)
def test_what_recorded_clients_varied_is_found(name: str, what: set[str]):
    guard = Guard()
    found = [each for recorded in requests_of(name) for each in guard.check(recorded.body, recorded.dialect)]
    assert {each.what for each in found if each.tool is None} == what


@settings(max_examples=40)
@given(damaged(), damaged())
def test_whatever_a_body_holds_the_guard_never_raises(one: tuple[DialectName, Body], other: tuple[DialectName, Body]):
    guard = Guard()
    for dialect, body in (one, other, one, other):
        before = repr(body)
        for each in guard.check(body, dialect):
            assert str(each)
        assert repr(body) == before
        lint(str(body)[:2_000], [body])


def test_what_is_nested_too_deeply_or_too_long_is_left_alone():
    value: Any = "x"
    for _ in range(5_000):
        value = [value]
    guard = Guard()
    assert guard.check({"messages": [], "tools": [{"name": "a", "x": value}]}, "chat") == []
    long = "x" * MAX_CHARACTERS
    assert varied(guard, *(chat(system(f"{long}\n{time}"), user("Hi")) for time in "ab")) == []
    assert repr(guard) == "Guard(0 calls, 0 conversations)"


def test_memory_is_bounded():
    guard = Guard()
    for number in range(3 * MAX_CONVERSATIONS):
        guard.check(chat(user(f"Task {number}")), "chat")
    assert repr(guard) == f"Guard({3 * MAX_CONVERSATIONS} calls, {MAX_CONVERSATIONS} conversations)"


def test_many_threads_are_followed():
    guard = Guard()

    def play(number: int) -> int:
        bodies = [chat(system(f"You are an agent.\n{number}\nTurn {turn}"), user(f"{number}")) for turn in range(20)]
        return len(varied(guard, *bodies))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(play, range(8))) == [19] * 8
