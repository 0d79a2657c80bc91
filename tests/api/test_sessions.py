"""What is told of the latest requests (`kvstet.api.sessions`): in responses, in the log, and at /v1/kvstet/sessions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.harness import Site, reply, running

from kvstet.api.sessions import Sender, session_of
from kvstet.config import ApiKey
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.types import Reuse

PATH = "/v1/kvstet/sessions"
SYSTEM = {"role": "system", "content": "You are a coding agent. " * 20}
QUESTION = {"role": "user", "content": "PROMPTSECRET: which file holds the numbers?"}
ANSWER = {"role": "assistant", "content": "Hello."}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "OUTPUTSECRET " * 50}
CALL = {
    "role": "assistant",
    "content": "Looking.",
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "read", "arguments": "{}"}}],
}


@pytest.fixture
def fresh() -> Iterator[Site]:
    with running(ScriptedEngine(reply("Hello."))) as site:
        yield site


def ask(site: Site, *messages: dict[str, Any], known: int = 0, **fields: Any) -> dict[str, Any]:
    """The ``kvstet`` object of a chat's answer, of which the engine says that ``known`` tokens were known."""
    prompt = site.post("/apply-template", {"messages": messages}).json()["spans"][-1]["stop"]
    site.engine.script = reply("Hello.", reuse=Reuse(known, 0, 0, prompt - known, known))
    return site.post("/v1/chat/completions", {"messages": messages, **fields}).json()["kvstet"]


def start_of(site: Site, index: int, *messages: dict[str, Any]) -> int:
    return site.post("/apply-template", {"messages": messages}).json()["spans"][index]["start"]


def pruned(site: Site) -> dict[str, Any]:
    """A conversation whose tool result was taken away between two requests."""
    before = [SYSTEM, QUESTION, CALL, RESULT]
    ask(site, *before)
    after = [SYSTEM, QUESTION, CALL, {**RESULT, "content": ""}, ANSWER, {"role": "user", "content": "And now?"}]
    return ask(site, *after, known=start_of(site, 3, *after) + 5)


def test_a_response_says_what_was_changed_and_what_it_cost(fresh: Site):
    account = pruned(fresh)
    (edit,) = account["edits"]
    assert account["verdict"].startswith("Recomputed ")
    assert "the client removed the tool result in message 3 (tool); 0." in account["verdict"]
    assert (edit["kind"], edit["message"], edit["role"]) == ("result_pruned", 3, "tool")
    assert 0 < edit["num_tokens"] < account["computed"]
    assert 0 < edit["seconds"] < account["compute_seconds"]
    assert edit["sentence"] == "The client removed the tool result in message 3 (tool)."
    assert edit["advice"].startswith("Prune rarely")


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [QUESTION]}),
        ("/v1/messages", {"messages": [QUESTION], "max_tokens": 9, "model": "m"}),
        ("/v1/responses", {"input": QUESTION["content"]}),
        ("/api/chat", {"messages": [QUESTION]}),
    ],
)
def test_every_dialect_tells_the_edits(fresh: Site, path: str, fields: dict[str, Any], is_streamed: bool):
    text = fresh.post(path, {**fields, "stream": is_streamed}).text
    assert text.count('"edits":[{"kind":"new_conversation"') == 1
    (conversation,) = fresh.get(PATH).json()["data"]
    assert len(conversation["requests"]) == 1


def test_conversations_are_listed_with_their_requests(fresh: Site):
    pruned(fresh)
    ask(fresh, SYSTEM, {"role": "user", "content": "Something else."})
    newest, oldest = fresh.get(PATH).json()["data"]
    assert (newest["id"], oldest["id"], oldest["parent"], oldest["session"]) == (2, 1, None, None)
    assert [request["messages"] for request in oldest["requests"]] == [4, 6]
    first, second = oldest["requests"]
    assert (first["model"], first["reused"]) == ("tiny", 0)
    assert (second["generated"], second["fidelity"]) == (7, "exact")
    assert [edit["kind"] for edit in second["edits"]] == ["result_pruned"]
    assert first["time"] <= second["time"]


def test_no_text_of_a_prompt_is_told(fresh: Site, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    pruned(fresh)
    told = fresh.get(PATH).text + "".join(record.getMessage() for record in caplog.records)
    assert "Recomputed" in told
    assert "SECRET" not in told


def test_the_log_has_a_line_for_each_request(fresh: Site, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "kvstet.verdicts")
    pruned(fresh)
    lines = [record.getMessage() for record in caplog.records if record.name == "kvstet.verdicts"]
    assert len(lines) == 2
    assert "conversation 1: New conversation" in lines[0]
    assert "conversation 1: Recomputed " in lines[1]


def test_as_many_are_told_as_are_asked_for(fresh: Site):
    for number in range(3):
        ask(fresh, {"role": "user", "content": f"Question {number}"})
    assert len(fresh.get(f"{PATH}?limit=2").json()["data"]) == 2
    for limit in ("0", "x", "100000"):
        answer = fresh.get(f"{PATH}?limit={limit}")
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "limit")


def test_it_needs_a_key_where_there_are_keys():
    with running(ScriptedEngine(reply("Hello.")), api_keys=(ApiKey("ali", "sesame"),)) as site:
        assert site.get(PATH).status_code == 401
        assert site.get(PATH, **{"x-api-key": "sesame"}).json() == {"object": "list", "data": []}


def test_a_key_is_told_of_its_own_requests_only():
    keys = (ApiKey("ali", "sesame"), ApiKey("bo", "cumin"))
    with running(ScriptedEngine(reply("Hello.")), api_keys=keys) as site, site.http() as client:
        for secret in ("sesame", "cumin"):
            answer = client.post("/v1/chat/completions", json={"messages": [QUESTION]}, headers={"x-api-key": secret})
            assert [edit["kind"] for edit in answer.json()["kvstet"]["edits"]] == ["new_conversation"]
        (conversation,) = client.get(PATH, headers={"x-api-key": "cumin"}).json()["data"]
        assert [request["id"] for request in conversation["requests"]] == [answer.headers["x-request-id"]]


def test_bare_text_is_of_no_conversation(fresh: Site):
    account = fresh.post("/v1/completions", {"prompt": "Once upon a time"}).json()["kvstet"]
    assert account["edits"] == []
    assert fresh.get(PATH).json()["data"] == []


def test_a_request_that_wants_no_cache_is_not_blamed(fresh: Site):
    account = ask(fresh, SYSTEM, QUESTION, cache_prompt=False)
    assert "the request asked for no cache" in account["verdict"]


@pytest.mark.parametrize(
    ("headers", "sender"),
    [
        ([("x-claude-code-session-id", "abc")], Sender()),
        ([("session-id", "abc")], Sender(prompt_cache_key="other")),
        ([], Sender(prompt_cache_key="abc")),
        ([], Sender(metadata={"user_id": "abc"})),
        ([], Sender(metadata={"user_id": json.dumps({"device_id": "x", "session_id": "abc"})})),
    ],
)
def test_clients_say_their_session_in_several_ways(headers: list[tuple[str, str]], sender: Sender):
    assert session_of(headers, sender) == session_of([], Sender(prompt_cache_key="abc")) != "abc"


@pytest.mark.parametrize("sender", [Sender(), Sender(7, []), Sender("", {"user_id": 3}), Sender(None, {"user_id": ""})])
def test_without_one_there_is_no_session(sender: Sender):
    assert session_of([("accept", "*/*")], sender) is None
