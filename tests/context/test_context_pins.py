"""What is of the moment stays as it was, and what has changed is told at the end."""

from __future__ import annotations

from typing import Any

import pytest
from tests.context.conversations import assistant, follow, head, names, result, system, text_of, texts, user

from kvstet.context.equivalent.equivalence import Equivalence

FIX = user("Fix it.")
STEP = (assistant("Looking.", '{"path": "."}'), result("a.py"))
NEXT = (assistant("Reading.", '{"path": "a.py"}', id="call_2"), result("def f(): ...", id="call_2"))
THANKS = (assistant("Done."), user("Thanks."))


def opened(**now: str) -> Equivalence:
    """What was said to a first request."""
    equivalence = Equivalence()
    follow(equivalence, head(**now), FIX)
    return equivalence


def update(text: str) -> str:
    """What a message was told beside its own text."""
    _, _, told = text.partition("[Update]")
    return told.partition("above:\n")[2].removesuffix("\n</system-reminder>")


@pytest.mark.parametrize(
    ("now", "name", "told"),
    [
        ({"date": "2026-11-22"}, "date", "Today's date: 2026-11-22"),
        ({"git": " M a.py\n?? b.py"}, "git-status", "git status:  M a.py\n?? b.py"),
        ({"billing": "xyz"}, "billing-header", ""),
        ({"time": "10:02:00"}, "clock", ""),
        ({"time": "11:30:00"}, "clock", "The time is now 11:30:00"),
    ],
)
def test_the_first_value_stays_and_the_new_one_is_told_at_the_end(now: dict[str, str], name: str, told: str):
    said = follow(opened(), head(**now), FIX, *STEP)
    assert texts(said)[0] == text_of(head())
    assert update(texts(said)[-1]) == told
    assert texts(said)[1:-1] == ["Fix it.", "Looking."]
    assert names(said) == [(name, 0)] + [(name, 3)] * bool(told)


def test_nothing_is_told_twice_and_what_was_told_stays_where_it_was():
    equivalence = opened()
    told = follow(equivalence, head(date="2026-11-22"), FIX, *STEP)
    again = follow(equivalence, head(date="2026-11-22"), FIX, *STEP, *NEXT)
    assert texts(again)[: len(texts(told))] == texts(told)
    assert "[Update]" not in "".join(texts(again)[len(texts(told)) :])


def test_a_value_that_comes_back_is_told_again():
    equivalence = opened()
    follow(equivalence, head(git=" M a.py"), FIX, *STEP)
    said = follow(equivalence, head(), FIX, *STEP, *NEXT)
    assert update(texts(said)[-1]) == "git status: (clean)"
    assert update(texts(said)[3]) == "git status:  M a.py"


@pytest.mark.parametrize(
    ("minutes", "last", "is_told"), [(4, THANKS, False), (6, THANKS, True), (6, STEP, False), (61, STEP, True)]
)
def test_a_clock_is_told_to_the_user_after_minutes_and_to_tools_after_an_hour(minutes: int, last: Any, is_told: bool):
    said = follow(opened(), head(time=f"{10 + minutes // 60}:{minutes % 60:02}:00"), FIX, *last)
    assert ("[Update]" in texts(said)[-1]) == is_told


def test_a_clock_that_shows_another_day_is_told_at_once():
    equivalence = Equivalence()
    for day, is_told in ((21, False), (22, True)):
        said = follow(equivalence, system(f"Be good.\n{'x' * 99}\nNow: 2026-11-{day} 10:00\n"), FIX, *STEP)
        assert ("[Update]" in texts(said)[-1]) == is_told


def test_a_clock_that_was_not_told_goes_on_from_the_one_that_was():
    equivalence = opened()
    said = follow(equivalence, head(time="10:04:00", git=" M a.py"), FIX, *THANKS)
    assert update(texts(said)[-1]) == "git status:  M a.py"
    said = follow(equivalence, head(time="10:06:00", git=" M a.py"), FIX, *THANKS, *THANKS)
    assert update(texts(said)[-1]) == "The time is now 10:06:00"


def test_counts_are_told_at_turns_of_the_user_only():
    equivalence = Equivalence()

    def prompt(used: int) -> dict[str, Any]:
        return system(f"Be good.\nTokens used: {used}\n")

    assert "[Update]" not in texts(follow(equivalence, prompt(10), FIX))[-1]
    assert "[Update]" not in texts(follow(equivalence, prompt(20), FIX, *STEP))[-1]
    assert update(texts(follow(equivalence, prompt(30), FIX, *STEP, *THANKS))[-1]) == "Tokens used: 30"


def test_a_few_lines_that_no_pattern_knows_are_seen_to_change():
    rules = "\n".join(f"Rule {number}." for number in range(100))
    equivalence = Equivalence()
    follow(equivalence, system(f"Mode: build\n{rules}"), FIX)
    said = follow(equivalence, system(f"Mode: plan\n{rules}"), FIX, *STEP)
    assert texts(said)[0] == f"Mode: build\n{rules}"
    assert update(texts(said)[-1]) == "- Mode: build\n+ Mode: plan"
    assert names(said) == [("system-lines", 0), ("system-lines", 3)]


def test_a_system_prompt_that_is_another_stands_as_it_was_sent():
    equivalence = opened()
    other = system("You write titles.")
    assert follow(equivalence, other, FIX).messages == [other, FIX]


def test_a_conversation_of_another_user_message_begins_with_the_same_system_prompt():
    said = follow(opened(), head(date="2026-11-22"), user("Another task."))
    assert texts(said)[0] == text_of(head())
    assert update(texts(said)[1]) == "Today's date: 2026-11-22"


def test_another_tool_set_begins_anew():
    equivalence = opened()
    tool = {"type": "function", "function": {"name": "ls"}}
    said = follow(equivalence, head(date="2026-11-22"), FIX, tools=[tool])
    assert said.messages == [head(date="2026-11-22"), FIX]


def test_what_is_switched_off_stands_as_it_was_sent():
    said = follow(opened(), head(date="2026-11-22", billing="xyz"), FIX, without=["date"])
    assert text_of(said.messages[0]) == text_of(head(date="2026-11-22"))
    assert names(said) == [("billing-header", 0)]


def test_nothing_is_told_of_what_is_switched_off():
    equivalence = opened()
    follow(equivalence, head(date="2026-11-22"), FIX)
    sent = [head(), FIX]
    assert follow(equivalence, *sent).messages != sent
    assert follow(equivalence, *sent, without=["date"]).messages == sent


REMINDER = "<system-reminder>\nToday's date is 2026-11-{}.\n</system-reminder>\n"


def test_reminders_in_older_messages_stay_as_they_were():
    equivalence = Equivalence()
    follow(equivalence, user(REMINDER.format(21) + "Fix it."))
    said = follow(equivalence, user(REMINDER.format(22) + "Fix it."), *STEP)
    assert texts(said)[0] == REMINDER.format(21) + "Fix it."
    assert update(texts(said)[-1]) == "Today's date is 2026-11-22."


def test_a_reminder_that_moves_on_stays_where_it_was_too():
    equivalence = Equivalence()
    first = follow(equivalence, user("Fix it.\n\n<system-reminder>\nNo todos.\n</system-reminder>"))
    said = follow(equivalence, FIX, *STEP)
    assert texts(said)[0] == texts(first)[0]
    assert "[Update]" not in texts(said)[-1]
    assert names(said) == [("reminder", 0)]


def test_a_reminder_is_added_to_the_result_of_a_tool_and_taken_away_again():
    equivalence = Equivalence()
    reminder = "<system-reminder>\nMind the tests.\n</system-reminder>"
    follow(equivalence, FIX, STEP[0], result(f"a.py\n\n{reminder}"))
    said = follow(equivalence, FIX, *STEP, *NEXT)
    assert reminder in texts(said)[2]


def test_what_a_user_writes_is_never_pinned():
    equivalence = Equivalence()
    follow(equivalence, user("What happened on the date 2026-11-21?"))
    assert follow(equivalence, other := user("What happened on the date 2026-11-22?")).messages == [other]


def test_lists_of_parts_are_told_in_a_part_of_their_own():
    parts = [{"type": "text", "text": "Fix it."}]
    said = follow(opened(), head(date="2026-11-22"), {"role": "user", "content": parts})
    first, told = said.messages[1]["content"]
    assert (first, update(told["text"])) == (parts[0], "Today's date: 2026-11-22")


def test_a_retry_is_told_what_has_changed_meanwhile():
    equivalence = opened()
    said = follow(equivalence, head(git=" M a.py"), FIX)
    assert update(texts(said)[1]) == "git status:  M a.py"
    more = follow(equivalence, head(git=" M a.py\n M b.py"), FIX)
    assert texts(more)[1].startswith(texts(said)[1])


def test_a_long_line_is_told_in_part():
    equivalence = Equivalence()

    def prompt(date: str) -> dict[str, Any]:
        return system(f"{'Be good. ' * 60}Today's date: {date}. {'Be good. ' * 60}\n")

    follow(equivalence, prompt("2026-11-21"), FIX)
    told = update(texts(follow(equivalence, prompt("2026-12-24"), FIX, *STEP))[-1])
    assert "2026-12-24" in told
    assert len(told) < 200
