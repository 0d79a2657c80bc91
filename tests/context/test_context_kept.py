from __future__ import annotations

import pytest
from tests.context.conversations import assistant, follow, head, names, result, texts, user

from kvstet.context.equivalent.equivalence import Equivalence
from kvstet.context.equivalent.kept import is_shortened
from kvstet.context.memory import Memory

LONG = "\n".join(f"line {number}: something that a tool has said" for number in range(200))
NOTE = "[Old tool result content cleared]"

FIX = user("Fix it.")
CALL = assistant("", '{"path": "."}')


@pytest.mark.parametrize(
    "sent",
    [
        NOTE,
        "",
        "(output omitted to save context)",
        "[output was saved to /tmp/x]",
        LONG[:500],
        LONG[-500:],
        f"{LONG[:500]}\n... 7,000 characters truncated ...\n{LONG[-500:]}",
        f"{LONG[:500]}\u2026",
    ],
)
def test_what_was_cut_to_save_context_is_known(sent: str):
    assert is_shortened(LONG, sent)


@pytest.mark.parametrize(
    "sent",
    [
        LONG,
        LONG + "\nmore",
        "",
        LONG.replace("line 7: something that a tool has said\n", ""),
        LONG.replace("something", "***"),
        "[redacted]",
        "[secret removed]",
        "a.py",
        "The tests pass.",
    ],
)
def test_any_other_edit_is_meant(sent: str):
    assert not is_shortened("" if sent == "" else LONG, sent)


def pruned(equivalence: Equivalence, **options: object):
    return follow(equivalence, FIX, CALL, result(NOTE), assistant("Done."), user("Thanks."), **options)


def known() -> Equivalence:
    equivalence = Equivalence()
    follow(equivalence, FIX, CALL, result(LONG))
    return equivalence


def test_an_output_stays_as_it_was_first_sent():
    said = pruned(known())
    assert texts(said)[2] == LONG
    assert names(said) == [("tool-output", 2)]


@pytest.mark.parametrize(
    "messages",
    [
        (FIX, CALL, result(NOTE, id="call_2")),
        (user("Something else."), CALL, result(NOTE)),
        (FIX, assistant("", '{"path": ".."}'), result(NOTE)),
        (head(), FIX, CALL, result(NOTE)),
    ],
)
def test_it_comes_back_behind_what_it_was_sent_behind_only(messages: tuple[dict[str, object], ...]):
    assert follow(known(), *messages).messages == list(messages)


def test_nothing_comes_back_to_another_key():
    assert texts(pruned(known(), owner="other"))[2] == NOTE


def test_switched_off_it_stays_pruned():
    said = pruned(known(), without=["tool-output"])
    assert (texts(said)[2], names(said)) == (NOTE, [])


def test_an_output_that_has_really_changed_is_the_new_one():
    equivalence = known()
    follow(equivalence, FIX, CALL, result("a.py\n" * 100))
    assert texts(pruned(equivalence))[2] == "a.py\n" * 100


def test_what_is_given_up_stays_so():
    equivalence = known()
    messages = [FIX, CALL, result(LONG)]
    equivalence.give_up(messages, owner="")
    said = pruned(equivalence)
    assert texts(said)[2] == NOTE
    assert not said.keeps_reasoning
    assert follow(equivalence, user("Something else.")).keeps_reasoning


def test_what_is_forgotten_never_comes_back():
    equivalence = known()
    equivalence.forget([FIX, CALL, result(NOTE)], owner="")
    assert texts(pruned(equivalence))[2] == NOTE


def test_others_conversations_are_not_forgotten():
    equivalence = known()
    other = (user("Another."), CALL)
    follow(equivalence, *other, result(LONG))
    equivalence.forget([FIX], owner="")
    equivalence.forget([user("Another.")], owner="other")
    assert texts(follow(equivalence, *other, result(NOTE)))[2] == LONG


def test_where_the_beginning_was_changed_all_of_the_key_is_forgotten():
    memory = Memory()
    equivalence = Equivalence(memory)
    follow(equivalence, user("The password is xyzzy."), CALL, result(LONG))
    equivalence.forget([user("The password is gone.")], owner="")
    assert memory.num_bytes == 0


def test_a_draft_is_answered_alike_and_leaves_nothing():
    equivalence = known()
    before = repr(equivalence)
    draft = equivalence.draft()
    assert texts(pruned(draft))[2] == LONG
    draft.give_up([FIX], owner="")
    assert texts(pruned(draft))[2] == NOTE
    assert repr(equivalence) == before


def test_memory_is_bounded_and_what_is_not_used_goes_first():
    memory = Memory(100_000)
    equivalence = Equivalence(memory)
    for number in range(50):
        follow(equivalence, FIX, CALL, result(LONG))
        follow(equivalence, user(f"Task {number}"), CALL, result(LONG))
        assert memory.num_bytes <= 100_000
    assert texts(pruned(equivalence))[2] == LONG
    said = follow(equivalence, user("Task 0"), CALL, result(NOTE))
    assert texts(said)[2] == NOTE
