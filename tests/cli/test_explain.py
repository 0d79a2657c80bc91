"""``kvstet explain``, of a server and of recorded sessions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.api.harness import reply, running
from tests.cli.harness import ended
from tests.edits.labels import TRACES

from kvstet.cli.recordings import read_recording, recorded_requests
from kvstet.config import ApiKey
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.errors import InvalidRequest
from kvstet.traces.reading import exchanges, lines_in


def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    return ended(capsys, monkeypatch, "explain", *arguments)


def test_a_recorded_session_is_explained(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    status, text = explain(capsys, monkeypatch, "--trace", str(TRACES / "opencode-prune.jsonl.xz"))
    assert status == 0
    assert "tokens are estimated from characters" in text
    assert "the client replaced 3 tool results by stubs, in messages 3-5." in text
    assert "compaction.prune = false" in text
    assert "7 other requests: nothing broke the prefix." in text


def test_all_requests_are_told_where_that_is_wanted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    _, text = explain(capsys, monkeypatch, "--all", "--trace", str(TRACES / "pi.jsonl.xz"))
    assert text.count("Appended: computed ") == 18
    assert "nothing broke" not in text


@pytest.mark.parametrize("name", ["claude", "codex", "pi"])
def test_recordings_are_read_in_every_dialect(name: str):
    requests = read_recording(TRACES / f"{name}.jsonl.xz")
    assert all(request.snapshot.tools and request.reply for request in requests)
    assert len(requests) >= 19


def test_bodies_alone_are_explained_without_replies():
    lines = [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"body": {"messages": [{"role": "user", "content": "Hi"}]}},
    ]
    data = [*(json.dumps(line).encode() for line in [*lines, {"header": 1}]), b"no JSON", b""]
    found = recorded_requests(exchanges(lines_in(data)))
    assert [(request.number, request.reply) for request in found] == [(1, None), (2, None)]


def test_what_holds_no_requests_is_said(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text('{"dir": "response"}\n')
    with pytest.raises(InvalidRequest, match="holds no request"):
        read_recording(tmp_path / "empty.jsonl")


def test_a_running_server_is_asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with running(ScriptedEngine(reply("Hello.")), api_keys=(ApiKey("ali", "sesame"),)) as site:
        with site.http(headers={"x-api-key": "sesame"}) as client:
            body = {"messages": [{"role": "user", "content": "Hi"}], "prompt_cache_key": "abc"}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        status, text = explain(capsys, monkeypatch, "--all", "--url", site.url, "--api-key", "sesame")
        assert status == 0
        assert "Conversation 1, session " in text and "1 request to tiny" in text
        status, text = explain(capsys, monkeypatch, "--url", site.url)
        assert status == 1 and "answers with 401" in text


def test_where_no_server_is_that_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    status, text = explain(capsys, monkeypatch, "--url", "http://127.0.0.1:9")
    assert status == 1 and "No kvstet server answers at http://127.0.0.1:9" in text
