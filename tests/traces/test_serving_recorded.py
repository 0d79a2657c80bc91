"""What a server records of its requests, in all dialects, and what is read back of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.api.anthropic_harness import calling, thinking
from tests.api.harness import TOKENIZER, Site, asked, eventually, freed, reply, tokens_of
from tests.api.responses_harness import running_responses

from kvstet.cli.recordings import read_recording
from kvstet.config import ApiKey
from kvstet.edits.history import History
from kvstet.engine.fake_client import Refuse, Say, ScriptedEngine
from kvstet.errors import EngineCrashed
from kvstet.traces.format import Header
from kvstet.traces.reading import Exchange, read_lines, read_trace
from kvstet.traces.recorder import Recorder

USER = [{"role": "user", "content": "List the files."}]
SAID = thinking("I look.") + "Here:" + calling("ls", '{"path":  "."}')
TOOL = {"type": "object", "properties": {"path": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": USER,
        "tools": [{"type": "function", "function": {"name": "ls", "parameters": TOOL}}],
    },
    "/v1/messages": {"messages": USER, "max_tokens": 100, "tools": [{"name": "ls", "input_schema": TOOL}]},
    "/v1/responses": {"input": "List the files.", "tools": [{"type": "function", "name": "ls", "parameters": TOOL}]},
    "/api/chat": {"messages": USER, "tools": [{"type": "function", "function": {"name": "ls", "parameters": TOOL}}]},
}


@contextmanager
def recorded(path: Path, engine: ScriptedEngine | None = None, **options: Any) -> Iterator[Site]:
    recorder = Recorder(path, "serve")
    try:
        with running_responses(engine or ScriptedEngine(reply(SAID)), recorder=recorder, **options) as site:
            yield site
    finally:
        recorder.close()


def only(path: Path) -> Exchange:
    (exchange,) = read_trace(path)
    return exchange


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("path", BODIES)
def test_a_request_and_its_reply_are_recorded_in_every_dialect(path: str, is_streamed: bool, tmp_path: Path):
    file, body = tmp_path / "a.jsonl", json.dumps({**BODIES[path], "stream": is_streamed}, indent=1)
    with recorded(file) as site:
        site.post(f"{path}?beta=true", body.encode())
    exchange = only(file)
    assert exchange.request.path == f"{path}?beta=true"
    assert exchange.request.body_raw == body
    assert exchange.response is not None and exchange.plan is not None
    assert (exchange.response.status, exchange.response.broken_off, exchange.response.error_raw) == (200, False, None)
    assert (exchange.plan.reasoning, exchange.plan.text) == ("I look.", "Here:")
    assert [(call.name, call.args_raw) for call in exchange.plan.calls] == [("ls", '{"path":  "."}')]
    assert TOKENIZER.piece((exchange.response.tokens or [0])[0]) == b"\x01"
    assert exchange.response.model == "tiny"
    assert exchange.response.kvstet is not None and exchange.response.kvstet["computed"] > 0
    assert 0 < (exchange.response.first_seconds or 0) <= exchange.response.t
    assert exchange.request.t <= exchange.response.t
    if path != "/api/chat":
        assert exchange.plan.calls[0].id
    assert (exchange.response.usage is None) == (path == "/api/chat" or (is_streamed and "chat" in path))
    if exchange.response.usage is not None:
        told = exchange.response.usage.get("input_tokens") or exchange.response.usage.get("prompt_tokens")
        assert told == exchange.response.kvstet["computed"]


def test_the_header_says_who_wrote_it_and_when(tmp_path: Path):
    with recorded(tmp_path) as site:
        site.post("/v1/chat/completions", BODIES["/v1/chat/completions"])
    (file,) = tmp_path.glob("serve-*.jsonl")
    header = next(read_lines(file))
    assert isinstance(header, Header) and header.by.startswith("kvstet ") and header.by.endswith(" serve")
    assert header.wall is not None and header.redacted == "keys"
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_asks_no_model_is_not_recorded(tmp_path: Path):
    with recorded(tmp_path / "a.jsonl") as site:
        site.get("/v1/models")
        site.post("/v1/messages/count_tokens", {"messages": USER})
        site.post("/tokenize", {"content": "Hi"})
    assert list(read_trace(tmp_path / "a.jsonl")) == []


def test_keys_are_in_no_recording(tmp_path: Path):
    file, secret = tmp_path / "a.jsonl", "sesame-open-0123456789"
    headers = {
        "authorization": f"Bearer {secret}",
        "x-api-key": secret,
        "api-key": secret,
        "x-goog-api-key": secret,
        "proxy-authorization": f"Basic {secret}",
        "cookie": f"session={secret}",
        "x-forwarded-url": f"https://example.org/?api_key={secret}",
    }
    body = {**BODIES["/v1/messages"], "mcp_servers": [{"url": "https://x", "authorization_token": secret}]}
    with recorded(file, api_keys=(ApiKey("ali", secret),)) as site, site.http(headers=headers) as client:
        assert client.post(f"/v1/messages?key={secret}&beta=true", json=body).status_code == 200
    text = file.read_text()
    assert secret not in text
    assert only(file).request.path == "/v1/messages?key=[redacted]&beta=true"
    assert dict(only(file).request.headers)["x-api-key"] == "[redacted]"


def test_strangers_are_not_recorded(tmp_path: Path):
    with recorded(tmp_path / "a.jsonl", api_keys=(ApiKey("ali", "sesame"),)) as site:
        assert site.post("/v1/chat/completions", BODIES["/v1/chat/completions"]).status_code == 401
    assert list(read_trace(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_what_is_refused_is_recorded_with_its_error(path: str, tmp_path: Path):
    with recorded(tmp_path / "a.jsonl") as site:
        answer = site.post(path, {**BODIES[path], "temperature": "hot"})
    response = only(tmp_path / "a.jsonl").response
    assert response is not None and response.status == 400 == answer.status_code
    assert json.loads(response.error_raw or "") == answer.json()
    assert response.plan is None and response.tokens is None


def test_a_failing_engine_is_recorded(tmp_path: Path):
    with recorded(tmp_path / "a.jsonl", ScriptedEngine(Refuse(EngineCrashed("It crashed.")))) as site:
        site.post("/v1/chat/completions", BODIES["/v1/chat/completions"])
    response = only(tmp_path / "a.jsonl").response
    assert response is not None and response.status == 503 and "It crashed." in (response.error_raw or "")


@pytest.mark.parametrize("is_streamed", [True, False])
def test_of_a_reply_that_nobody_waited_for_the_beginning_is_recorded(is_streamed: bool, tmp_path: Path):
    engine = ScriptedEngine(Say(tokens_of("x" * 10_000), token_seconds=0.005))
    with recorded(tmp_path / "a.jsonl", engine) as site:
        with asked(site, stream=is_streamed) as connection:
            if is_streamed:
                connection.recv(1000)
            assert eventually(lambda: engine.stats().num_generated_tokens > 3)
        assert freed(engine)
    response = only(tmp_path / "a.jsonl").response
    assert response is not None and response.plan is not None and response.tokens
    assert response.plan.text.startswith("xx") and len(response.plan.text) < 10_000
    assert response.status == (200 if is_streamed else 499)
    assert response.broken_off == is_streamed


def test_a_recording_is_explained_with_the_edits_that_the_server_told(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    turns: list[dict[str, Any]] = [{"role": "system", "content": "You are a coding agent. Be precise."}, *USER]
    with recorded(file) as site:
        for say in ("one", "two", "three"):
            told = site.post("/v1/chat/completions", {"messages": turns}).json()["choices"][0]["message"]
            turns += [told, *({"role": "tool", "tool_call_id": c["id"], "content": say} for c in told["tool_calls"])]
        turns[3] = {**turns[3], "content": ""}
        site.post("/v1/chat/completions", {"messages": turns})
    history, found = History(), []
    for request in read_recording(file):
        place = history.note(request.snapshot)
        found.append([(edit.kind, edit.message) for edit in place.edits])
        assert request.reply is not None
        history.reply(place.branch, request.reply)
    served = [exchange.response.kvstet for exchange in read_trace(file) if exchange.response is not None]
    assert found == [[(edit["kind"], edit["message"]) for edit in told["edits"]] for told in served if told]
    assert found[-1] == [("result_pruned", 3)]


def test_a_full_disk_is_told_once_and_requests_are_served(caplog: pytest.LogCaptureFixture):
    with recorded(Path("/dev/full")) as site:
        for _ in range(3):
            assert site.post("/v1/chat/completions", BODIES["/v1/chat/completions"]).status_code == 200
    (told,) = [record.getMessage() for record in caplog.records if record.name == "kvstet.traces"]
    assert told == "/dev/full is not complete: No space left on device. Requests are served all the same."


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.api.harness import Server, listen, reply, served_by, url_of
from kvstet.api import create_app
from kvstet.api.models import OneModel
from kvstet.api.recording import recording
from kvstet.config import ServerOptions
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.traces.recorder import Recorder

models, options = OneModel(served_by(ScriptedEngine(reply("Hello.")))), ServerOptions(port=0)
app = recording(create_app(models, options), Recorder(Path(sys.argv[1]), "serve"))
server = Server(app, models, drain_seconds=0.1)
listener = listen(options)
print(url_of(listener), flush=True)
asyncio.run(server.serve(sockets=[listener]))
"""


def test_a_server_that_is_killed_leaves_all_that_was_answered(tmp_path: Path):
    file, root = tmp_path / "a.jsonl", Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        for number in range(20):
            messages = [{"role": "user", "content": f"Request {number}."}]
            assert httpx2.post(f"{url}/v1/chat/completions", json={"messages": messages}).status_code == 200
        assert eventually(lambda: file.read_text().count('"dir":"response"') == 20)
        server.send_signal(signal.SIGKILL)
    with file.open("ab") as torn:
        torn.write(b'{"dir":"request","seq":21,"pa')
    exchanges = list(read_trace(file))
    assert [exchange.number for exchange in exchanges] == list(range(1, 21))
    assert all(exchange.plan is not None and exchange.plan.text == "Hello." for exchange in exchanges)
    # And is gone on with.
    recorder = Recorder(file, "serve")
    recorder.begin("POST", "/v1/chat/completions", [], b'{"messages": []}')
    recorder.close()
    assert [exchange.number for exchange in read_trace(file)] == [*range(1, 21), 1]
