"""Sessions of opencode in their three stores, and trajectories."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.traces_import.real_sessions import EXPORT, MINI, OPENCODE, SWE, bodies, content, plans, responses, unpacked

from kvstet.errors import InvalidRequest
from kvstet.traces.importing.importers import import_file
from kvstet.traces.importing.opencode import messages_of, remaining
from kvstet.traces.importing.opencode_storage import Said

Entry = dict[str, Any]


def document(name: str) -> Entry:
    return json.loads(content(name))


def exported(path: Path, given: Entry) -> Path:
    path.write_text(json.dumps(given, indent=2))
    return path


# opencode


def test_the_folder_of_older_versions_says_what_the_export_says(tmp_path: Path):
    given = document(EXPORT)
    storage = tmp_path / "storage"
    id = given["info"]["id"]

    def put(folder: str, record: Entry) -> None:
        (storage / folder).mkdir(parents=True, exist_ok=True)
        (storage / folder / f"{record['id']}.json").write_text(json.dumps(record))

    put("session/project", given["info"])
    put("session/project", {**given["info"], "id": "ses_child", "parentID": id})
    for said in given["messages"]:
        put(f"message/{id}", said["info"])
        for part in said["parts"]:
            put(f"part/{said['info']['id']}", part)
    whole = list(import_file(exported(tmp_path / "export.json", given)))
    assert list(import_file(tmp_path)) == list(import_file(storage)) == whole


def test_of_several_sessions_one_has_to_be_named(tmp_path: Path):
    path = unpacked(OPENCODE.format("session"), tmp_path)
    with sqlite3.connect(path) as connection:
        (id,) = connection.execute("SELECT id FROM session WHERE parent_id IS NULL").fetchone()
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(session)")]
        copied = ", ".join({"id": "'ses_zzz'", "title": "'Another'"}.get(name, name) for name in columns)
        connection.execute(f"INSERT INTO session SELECT {copied} FROM session WHERE id = ?", (id,))
    connection.close()
    with pytest.raises(InvalidRequest, match=rf"{id} \(Fix the mean\), ses_zzz \(Another\)"):
        import_file(path)
    assert len(bodies(import_file(path, session=id))) == 12
    assert bodies(import_file(path, session="ses_zzz")) == []
    with pytest.raises(InvalidRequest, match="Say which session"):
        import_file(path, session="ses_nowhere")


def said(id: str, role: str, *parts: Entry, **info: Any) -> Said:
    return Said({"id": id, "role": role, **info}, parts)


def test_what_a_compaction_has_kept_stands_behind_its_summary():
    messages = [
        said("1", "user", {"type": "text", "text": "A"}),
        said("2", "assistant", {"type": "text", "text": "B"}, parentID="1", finish="stop"),
        said("3", "user", {"type": "text", "text": "C"}),
        said("4", "user", {"type": "compaction", "tail_start_id": "3"}),
        said("5", "assistant", {"type": "text", "text": "S"}, parentID="4", summary=True, finish="stop"),
        said("6", "user", {"type": "text", "text": "D"}),
    ]
    assert [message.id for message in remaining(messages)] == ["4", "5", "3", "6"]
    assert messages_of(messages[3], None) == [{"role": "user", "content": "What did we do so far?"}]
    # The summary is not there yet, or failed.
    assert remaining(messages[:4]) == messages[:4]
    failed = [*messages[:4], said("5", "assistant", parentID="4", summary=True, finish="stop", error={"name": "E"})]
    assert remaining(failed) == failed


def tool(**state: Any) -> Entry:
    return {"type": "tool", "tool": "bash", "callID": "c", "state": {"input": {"a": 1}, **state}}


@pytest.mark.parametrize(
    ("part", "at", "output"),
    [
        (tool(status="completed", output="Out."), None, "Out."),
        (tool(status="completed", output="Out.", time={"compacted": 5000}), 4.0, "Out."),
        (tool(status="completed", output="Out.", time={"compacted": 5000}), 6.0, "[Old tool result content cleared]"),
        (tool(status="error", error="Bad."), None, "Bad."),
        (tool(status="error", error="Bad.", metadata={"interrupted": True, "output": "Half"}), None, "Half"),
        (tool(status="running"), None, "[Tool execution was interrupted]"),
    ],
)
def test_a_tools_part_says_what_was_sent_of_it_then(part: Entry, at: float | None, output: str):
    call, result = messages_of(said("1", "assistant", part), at)
    assert call["tool_calls"][0]["function"] == {"name": "bash", "arguments": '{"a":1}'}
    assert result == {"role": "tool", "tool_call_id": "c", "content": output}


def test_replies_that_failed_do_not_come_back_unless_the_user_broke_them_off():
    text = {"type": "text", "text": "Half"}
    assert messages_of(said("1", "assistant", text, error={"name": "APIError"}), None) == []
    aborted = {"name": "MessageAbortedError"}
    assert messages_of(said("1", "assistant", text, error=aborted), None) == [{"role": "assistant", "content": "Half"}]
    assert messages_of(said("1", "assistant", {"type": "step-start"}, error=aborted), None) == []


def test_files_and_notes_of_the_user(tmp_path: Path):
    image = {"type": "file", "mime": "image/png", "url": "data:image/png;base64,QUJD", "filename": "a.png"}
    pdf = {"type": "file", "mime": "application/pdf", "url": "file:///a.pdf", "filename": "a.pdf"}
    ignored = {"type": "text", "text": "not sent", "ignored": True}
    (message,) = messages_of(said("1", "user", ignored, image, pdf, {"type": "subtask"}), None)
    assert [part.get("text") or part["image_url"]["url"] for part in message["content"]] == [
        "data:image/png;base64,QUJD",
        "[Attached application/pdf: a.pdf]",
        "The following tool was executed by the user",
    ]


def test_an_error_is_told_with_its_status(tmp_path: Path):
    given = document(EXPORT)
    given["messages"] = given["messages"][:2]
    reply = given["messages"][1]
    reply["parts"] = []
    reply["info"].pop("finish")
    reply["info"]["error"] = {"name": "APIError", "data": {"message": "Too many", "statusCode": 429}}
    (response,) = responses(import_file(exported(tmp_path / "export.json", given)))
    assert (response.status, response.error_raw, response.plan, response.usage) == (429, "Too many", None, None)


def test_several_rounds_in_one_message_are_several_requests(tmp_path: Path):
    """As some versions stored them."""
    given = document(EXPORT)
    first, second = given["messages"][1], given["messages"][2]
    first["parts"] += second["parts"]
    joined = {**given, "messages": [given["messages"][0], first, *given["messages"][3:]]}
    whole = list(import_file(exported(tmp_path / "whole.json", document(EXPORT))))
    found = list(import_file(exported(tmp_path / "export.json", joined)))
    assert bodies(found) == bodies(whole)
    assert plans(found) == plans(whole)


# mini-swe-agent


def test_a_reply_that_mini_could_not_understand_is_a_step_of_its_own(tmp_path: Path):
    given = document(MINI.format("session"))
    messages = given["messages"]
    answer = json.loads(json.dumps(messages[2]["extra"]["response"]))
    answer["choices"][0]["message"] = {"role": "assistant", "content": "No call."}
    messages.insert(2, {"role": "user", "content": "Call a tool!", "extra": {"response": answer}})
    found = list(import_file(exported(tmp_path / "t.traj.json", given)))
    assert [len(body["messages"]) for body in bodies(found)][:3] == [2, 3, 5]
    first, second, *_ = plans(found)
    assert first
    assert second
    assert (first.text, first.calls, second.text) == ("No call.", [], "\n\nLet me look.\n\n")


def test_what_mini_tells_itself_at_an_end_is_not_sent_when_it_goes_on(tmp_path: Path):
    given = document(MINI.format("session"))
    given["messages"].insert(4, {"role": "exit", "content": "", "extra": {"exit_status": "UserInterruption"}})
    found = import_file(exported(tmp_path / "t.traj.json", given))
    assert [len(body["messages"]) for body in bodies(found)] == [2, 4, 7, 9, 11, 14, 17, 20]


# SWE-agent


def newer_trajectory() -> Entry:
    """As SWE-agent 1.x writes it, by its ``types.py``; written by hand, since that version could not be run."""
    call = {"id": "c1", "type": "function", "function": {"name": "open", "arguments": '{"path": "a.py"}'}}
    system = {"role": "system", "content": "S", "agent": "main", "message_type": "system_prompt"}
    issue = {"role": "user", "content": "Fix.", "agent": "main", "message_type": "observation"}
    opens = {"role": "assistant", "content": "Open.", "tool_calls": [call], "agent": "main", "message_type": "action"}
    shown = {"role": "tool", "content": "code", "tool_call_ids": ["c1"], "agent": "main", "message_type": "observation"}
    elided = {**shown, "content": "Old environment output: (1 lines omitted)"}
    ends = {"role": "assistant", "content": "Done.", "tool_calls": None, "agent": "main", "message_type": "action"}
    config = {"agent": {"model": {"name": "gpt-x"}}}
    return {
        "trajectory": [
            {"action": "open a.py", "response": "Open.", "query": [system, issue]},
            {"action": "submit", "response": "Done.", "query": [system, issue, opens, elided]},
        ],
        "history": [system, issue, opens, shown, ends],
        "info": {"swe_agent_version": "1.1.0"},
        "replay_config": json.dumps(config),
    }


def test_newer_trajectories_hold_what_was_sent(tmp_path: Path):
    found = import_file(exported(tmp_path / "t.traj", newer_trajectory()))
    lines = list(found)
    assert (found.kind, getattr(lines[0], "by", "")) == ("swe-agent", "swe-agent 1.1.0")
    first, second = bodies(lines)
    assert first == {
        "model": "gpt-x",
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Fix."}],
    }
    assert second["messages"][3] == {
        "role": "tool",
        "content": "Old environment output: (1 lines omitted)",
        "tool_call_id": "c1",
    }
    assert second["messages"][2]["tool_calls"][0]["function"]["name"] == "open"
    said, done = plans(lines)
    assert said
    assert done
    assert [(call.name, call.args_raw, call.id) for call in said.calls] == [("open", '{"path": "a.py"}', "c1")]
    assert (done.text, done.calls) == ("Done.", [])


@pytest.mark.parametrize("query", [[], [{}], None])
def test_steps_without_a_query_are_taken_from_the_history(query: Any, tmp_path: Path):
    given = newer_trajectory()
    for step in given["trajectory"]:
        step["query"] = query
    second = bodies(import_file(exported(tmp_path / "t.traj", given)))[1]
    assert [message["content"] for message in second["messages"]] == ["S", "Fix.", "Open.", "code"]


def test_demonstrations_are_sent_and_are_no_steps(tmp_path: Path):
    given = document(SWE.format("session"))
    assert given["history"][1]["is_demo"] is True
    shown = [{"role": role, "content": "demo", "agent": "primary", "is_demo": True} for role in ("user", "assistant")]
    given["history"][1:1] = shown
    found = list(import_file(exported(tmp_path / "t.traj", given)))
    assert [len(body["messages"]) for body in bodies(found)] == [5, 7, 9, 11, 13]


def test_agents_that_are_called_like_commands_see_only_their_own(tmp_path: Path):
    given = newer_trajectory()
    given["trajectory"] = []
    other = [{"role": role, "content": "other", "agent": "helper"} for role in ("user", "assistant")]
    given["history"][3:3] = other
    lines = list(import_file(exported(tmp_path / "t.traj", given)))
    assert [[message["content"] for message in body["messages"]] for body in bodies(lines)] == [
        ["S", "Fix."],
        ["other"],
        ["S", "Fix.", "Open.", "code"],
    ]
    assert [line.label for line in lines if hasattr(line, "label")] == ["", "helper", ""]
