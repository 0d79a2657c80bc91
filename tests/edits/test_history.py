"""Which conversation a request goes on with (`kvstet.edits.history`)."""

from __future__ import annotations

from typing import Any

from tests.edits.samples import SYSTEM, TOOLS, Message, call, conversation, result, snap, user

from kvstet.edits.history import History, Place
from kvstet.edits.snapshot import Snapshot

TASK = "Count the lines of every file in the project and report them."


def note(history: History, snapshot: Snapshot, text: str = "", calls: list[tuple[str, str]] | None = None) -> Place:
    place = history.note(snapshot)
    if text or calls:
        history.reply(place.branch, snapshot.reply_of(text, "", calls or []))
    return place


def told(place: Place) -> list[str]:
    return [edit.kind + (f":{','.join(edit.what)}" if edit.what else "") for edit in place.edits]


def answered(*messages: Message, **more: Any) -> Snapshot:
    return snap([{"role": "system", "content": SYSTEM}, *messages], **more)


def test_a_conversation_keeps_its_number_while_it_grows():
    history = History()
    places = [note(history, snap(conversation(count))) for count in (1, 2, 3)]
    assert [place.conversation for place in places] == [1, 1, 1]
    assert [told(place) for place in places] == [["new_conversation"], [], []]


def test_two_conversations_with_the_same_head_are_two():
    history = History()
    note(history, answered(user("Find the bug.")), "Found it.")
    other = note(history, answered(user("Write the tests.")), "Written.")
    again = note(
        history, answered(user("Find the bug."), {"role": "assistant", "content": "Found it."}, user("Fix it."))
    )
    assert (other.conversation, told(other)) == (2, ["new_conversation"])
    assert (again.conversation, told(again)) == (1, [])


def test_the_clients_session_decides_between_conversations_that_look_the_same():
    history = History()
    for session in ("a", "b"):
        note(history, snap(conversation(), session=session), "Done.")
    assert note(history, snap([*conversation(), user("More.")], session="a")).conversation == 1


def test_a_side_request_of_the_same_session_is_not_its_conversation():
    history = History()
    note(history, snap(conversation(), session="a"))
    place = note(
        history, snap([{"role": "system", "content": "Say if this is safe."}, user("rm -rf /")], [], session="a")
    )
    assert (place.conversation, place.parent, told(place)) == (2, 1, ["side_request"])


def test_a_title_is_known_by_what_it_asks_for():
    place = note(
        History(),
        snap([{"role": "system", "content": "Generate a short title for this conversation."}, user("Hi")], []),
    )
    assert told(place) == ["side_request:title"]


def test_an_agent_with_tools_may_speak_of_titles():
    place = note(History(), snap([{"role": "system", "content": "You can generate a title for pages."}, user("Hi")]))
    assert told(place) == ["new_conversation"]


def test_a_sub_agent_is_known_by_its_task():
    history = History()
    note(history, snap(conversation()), "", [("task", f'{{"prompt": "{TASK}"}}')])
    note(history, snap([*conversation(), user("Meanwhile, go on.")]), "Yes.")
    place = note(history, answered(user(f"<reminder>Be brief.</reminder>\n{TASK}"), tools=TOOLS[:-1]))
    assert (place.parent, told(place)) == (1, ["sub_agent", "tools_removed:task"])


def test_sub_agents_that_start_together_share_their_head():
    history = History()
    note(
        history,
        snap(conversation()),
        "",
        [("task", f'{{"prompt": "{TASK} A"}}'), ("task", f'{{"prompt": "{TASK} B"}}')],
    )
    first, second = (note(history, answered(user(f"{TASK} {name}"), tools=TOOLS[:-1])) for name in "AB")
    assert told(first) == ["sub_agent", "tools_removed:task"]
    assert told(second) == ["sub_agent"]


def test_a_summary_that_is_asked_for_and_then_stands_for_the_conversation():
    history, summary = History(), "The numbers in part 3 are wrong, since the sum is taken twice there. " * 3
    note(history, snap(conversation()), "Part 4 is fine.")
    asked = snap(
        [{"role": "system", "content": "Summarize the conversation."}, user(f"User: {conversation()[1]['content']}")],
        [],
    )
    assert told(note(history, asked, f"<summary>{summary}</summary>")) == ["side_request:summary"]
    place = note(history, answered(user(f"This came before:\n{summary}"), user("Go on.")))
    assert (place.conversation, told(place)) == (1, ["compaction"])


def test_a_summary_of_the_conversation_by_itself():
    """As Claude Code does it: asked for at the end of the conversation, which is then told anew."""
    history, summary = History(), "The numbers in part 3 are wrong, since the sum is taken twice there. " * 3
    note(history, snap([*conversation(), user("Summarize.")]), f"<analysis>So.</analysis><summary>{summary}</summary>")
    assert told(note(history, answered(user(f"Continued from before:\n{summary}")))) == ["compaction"]


def test_what_was_edited_can_be_taken_back():
    history = History()
    note(history, snap(conversation()))
    pruned = conversation()
    pruned[3]["content"] = ""
    assert told(note(history, snap(pruned))) == ["result_pruned"]
    assert told(note(history, snap([*conversation(), user("And?")]))) == []


def test_a_retry_is_no_edit():
    history = History()
    note(history, snap(conversation()), "Found it.")
    assert told(note(history, snap(conversation()))) == []


def test_peeking_remembers_nothing():
    history = History()
    assert told(history.peek(snap(conversation()))) == ["new_conversation"]
    assert told(history.peek(snap(conversation(5)))) == ["new_conversation"]
    assert history.num_bytes == 0


def test_what_was_redacted_is_forgotten():
    history = History()
    note(history, snap(conversation(50)))
    redacted = conversation(50)
    redacted[3]["content"] = ""
    place = note(history, snap(redacted))
    assert told(place) == ["result_pruned"]
    history.forget_others(place)
    assert not any(item.text.startswith("1.0: ") for item, _ in history._items.values())


def test_messages_that_branches_share_are_kept_once():
    history = History()
    note(history, snap(conversation(50)))
    alone = history.num_bytes
    pruned = conversation(50)
    pruned[-1]["content"] = ""
    note(history, snap(pruned))
    assert history.num_bytes < 1.02 * alone


def test_the_longest_unused_conversations_are_forgotten_for_want_of_room():
    history = History(max_bytes=60_000)
    for number in range(50):
        note(history, answered(user(f"Question {number}"), call(number), result(number, 200)), "An answer.")
    assert history.num_bytes <= 60_000
    assert told(history.peek(answered(user("Question 49"), call(49), result(49, 200)))) == []
    assert told(history.peek(answered(user("Question 1"), call(1), result(1, 200)))) == ["new_conversation"]


def test_nothing_is_left_once_all_is_forgotten():
    history = History(max_branches=1)
    for number in range(20):
        note(history, snap([user(f"Question {number}")]), f"Answer {number}.")
    history.reply(1, snap([]).reply_of("Late.", "", []))
    assert history.num_bytes < 3000
    assert repr(history).startswith("History(1 branches, ")
