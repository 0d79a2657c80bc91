"""What is imported from a client's own file is what the client sent, but for what docs/traces.md says is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.traces_import.real_sessions import (
    CLAUDE,
    CODEX,
    EXPORT,
    KINDS_BY_FILE,
    MINI,
    OPENCODE,
    PI,
    SWE,
    bodies,
    content,
    header,
    imported,
    plans,
    responses,
    sent,
)

from kvstet.providers.usage import usage_of
from kvstet.traces.format import Plan, Request
from kvstet.traces.importing.steps import UNSEEN_SUMMARY

LOST = {
    CLAUDE.format("session"): [],
    CLAUDE.format("compaction"): [6, 10],
    CODEX.format("session"): [],
    CODEX.format("compaction"): [],
    PI.format("session"): [],
    # Two requests that make one summary.
    PI.format("compaction"): [6, 7],
    # The first makes the session's title.
    OPENCODE.format("session"): [0],
    OPENCODE.format("compaction"): [0, 7],
    # And those of the other agent, which is a session of its own.
    EXPORT: [0, 9, 10],
    MINI.format("session"): [],
    # Refused, upon which the agent ended.
    MINI.format("compaction"): [5],
    # Answered in a way that was not understood, and asked again; neither is in the file.
    SWE.format("session"): [4],
}
"""Requests that are not in the file, by their places."""

BY = {
    "claude-code": "claude-code 2.1.330",
    "codex": "codex 0.169.0",
    "pi": "pi",
    "opencode": "opencode 1.18.33",
    "mini-swe-agent": "mini-swe-agent 2.4.6",
    "swe-agent": "swe-agent",
}


def told(name: str) -> list[dict[str, Any]]:
    """What was sent and is in the file."""
    return [
        body
        for place, body in enumerate(sent("opencode/session" if name == EXPORT else name))
        if place not in LOST[name]
    ]


@pytest.fixture(params=KINDS_BY_FILE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def plain(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a body, with what says the same written in one way."""
    return [plain_message(message) for message in body.get("messages", body.get("input"))]


def plain_message(message: dict[str, Any]) -> dict[str, Any]:
    fields = {name: value for name, value in message.items() if value not in (None, "", [])}
    if isinstance(fields.get("content"), str):
        fields["content"] = [{"type": "text", "text": fields["content"]}]
    if fields.get("role") == "developer" and "type" not in fields:
        fields["role"] = "system"
    if "tool_calls" in fields:
        fields["tool_calls"] = [plain_call(call) for call in fields["tool_calls"]]
    return fields


def plain_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}


def without_instructions(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Clients that do not store their system prompt; in Codex' sessions it is the first of the developer's."""
    return messages[1:] if messages[0].get("role") in ("system", "developer") else messages


def test_a_file_is_told_to_be_its_clients(name: str, tmp_path: Path):
    found, lines = imported(name, tmp_path)
    assert found.kind == KINDS_BY_FILE[name]
    assert header(lines).by == BY[found.kind]


def test_as_many_requests_are_imported_as_were_sent(name: str, tmp_path: Path):
    _, lines = imported(name, tmp_path)
    assert len(bodies(lines)) == len(told(name)) > 4


def test_requests_say_what_was_sent(name: str, tmp_path: Path):
    _, lines = imported(name, tmp_path)
    for number, (found, really) in enumerate(zip(bodies(lines), told(name), strict=True)):
        said, meant = plain(found), plain(really)
        if KINDS_BY_FILE[name] == "opencode" or "input" in really:
            meant = without_instructions(meant)
        if name == CODEX.format("compaction") and number == 6:
            # The words that ask for the summary are Codex' own.
            assert len(meant) == len(said) + 1
            meant = meant[:-1]
        assert said == meant
        if "model" in found and KINDS_BY_FILE[name] != "swe-agent":
            assert found["model"] == "coder"


@pytest.mark.parametrize("which", ["session", "compaction"])
def test_of_claude_code_everything_comes_back_but_two_fields(which: str, tmp_path: Path):
    _, lines = imported(CLAUDE.format(which), tmp_path)
    for found, really in zip(bodies(lines), told(CLAUDE.format(which)), strict=True):
        assert set(really) - set(found) == {"metadata", "stream"}
        assert {name: value for name, value in found.items() if name != "messages"} == {
            name: value for name, value in really.items() if name in found and name != "messages"
        }
        # Marks for the cache included.
        assert plain(found) == plain(really)
    beta = dict(next(line for line in lines if isinstance(line, Request)).headers)["anthropic-beta"]
    assert "claude-code-20250219" in beta.split(",")


@pytest.mark.parametrize("which", ["session", "compaction"])
def test_pi_stores_its_system_prompt_and_its_tools(which: str, tmp_path: Path):
    _, lines = imported(PI.format(which), tmp_path)
    for found, really in zip(bodies(lines), told(PI.format(which)), strict=True):
        assert found["messages"][0]["content"] == really["messages"][0]["content"]
        functions = [{**tool["function"]} for tool in really["tools"]]
        for function in functions:
            function.pop("strict", None)
        assert [tool["function"] for tool in found["tools"]] == functions


def test_codex_stores_its_instructions(tmp_path: Path):
    """All of them: it sends those that are about tools that it has."""
    _, lines = imported(CODEX.format("session"), tmp_path)
    (first, *_), (really, *_) = bodies(lines), sent(CODEX.format("session"))
    stored = set(first["instructions"].splitlines())
    assert len(stored) > 50
    assert set(really["input"][0]["content"][0]["text"].splitlines()) <= stored


def test_replies_are_what_the_next_request_brings_back(name: str, tmp_path: Path):
    _, lines = imported(name, tmp_path)
    really, num_seen = told(name), 0
    for plan, before, after in zip(plans(lines), really, really[1:], strict=False):
        earlier, later = plain(before), plain(after)
        if later[: len(earlier) - 1] != earlier[:-1] or len(later) <= len(earlier):
            # Another conversation, or a compacted one.
            continue
        spoken = [said_in(message) for message in later[len(earlier) :]]
        assert isinstance(plan, Plan)
        assert plan.text == "".join(text for text, _ in spoken)
        assert [(call.name, json.loads(call.args_raw)) for call in plan.calls] == [
            call for _, calls in spoken for call in calls
        ]
        num_seen += 1
    assert num_seen > 2


def said_in(message: dict[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """Text and calls of the model's own messages, of any dialect."""
    if message.get("type") == "function_call":
        return "", [(message["name"], json.loads(message["arguments"]))]
    if message.get("role") != "assistant":
        return "", []
    blocks = message.get("content", [])
    calls = [(block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"]
    calls += [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    return "".join(block.get("text", "") for block in blocks if block["type"] in ("text", "output_text")), calls


@pytest.mark.parametrize("name", [name for name, kind in KINDS_BY_FILE.items() if kind != "swe-agent"])
def test_reasoning_usage_and_times_are_kept_where_the_file_has_them(name: str, tmp_path: Path):
    _, lines = imported(name, tmp_path)
    answered = [response for response in responses(lines) if response.plan is not None]
    assert len(answered) > 4
    assert any(response.plan and response.plan.reasoning for response in answered)
    usages = [usage_of({"usage": response.usage}) for response in answered]
    assert all(usage.num_output_tokens for usage in usages)
    # What one request leaves in the cache, a later one reads.
    read = [usage.num_cache_read_tokens or 0 for usage in usages]
    assert sum(read) > 0.4 * sum(usage.num_input_tokens or 0 for usage in usages)
    assert all((usage.num_input_tokens or 0) > of_cache for usage, of_cache in zip(usages, read, strict=True))
    assert header(lines).wall == pytest.approx(1_795_376_600, abs=1000)
    times = [line.t for line in lines if not hasattr(line, "kvstet_trace")]
    assert times == sorted(times)
    assert 5 < times[-1] < 300


@pytest.mark.parametrize(
    ("name", "count"),
    [(CLAUDE.format("compaction"), 2), (PI.format("compaction"), 1), (OPENCODE.format("compaction"), 1)],
)
def test_requests_for_summaries_that_are_not_in_the_file_are_counted(name: str, count: int, tmp_path: Path):
    found, _ = imported(name, tmp_path)
    assert found.passed_over == {UNSEEN_SUMMARY: count}


def test_nothing_else_is_passed_over(name: str, tmp_path: Path):
    found, _ = imported(name, tmp_path)
    assert set(found.passed_over) <= {UNSEEN_SUMMARY}


def test_a_summary_of_codex_is_labelled(tmp_path: Path):
    _, lines = imported(CODEX.format("compaction"), tmp_path)
    labels = [response.kind for response in responses(lines)]
    assert labels == ["", "", "", "", "", "", "compaction", "", "", ""]


def test_sub_agents_stand_where_they_ran(tmp_path: Path):
    (tmp_path / "claude").mkdir()
    _, lines = imported(CLAUDE.format("session"), tmp_path / "claude")
    labels = [line.label for line in lines if isinstance(line, Request)]
    assert labels == ["sdk"] * 8 + ["agent:builtin:general-purpose"] * 2 + ["sdk"] * 2
    _, lines = imported(OPENCODE.format("session"), tmp_path)
    labels = [line.label for line in lines if isinstance(line, Request)]
    assert labels == [""] * 8 + ["sub-agent"] * 2 + [""] * 2


def test_a_refusal_is_a_response_without_a_reply(tmp_path: Path):
    _, lines = imported(PI.format("compaction"), tmp_path)
    (refused,) = [response for response in responses(lines) if response.error_raw is not None]
    assert (refused.status, refused.plan) == (400, None)
    assert "context length" in (refused.error_raw or "")


@pytest.mark.parametrize(("name", "places"), [(CLAUDE, [5, 8]), (OPENCODE, [5])])
def test_a_refusal_that_is_not_in_the_file_leaves_its_request_unanswered(name: str, places: list[int], tmp_path: Path):
    _, lines = imported(name.format("compaction"), tmp_path)
    assert [place for place, plan in enumerate(plans(lines)) if plan is None] == places


def test_the_files_name_no_machine(name: str):
    for word in (b"/root/", b"/opt/", b"/mnt/", b"/work/"):
        assert word not in content(name)
