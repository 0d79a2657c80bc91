from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from kvstet.demo.session import RecordedRequest, load_session, parse_session

REQUESTS = load_session().requests
BY_LABEL = {request.label: request for request in REQUESTS}


def messages(label: str) -> list[dict[str, Any]]:
    return BY_LABEL[label].body["messages"]


def num_common(left: list[Any], right: list[Any]) -> int:
    """Leading items that two lists share."""
    return next((index for index, pair in enumerate(zip(left, right, strict=False)) if pair[0] != pair[1]), len(left))


def test_the_session_says_where_it_comes_from():
    provenance = load_session().provenance
    assert provenance.client == "opencode 1.18.33"
    assert "scripted" in provenance.server


def test_the_session_has_every_kind_of_request():
    kinds = [request.kind for request in REQUESTS]
    assert kinds[:6] == ["title", "first", "step", "step", "step", "step"]
    assert kinds[6:10] == ["turn", "subagent", "subagent", "step"]
    assert kinds[10:] == ["first", "step", "edit", "edit"]


def test_labels_are_unique_and_short_enough_for_a_table():
    assert len(BY_LABEL) == len(REQUESTS)
    assert max(len(label) for label in BY_LABEL) <= 28


@pytest.mark.parametrize("label", [r.label for r in REQUESTS if r.kind in {"step", "turn"}])
def test_a_step_only_appends_to_an_earlier_request(label: str):
    index = next(i for i, request in enumerate(REQUESTS) if request.label == label)
    mine = messages(label)
    assert any(messages(before.label) == mine[: len(messages(before.label))] for before in REQUESTS[:index])


def test_the_main_thread_goes_on_after_the_subagent_as_if_nothing_had_happened():
    before, after = messages("turn 2: count the errors"), messages("back in the main thread")
    assert after[: len(before)] == before
    assert after[len(before)]["tool_calls"][0]["function"]["name"] == "task"


def test_the_subagent_shares_the_system_prompt_but_not_the_tools():
    main, sub = BY_LABEL["turn 2: count the errors"].body, BY_LABEL["sub-agent starts"].body
    assert sub["messages"][0] == main["messages"][0]
    assert [tool for tool in main["tools"] if tool["function"]["name"] != "task"] == sub["tools"]


def test_the_title_request_has_a_system_prompt_of_its_own_and_no_tools():
    assert messages("title request")[0] != messages("turn 1: find the bug")[0]
    assert "tools" not in BY_LABEL["title request"].body


def test_a_second_session_starts_from_the_first_ones_system_prompt_and_tools():
    first, second = BY_LABEL["turn 1: find the bug"].body, BY_LABEL["a second session"].body
    assert second["tools"] == first["tools"]
    assert num_common(first["messages"], second["messages"]) == 1


@pytest.mark.parametrize(
    ("before", "after", "cleared"),
    [
        ("four long files read", "three old results cleared", [3, 4, 5]),
        ("three old results cleared", "a fourth one cleared", [6]),
    ],
)
def test_an_edit_clears_old_tool_results_and_leaves_the_rest(before: str, after: str, cleared: list[int]):
    pairs = list(zip(messages(before), messages(after), strict=False))
    assert [index for index, (was, now) in enumerate(pairs) if was != now] == cleared
    assert all(messages(after)[index]["content"] == "[Old tool result content cleared]" for index in cleared)


def calls(message: dict[str, Any]) -> list[tuple[str, str]]:
    return [(call["id"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]


def test_the_client_sends_arguments_back_in_other_bytes_with_the_same_meaning():
    request, following = BY_LABEL["two files read"], messages("bug fixed")
    [(sent_id, streamed)] = calls(request.recorded_reply)
    [(back_id, returned)] = calls(following[len(request.body["messages"])])
    assert sent_id == back_id
    assert streamed != returned
    assert json.loads(streamed) == json.loads(returned)


def test_equal_texts_were_cut_equally():
    by_call: dict[str, set[str]] = {}
    for request in REQUESTS[1:10]:
        for message in request.body["messages"]:
            if message["role"] == "tool":
                by_call.setdefault(message["tool_call_id"], set()).add(message["content"])
    assert all(len(contents) == 1 for contents in by_call.values())


def num_characters(request: RecordedRequest) -> int:
    return len(json.dumps([request.body["messages"], request.body.get("tools")], ensure_ascii=False))


def test_the_session_stays_small_enough_for_the_demos_model():
    # SmolLM2 makes a token of 3.3 of these characters, and has a context of 8,192.
    sizes = [num_characters(request) for request in REQUESTS]
    assert max(sizes) < 5_500 * 3.3
    assert sum(sizes) < 36_000 * 3.6


def test_a_line_that_is_no_request_is_refused():
    header, line, *_ = (load_session(), *REQUESTS)
    data = msgspec.json.encode(header.provenance) + b"\n" + msgspec.json.encode(line).replace(b'"title"', b'"gossip"')
    with pytest.raises(msgspec.ValidationError, match="gossip"):
        parse_session(data)
