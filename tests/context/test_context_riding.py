"""Requests for a summary that ride on the conversation they ask about; and all others, which do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.context.conversations import assistant, result, system, tool, user
from tests.context.recorded import NAMES, Body, Recorded, requests_of, written

from kvstet.context.arranging.lens import DialectName, entries_of, lens_of
from kvstet.context.arranging.riding import Live, ridden


def played(name: str) -> Iterator[tuple[Recorded, Live | None, Body | None]]:
    """Each request of a session, the conversation before it that it may ride on, and what becomes of it."""
    conversations: dict[str, Live] = {}
    for recorded in requests_of(name):
        asked = lens_of(recorded.body, recorded.dialect)
        lives = [*reversed(conversations.values())]
        found = ridden(asked, lives)
        yield recorded, conversations.get("main"), found
        if found is None:
            kind = recorded.kind.partition(" ")[0]
            conversations.pop(kind, None)
            conversations[kind] = Live(asked, recorded.body)


def test_the_summary_requests_of_opencode_ride():
    rode = [(recorded, live, found) for recorded, live, found in played("opencode-compact") if found is not None]
    assert [recorded.number for recorded, _, _ in rode] == [8, 15, 22, 29, 36]
    for recorded, live, found in rode:
        assert live is not None and found is not None
        num_live = len(live.arranged["messages"])
        assert written(found["messages"][:num_live]) == written(live.arranged["messages"])
        assert written(found["tools"]) == written(live.arranged["tools"])
        (asking,) = found["messages"][num_live:]
        text = asking["content"]
        head, question = (message["content"] for message in recorded.body["messages"])
        before, _, rest = question.partition("<conversation>\n")
        _, _, after = rest.partition("</conversation>\n")
        assert head.strip() in text and before.strip() in text and after.strip() in text, "the instructions survive"
        assert "[Assistant]" not in text and "[Tool result]" not in text and "[User]" not in text
        assert len(text) < len(head) + len(before) + len(after) + 200, "the transcript does not"
        assert text.endswith("Answer with text only: call no tools.")
        assert {key: found[key] for key in found if key not in ("messages", "tools")} == {
            key: value for key, value in recorded.body.items() if key != "messages"
        }


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_requests_sub_agents_and_helpers_with_tools_never_ride(name: str):
    for recorded, _, found in played(name):
        if found is not None:
            assert recorded.kind == "compaction", (recorded.number, recorded.kind)


def conversation(dialect: DialectName) -> Body:
    """Two turns with a call, in each dialect."""
    texts = ("Fix the failing test, please.", "I will look at the files.", "found them", "It is fixed by now.")
    if dialect == "chat":
        call = assistant(texts[1], "{}")
        messages = [user(texts[0]), call, result(texts[2]), assistant(texts[3]), user("Thank you very much.")]
        return {"messages": [system("You are an agent."), *messages], "tools": [tool("ls"), tool("rm")]}
    if dialect == "messages":
        blocks = [
            ("user", {"type": "text", "text": texts[0]}),
            ("assistant", {"type": "tool_use", "id": "c", "name": "ls", "input": {}}),
            ("user", {"type": "tool_result", "tool_use_id": "c", "content": texts[2]}),
            ("assistant", {"type": "text", "text": texts[3]}),
        ]
        messages = [{"role": role, "content": [block]} for role, block in blocks]
        return {
            "system": "You are an agent.",
            "messages": messages,
            "tools": [{"name": "ls", "input_schema": {}}, {"name": "rm", "input_schema": {}}],
            "thinking": {"type": "enabled", "budget_tokens": 4_000},
            "max_tokens": 8_000,
        }
    items: list[Any] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": texts[0]}]},
        {"type": "function_call", "name": "ls", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": texts[2]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": texts[3]}]},
    ]
    return {"instructions": "You are an agent.", "input": items, "tools": [{"type": "function", "name": "ls"}]}


DIALECTS: list[DialectName] = ["chat", "messages", "responses"]


def asking(dialect: DialectName, rest: list[Any]) -> Body:
    """The same history, by other instructions, with what follows."""
    body = conversation(dialect)
    field = "input" if dialect == "responses" else "messages"
    entries = [*body[field], *rest]
    if dialect == "chat":
        entries[0] = system("Summarise what you see.")
    fields = {
        "chat": {},
        "messages": {"system": "Summarise what you see."},
        "responses": {"instructions": "Summarise."},
    }
    return {"model": "m", "max_tokens": 1_000, **fields[dialect], field: entries}


def ride(dialect: DialectName, asked: Body) -> Body | None:
    live = lens_of(conversation(dialect), dialect)
    before = written([asked, live.body])
    found = ridden(lens_of(asked, dialect), [Live(live, live.body)])
    assert written([asked, live.body]) == before
    return found


def said(entry: Any) -> str:
    content = entry.get("content", entry.get("output", ""))
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_question_behind_the_history_rides_in_every_dialect(dialect: DialectName):
    found = ride(dialect, asking(dialect, [user("Summarise.")]))
    assert found is not None
    live = entries_of(conversation(dialect), dialect)
    entries = entries_of(found, dialect)
    assert entries[: len(live)] == live
    assert [said(entry)[:9] for entry in entries[len(live) :]] == ["Summarise", "Summarise"]
    assert said(entries[-2]).endswith("call no tools.") and said(entries[-1]) == "Summarise."
    assert found["tools"] == conversation(dialect)["tools"]


def test_what_follows_a_question_keeps_its_place():
    """Somebody who asks again: what went out before stays as it was."""
    steps = [user("Which facts are worth keeping?"), assistant("Two."), user("Which?")]
    first = ride("chat", asking("chat", steps[:1]))
    then = ride("chat", asking("chat", steps))
    assert first is not None and then is not None
    assert written(then["messages"])[: len(written(first["messages"])) - 1] == written(first["messages"])[:-1]
    assert [message["role"] for message in then["messages"][-4:]] == ["user", "user", "assistant", "user"]


def test_where_a_reply_ends_the_request_the_instructions_end_it():
    found = ride("chat", asking("chat", [assistant("Done.")]))
    assert found is not None
    assert [said(message)[:9] for message in found["messages"][-2:]] == ["Done.", "Summarise"]


def test_thinking_leaves_room_for_the_answer():
    found = ride("messages", asking("messages", [user("Summarise.")]))
    assert found is not None
    assert found["thinking"] == {"type": "enabled", "budget_tokens": 4_000} and found["max_tokens"] == 5_000


TRANSCRIPT = (
    "Summarise this.\n\n<log>\n[Thought]: Hm, hm.\n[User]: Fix the failing test, please.\n"
    "[Assistant]: I will look at the files.\n[Assistant]: It is fixed by now.\n[User]: Thank you very much.\n</log>\n\n"
    "Be short."
)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (TRANSCRIPT, "Summarise this.\n\nBe short."),
        (TRANSCRIPT.replace("<log>", '<log of="today">'), "Summarise this.\n\nBe short."),
        (TRANSCRIPT.replace("<log>\n[Thought]: Hm, hm.\n", "").replace("</log>\n\n", "\n# Now\n"),
         "Summarise this.\n\n# Now\nBe short."),
        (TRANSCRIPT.replace("<log>\n[Thought]: Hm, hm.\n", "").replace("</log>\n", ""), "Summarise this.\n\nBe short."),
    ],
)  # fmt: skip
def test_of_a_transcript_only_what_stands_around_it_is_left(text: str, left: str):
    found = ride("chat", {"messages": [system("You sum up."), user(text)]})
    assert found is not None
    assert found["messages"][:-1] == conversation("chat")["messages"]
    told = found["messages"][-1]["content"]
    assert told.startswith(f"You sum up.\n\n{left}\n\nThe conversation to work on")


def test_a_tag_within_what_was_said_last_does_not_end_the_transcript():
    body = conversation("chat")
    body["messages"][-1] = user("Thank you very much.\n<b>\nreally\n</b>\nand more")
    live = lens_of(body, "chat")
    text = TRANSCRIPT.replace("Thank you very much.", said(body["messages"][-1]))
    found = ridden(lens_of({"messages": [user(text)]}, "chat"), [Live(live, body)])
    assert found is not None and said(found["messages"][-1]).startswith("Summarise this.\n\nBe short.")


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [user("Fix the failing test, please.")]},
        {"messages": [user(TRANSCRIPT)], "tools": [tool("ls")]},
        {"messages": [user(TRANSCRIPT.replace("It is fixed", "It was broken").replace("I will", "You will"))]},
        {"messages": []},
        {**conversation("chat"), "tools": [tool("other")]},
        {"messages": conversation("chat")["messages"], "tools": []},
        conversation("chat"),
        {**conversation("chat"), "tools": [tool("ls")]},
        {**asking("chat", [user("Plan only.")]), "tools": [tool("ls")]},
    ],
    ids=["title", "tools", "partial", "empty", "other tools", "nothing more", "itself", "a tool went", "a mode"],
)
def test_what_asks_about_something_else_does_not_ride(asked: Body):
    assert ride("chat", asked) is None


def test_a_short_conversation_is_not_worth_it():
    short = {"messages": [system("S"), user("Fix the failing test, please."), assistant("It is fixed by now.")]}
    asked = lens_of({"messages": [*short["messages"][1:], user("Summarise.")]}, "chat")
    assert ridden(asked, [Live(lens_of({**short, "tools": [tool("ls")]}, "chat"), short)]) is None
