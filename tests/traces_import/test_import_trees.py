"""Older files, branches and other turns of sessions: real files, changed as their clients would have written them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.traces_import.real_sessions import CLAUDE, CODEX, PI, bodies, content, plans, sent, written

from kvstet.traces.format import Line
from kvstet.traces.importing.claude_code import UNKNOWN_PARTS
from kvstet.traces.importing.importers import Imported, import_file

Entry = dict[str, Any]


def entries(name: str) -> list[Entry]:
    return [json.loads(line) for line in content(name).splitlines()]


def read(path: Path, *given: Entry) -> tuple[Imported, list[Line]]:
    found = import_file(written(path / "session.jsonl", *given))
    return found, list(found)


def users(body: Entry) -> list[str]:
    """What the user said in a chat request."""
    return [said_by(message["content"]) for message in body["messages"] if message["role"] == "user"]


def said_by(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


# Claude Code


def without_reminders(body: Entry) -> list[tuple[str, list[Entry]]]:
    """What the transcript holds of a request of Claude Code."""
    said: list[tuple[str, list[Entry]]] = []
    for message in body["messages"]:
        if message["role"] != "system":
            blocks = message["content"]
            blocks = [{"type": "text", "text": blocks}] if isinstance(blocks, str) else blocks
            blocks = [{name: value for name, value in block.items() if name != "cache_control"} for block in blocks]
            said.append((message["role"], [each for each in blocks if not each.get("text", "").startswith("<system-")]))
    return said


@pytest.mark.parametrize(
    ("which", "places"),
    [("session", [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]), ("compaction", [0, 1, 2, 3, 4, 7, 8, 11, 12])],
)
def test_a_transcript_alone_gives_the_conversation(which: str, places: list[int], tmp_path: Path):
    """As of versions that did not note their requests; only requests with a reply are known then."""
    transcript = [entry for entry in entries(CLAUDE.format(which)) if not entry["type"].startswith("api-request")]
    _, lines = read(tmp_path, *transcript)
    really = sent(CLAUDE.format(which))
    assert [without_reminders(body) for body in bodies(lines)] == [without_reminders(really[place]) for place in places]
    assert all("system" not in body and "tools" not in body for body in bodies(lines))
    assert None not in plans(lines)


def test_a_noted_request_of_which_parts_are_missing_is_taken_from_the_transcript(tmp_path: Path):
    given = entries(CLAUDE.format("session"))
    blob = next(
        entry for entry in given if entry["type"] == "api-request-blob" and entry["message"]["role"] == "system"
    )
    found, lines = read(tmp_path, *(entry for entry in given if entry is not blob))
    assert found.passed_over == {UNKNOWN_PARTS: 10}
    assert [without_reminders(body) for body in bodies(lines)] == [
        without_reminders(body) for place, body in enumerate(sent(CLAUDE.format("session"))) if place not in (8, 9)
    ]


def test_a_noted_request_may_keep_a_part_of_an_earlier_one(tmp_path: Path):
    given = entries(CLAUDE.format("session"))
    noted = [entry for entry in given if entry["type"] == "api-request"]
    noted[3]["keep"] = 2
    _, lines = read(tmp_path, *given)
    third, fourth = bodies(lines)[2:4]
    assert without_reminders(fourth)[:1] == without_reminders(third)[:1]
    assert without_reminders(fourth)[1:] == without_reminders(sent(CLAUDE.format("session"))[3])[-2:]


def test_a_rewound_session_of_claude_code_goes_on_from_where_it_was_rewound_to(tmp_path: Path):
    given = [entry for entry in entries(CLAUDE.format("session")) if not entry["type"].startswith("api-request")]
    replies = [entry for entry in given if entry["type"] == "assistant"]
    first_turn = next(entry for entry in given if entry["type"] == "user")
    end = next(entry for entry in replies if "**fixed**" in str(entry["message"]))
    again = {
        **first_turn,
        "uuid": "u-again",
        "parentUuid": end["uuid"],
        "message": {"role": "user", "content": "Anew."},
    }
    reply = {**replies[-1], "uuid": "a-again", "parentUuid": "u-again"}
    reply["message"] = {**reply["message"], "id": "msg_again", "content": [{"type": "text", "text": "Gladly."}]}
    _, lines = read(tmp_path, *given, again, reply)
    said = without_reminders(next(body for body in bodies(lines) if "Anew." in str(body)))
    assert len(said) == 11
    assert said[-1] == ("user", [{"type": "text", "text": "Anew."}])


def test_side_chains_in_the_same_file_are_conversations_of_their_own(tmp_path: Path):
    """So older versions did it."""

    def line(uuid: str, parent: str | None, role: str, text: str, **fields: Any) -> Entry:
        content = text if role == "user" else [{"type": "text", "text": text}]
        message = {"role": role, "content": content, "model": "m", "id": f"msg_{uuid}"}
        return {"type": role, "uuid": uuid, "parentUuid": parent, "sessionId": "s", "message": message, **fields}

    _, lines = read(
        tmp_path,
        line("1", None, "user", "Ask another."),
        line("2", None, "user", "What is it?", isSidechain=True),
        line("3", "2", "assistant", "Stock.", isSidechain=True),
        line("4", "1", "assistant", "It says: stock."),
        line("5", "4", "assistant", "API Error: 500", isApiErrorMessage=True),
    )
    assert [body["messages"] for body in bodies(lines)] == [
        [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}],
        [{"role": "user", "content": [{"type": "text", "text": "Ask another."}]}],
    ]
    assert [line.label for line in lines if hasattr(line, "label")] == ["sub-agent", ""]


# Codex


def test_without_its_history_a_compaction_keeps_what_the_user_said_and_the_summary(tmp_path: Path):
    given = entries(CODEX.format("compaction"))
    place = next(place for place, entry in enumerate(given) if entry["type"] == "compacted")
    given[place]["payload"] = {"message": given[place]["payload"]["message"]}
    _, lines = read(tmp_path, *given)
    after = bodies(lines)[7]["input"]
    assert [item["role"] for item in after] == ["developer", "user", "user", "user", "user", "user", "user"]
    assert after[-2]["content"][0]["text"].startswith("Another language model started")
    assert after[-1]["content"][0]["text"] == "Look at part 3 of data/events.log."


def test_turns_that_were_rolled_back_are_not_sent_again(tmp_path: Path):
    given = entries(CODEX.format("session"))
    last = max(
        place
        for place, entry in enumerate(given)
        if entry["type"] == "event_msg" and entry["payload"]["type"] == "task_started"
    )
    back = {"type": "event_msg", "payload": {"type": "thread_rolled_back", "num_turns": 1}}
    _, lines = read(tmp_path, *given[:last], back, *given[last:])
    really = sent(CODEX.format("session"))
    assert bodies(lines)[-1]["input"] == [*really[5]["input"][1:-1], really[-1]["input"][-1]]


def test_usage_of_older_files_comes_with_a_count_of_tokens(tmp_path: Path):
    given = [entry for entry in entries(CODEX.format("session")) if entry["type"] != "token_usage_record"]
    newer = list(import_file(written(tmp_path / "newer.jsonl", *entries(CODEX.format("session")))))
    _, older = read(tmp_path, *given)
    assert older == newer


# pi


def test_a_branch_of_pi_is_the_way_to_its_root(tmp_path: Path):
    given = entries(PI.format("session"))
    first_end = next(entry for entry in given if "**fixed**" in str(entry))
    asked = {**given[4], "id": "branch1", "parentId": first_end["id"]}
    asked["message"] = {"role": "user", "content": "Anew.", "timestamp": 1795376480000}
    summary = {
        "type": "branch_summary",
        "id": "branch0",
        "parentId": first_end["id"],
        "summary": "S",
        "fromId": given[-1]["id"],
    }
    reply = {**given[-1], "id": "branch2", "parentId": "branch1"}
    _, lines = read(tmp_path, *given, summary, {**asked, "parentId": "branch0"}, reply)
    *others, told = users(bodies(lines)[-1])
    assert told == "Anew."
    assert others[-1].endswith("<summary>\nS</summary>")
    assert "Good. Now write down" not in str(bodies(lines)[-1])


def first_result(body: Entry) -> str:
    return next(message["content"] for message in body["messages"] if message["role"] == "tool")


def test_an_edit_of_the_context_changes_or_leaves_out_what_is_sent(tmp_path: Path):
    *given, last = entries(PI.format("session"))
    results = [entry for entry in given if entry.get("message", {}).get("role") == "toolResult"]
    edits = [
        {
            "type": "context_edit",
            "id": "e1",
            "parentId": last["parentId"],
            "targetId": results[0]["id"],
            "replacement": "[cut]",
        },
        {"type": "context_edit", "id": "e2", "parentId": "e1", "targetId": given[4]["id"], "replacement": None},
    ]
    _, lines = read(tmp_path, *given, *edits, {**last, "parentId": "e2"})
    before, after = bodies(lines)[-2], bodies(lines)[-1]
    assert "The test suite in this repo fails." in str(before)
    assert "The test suite in this repo fails." not in str(after)
    assert first_result(after) == "[cut]"
    assert first_result(before) == "mean of three: 3.0\n"


def test_the_first_version_of_pis_files_is_a_line(tmp_path: Path):
    given = entries(PI.format("session"))
    lines = [{name: value for name, value in entry.items() if name not in ("parentId", "id")} for entry in given]
    lines[0] = {**given[0], "version": 1}
    _, found = read(tmp_path, *lines)
    assert bodies(found) == bodies(import_file(written(tmp_path / "new.jsonl", *given)))


def test_commands_of_the_user_images_and_messages_of_extensions_are_sent(tmp_path: Path):
    given = entries(PI.format("session"))[:5]
    image = {"type": "image", "mimeType": "image/png", "data": "QUJD"}
    said: list[Entry] = [
        {"role": "bashExecution", "command": "make", "output": "no", "exitCode": 2},
        {"role": "bashExecution", "command": "secret", "output": "x", "excludeFromContext": True},
        {"role": "user", "content": [{"type": "text", "text": "See:"}, image]},
        {"role": "toolResult", "toolCallId": "c", "content": [{"type": "text", "text": "Shot."}, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "Broken o"}], "stopReason": "aborted"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}], "stopReason": "stop", "model": "m"},
    ]
    more = [
        {"type": "message", "id": f"m{n}", "parentId": f"m{n - 1}" if n else "x", "message": message}
        for n, message in enumerate(said)
    ]
    custom = {
        "type": "custom_message",
        "id": "x",
        "parentId": given[-1]["id"],
        "customType": "t",
        "content": "Injected.",
    }
    _, lines = read(tmp_path, *given, custom, *more)
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    assert bodies(lines)[-1]["messages"][2:] == [
        {"role": "user", "content": "Injected."},
        {"role": "user", "content": "Ran `make`\n```\nno\n```\n\nCommand exited with code 2"},
        {"role": "user", "content": [{"type": "text", "text": "See:"}, part]},
        {"role": "tool", "tool_call_id": "c", "content": "Shot."},
        {"role": "user", "content": [{"type": "text", "text": "Attached image(s) from tool result:"}, part]},
    ]
