"""`kvstet replay`: options, what is printed, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.replay.replay_harness import DONE, PLAN, SECOND, SYSTEM, TASK, Peer, chat, kvstet_site, peer_site
from typer.testing import CliRunner

from kvstet.cli.main import app
from kvstet.errors import InvalidRequest, ServerGone, UnknownProvider
from kvstet.replay.playing import Player
from kvstet.replay.results import Replayed
from kvstet.traces.format import Plan, Request, Response


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two requests, and one that asks for no reply."""
    lines: list[Request | Response] = [
        Request(seq=1, t=0.0, path="/v1/chat/completions", body_raw=json.dumps(chat([SYSTEM, TASK]))),
        Response(seq=1, t=1.0, status=200, plan=PLAN, kind="first"),
        Request(seq=2, t=1.1, path="/v1/messages/count_tokens", body_raw="{}"),
        Request(seq=3, t=1.2, path="/v1/chat/completions", body_raw=json.dumps(chat(SECOND))),
        Response(seq=3, t=2.0, status=200, plan=DONE, kind="second"),
    ]
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    return path


def replay(trace: Path, *options: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["replay", str(trace), "--gap", "none", *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result.output


def test_a_line_for_each_request_and_the_servers_side_by_side(trace: Path):
    with kvstet_site() as site, peer_site(Peer()) as peer:
        output = replay(trace, "--against", site.url, "--against", peer.url)
    lines = output.splitlines()
    assert lines[0] == f"kvstet at {site.url.removeprefix('http://')}"
    assert lines[1].split() == ["request", "prompt", "reused", "loaded", "shifted", "computed", "bound", "first"]
    assert lines[2].split()[0] == "first"
    assert "New conversation" in lines[3]
    assert f"llama-server at {peer.url.removeprefix('http://')}" in lines
    (kvstet,) = (line for line in lines if "2 of 2" in line and "kvstet" in line)
    assert " 1.000 " in kvstet
    assert (
        "1 request not sent: /v1/messages/count_tokens is none of Chat Completions, Messages and Responses." in output
    )


def test_all_numbers_are_written_as_json(trace: Path, tmp_path: Path):
    path = tmp_path / "out.json"
    with kvstet_site() as site:
        replay(trace, "--against", site.url, "--json", str(path), "--repeat", "2")
    told = msgspec.json.decode(path.read_bytes(), type=Replayed)
    assert (told.trace, told.gap, len(told.runs)) == ("trace.jsonl", "none", 2)
    assert [run.repetition for run in told.runs] == [0, 1]
    assert [asked.label for asked in told.runs[0].asked] == ["first", "second"]
    assert told.runs[0].num_computed_tokens == told.runs[0].num_bound_tokens
    assert [asked.num_computed_tokens for asked in told.runs[1].asked] == [1, 1]
    assert told.skipped == {"/v1/messages/count_tokens is none of Chat Completions, Messages and Responses": 1}


def test_no_more_requests_than_are_wanted(trace: Path):
    with peer_site(Peer()) as peer:
        replay(trace, "--against", peer.url, "--limit", "1", "--model", "mine")
    assert [body["model"] for _, body, _ in peer.asked] == ["mine"]


def test_a_provider_needs_no_server_and_is_told_in_dollars(trace: Path):
    output = replay(trace, "--against", "anthropic/claude-sonnet-5", "--optimise")
    assert "anthropic/claude-sonnet-5, arranged by kvstet" in output
    assert "best cache" in output
    assert "$0.00" in output


def test_the_key_comes_from_the_environment(trace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PEER_KEY", "sesame")
    with peer_site(Peer()) as peer:
        replay(trace, "--against", peer.url, "--api-key-env", "PEER_KEY")
    assert peer.asked[0][2]["authorization"] == "Bearer sesame"
    with pytest.raises(InvalidRequest, match="NO_SUCH_KEY"):
        replay(trace, "--against", "http://127.0.0.1:1", "--api-key-env", "NO_SUCH_KEY")


def test_a_server_without_a_scheme_is_an_address_and_no_provider(trace: Path):
    with peer_site(Peer()) as peer:
        replay(trace, "--against", peer.url.removeprefix("http://"))
    assert len(peer.asked) == 2


def test_nothing_is_sent_where_one_of_the_servers_is_not_there(trace: Path):
    with peer_site(Peer()) as gone:
        pass
    with peer_site(Peer()) as peer:
        with pytest.raises(ServerGone):
            replay(trace, "--against", peer.url, "--against", gone.url)
        with pytest.raises(UnknownProvider):
            replay(trace, "--against", peer.url, "--against", "nonesuch")
    assert not peer.asked


def test_a_server_that_answers_nothing_is_a_failure(trace: Path):
    refusal = (500, {"error": {"message": "broken"}})
    with peer_site(Peer(refusals={0: refusal, 1: refusal})) as peer:
        output = replay(trace, "--against", peer.url, status=1)
    assert "500: broken" in output
    assert "2 requests failed." in output


def test_what_was_asked_until_it_was_stopped_is_told(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = Player.play

    def play(self: Player, *arguments: Any) -> None:
        self.sleep = stop
        real(self, *arguments)

    def stop(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Player, "play", play)
    path = tmp_path / "out.json"
    with peer_site(Peer()) as peer:
        output = replay(trace, "--against", peer.url, "--json", str(path), status=130)
    assert "Stopped." in output
    assert "1 of 1" in output
    (run,) = msgspec.json.decode(path.read_bytes(), type=Replayed).runs
    assert [asked.label for asked in run.asked] == ["first"]


def test_replies_without_a_form_are_told(trace: Path, tmp_path: Path):
    odd = tmp_path / "odd.jsonl"
    lines = [
        Request(seq=1, path="/v1/chat/completions", body_raw=json.dumps({"messages": [TASK]})),
        Response(seq=1, status=200, plan=Plan(calls=PLAN.calls)),
    ]
    odd.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    with kvstet_site() as site:
        assert "this model has no form for the reply" in replay(odd, "--against", site.url)
