"""Models over HTTP: a real server in this process, in all three dialects."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from agent.agent_upstream import Raw, in_order, upstream
from kvstet.agent.asking import Asker
from kvstet.agent.confirmation import Yes
from kvstet.agent.endpoint import endpoint_of
from kvstet.agent.events import unwatched
from kvstet.agent.instructions import SYSTEM
from kvstet.agent.loop import Agent
from kvstet.agent.model import Endpoint, HttpModel, saying
from kvstet.agent.toolbox import Toolbox, workspace_tools
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.arranging.breakpoints import Marking
from kvstet.context.conversation import Context
from kvstet.dialects.dialect import DialectName, dialect_named
from kvstet.dialects.reply import Failure, ReasoningDelta, TextDelta
from kvstet.dialects.request import Request, Terms
from kvstet.dialects.whole import Reply
from kvstet.errors import InvalidRequest, ModelFailed
from kvstet.providers.provider import provider_at, provider_named
from kvstet.types import Usage

DIALECTS: tuple[DialectName, ...] = ("chat", "messages", "responses")
ASKED = Request(
    model="m", messages=({"role": "user", "content": "Hi"},), terms=Terms(is_streamed=True, max_output_tokens=100)
)


def endpoint(url: str, dialect: DialectName, headers: Mapping[str, str] | None = None) -> Endpoint:
    return Endpoint(title="The server", url=url + dialect_named(dialect).path, dialect=dialect, headers=headers or {})


async def asked(
    url: str, dialect: DialectName = "chat", request: Request = ASKED, headers: Mapping[str, str] | None = None
) -> Reply:
    model = HttpModel(endpoint(url, dialect, headers))

    async def sleep(_: float) -> None:
        return

    try:
        return (await Asker(model, sleep=sleep).ask(request, unwatched)).reply
    finally:
        await model.close()


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_whole_session_runs_in_each_dialect(dialect: DialectName, tmp_path: Path) -> None:
    usage = Usage(num_input_tokens=50, num_cache_read_tokens=40, num_output_tokens=7)
    script = in_order(
        [*saying("Look.", ("a", "list", "{}"), ("b", "write", '{"path": "x", "content": "y"}'), usage=usage)],
        saying("Done.", usage=usage),
    )
    with upstream(script) as server:
        workspace = Workspace(tmp_path)
        toolbox = Toolbox(workspace_tools(workspace, {}), Yes())
        context = Context(SYSTEM, toolbox.schemas)
        model = HttpModel(endpoint(server.url, dialect))
        agent = Agent(model, context, toolbox, model_name="m", terms=ASKED.terms)
        assert (await agent.run("Go")).text == "Done."
        await model.close()
    assert (workspace.root / "x").read_text() == "y"
    first, second = server.requests
    assert second.messages[: len(first.messages)] == first.messages
    assert [message["role"] for message in second.messages] == ["system", "user", "assistant", "tool", "tool"]
    assert second.messages[3]["content"] == "(Nothing is there.)"
    assert agent._meter.steps[0].bill.usage.num_cache_read_tokens == 40


WIRE = {
    "chat": b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\ndata: [DONE]\n\n',
    "messages": b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message",'
    b'"role":"assistant","model":"m","content":[],"usage":{"input_tokens":5,"cache_read_input_tokens":4,'
    b'"cache_creation_input_tokens":0,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"Hello"}}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
}


@pytest.mark.parametrize("dialect", ["chat", "messages"])
async def test_streams_as_vendors_write_them_are_read(dialect: DialectName) -> None:
    with upstream(in_order(Raw(WIRE[dialect]))) as server:
        reply = await asked(server.url, dialect)
    assert reply.text == "Hello"
    usage = reply.usage
    assert (usage.num_input_tokens, usage.num_cache_read_tokens, usage.num_output_tokens) == (9, 4, 2)


async def test_a_server_that_does_not_stream_is_understood() -> None:
    body = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    with upstream(in_order(Raw(json.dumps(body).encode(), media_type="application/json"))) as server:
        assert (await asked(server.url)).text == "Hello"


async def test_a_stream_that_is_cut_off_is_asked_for_again() -> None:
    whole = WIRE["chat"]
    with upstream(in_order(Raw(whole[:100]), Raw(b""), Raw(whole))) as server:
        assert (await asked(server.url)).text == "Hello"
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_errors_are_told_in_the_servers_words(dialect: DialectName) -> None:
    told = r"The server answered 401: This key is unknown\."
    with (
        upstream(in_order(Failure(401, "This key is unknown."))) as server,
        pytest.raises(ModelFailed, match=told) as caught,
    ):
        await asked(server.url, dialect)
    assert caught.value.status == 401
    assert len(server.bodies) == 1


async def test_an_error_that_is_no_json_is_told_too() -> None:
    page = Raw(b"<html>" + b"x" * 5_000_000, 400, "text/html")
    with upstream(in_order(page)) as server, pytest.raises(ModelFailed) as caught:
        await asked(server.url)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("in_words", [False, True])
async def test_the_server_says_when_to_come_back(in_words: bool) -> None:
    told = formatdate(time.time() + 40, usegmt=True) if in_words else "40"
    busy = Raw(b'{"error": {"message": "slow down"}}', 429, "application/json", {"retry-after": told})
    model_pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        model_pauses.append(seconds)

    with upstream(in_order(busy, Raw(WIRE["chat"]))) as server:
        model = HttpModel(endpoint(server.url, "chat"))
        await Asker(model, sleep=sleep).ask(ASKED, unwatched)
        await model.close()
    assert model_pauses == [pytest.approx(40, abs=2)]


async def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(ModelFailed, match="The server cannot be reached"):
        await asked(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("key", ["planted\nkey", "planted-clé", "planted\u200b"])
async def test_a_key_is_in_no_error_and_no_repr(key: str) -> None:
    with upstream(in_order(Failure(403, "No."))) as server:
        model = HttpModel(endpoint(server.url, "chat", headers={"authorization": f"Bearer {key}"}))
        with pytest.raises(ModelFailed) as caught:
            await Asker(model).ask(ASKED, unwatched)
        assert "planted" not in repr(model) + repr(endpoint(server.url, "chat", headers={"a": "planted"}))
        await model.close()
    assert "planted" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_redirect_is_not_followed_with_the_key() -> None:
    with upstream(in_order(Raw(WIRE["chat"]))) as other:
        moved = Raw(b"", 307, headers={"location": other.url + "/v1/chat/completions"})
        with upstream(in_order(moved)) as server, pytest.raises(ModelFailed, match="answered 307"):
            await asked(server.url, headers={"authorization": "Bearer planted"})
    assert other.headers == []


async def test_what_the_cache_has_to_be_told_is_told() -> None:
    marking = Marking(style="cache_control", key_field="prompt_cache_key", key_header="x-session")
    request = Request(
        model="m",
        messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}),
        terms=ASKED.terms,
    )
    with upstream(in_order(Raw(WIRE["messages"]))) as server:
        model = HttpModel(replace(endpoint(server.url, "messages"), marking=marking), cache_key="session-1")
        await Asker(model).ask(request, unwatched)
        await model.close()
    (body,) = server.bodies
    assert body["system"][-1]["cache_control"] == {"type": "ephemeral"}
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert body["prompt_cache_key"] == "session-1"
    assert server.headers[0]["x-session"] == "session-1"


async def test_reasoning_goes_back_as_it_came() -> None:
    first = [ReasoningDelta("Hm."), *saying("", ("a", "list", "{}"))]
    with upstream(in_order(first, [TextDelta("Done."), *saying("")])) as server:
        toolbox = Toolbox([], Yes())
        model = HttpModel(endpoint(server.url, "chat"))
        await Agent(model, Context("", toolbox.schemas), toolbox, terms=ASKED.terms).run("Go")
        await model.close()
    assert server.bodies[1]["messages"][1]["reasoning_content"] == "Hm."


# Out of the table of providers.


@pytest.mark.parametrize(
    ("name", "url", "dialect", "expected"),
    [
        ("anthropic", None, None, "https://api.anthropic.com/v1/messages"),
        ("anthropic", None, "chat", "https://api.anthropic.com/v1/chat/completions"),
        ("openai", None, None, "https://api.openai.com/v1/responses"),
        ("openai", None, "chat", "https://api.openai.com/v1/chat/completions"),
        ("deepseek", None, None, "https://api.deepseek.com/chat/completions"),
        ("deepseek", None, "messages", "https://api.deepseek.com/anthropic/v1/messages"),
        ("groq", None, None, "https://api.groq.com/openai/v1/chat/completions"),
        ("kvstet", None, None, "http://127.0.0.1:8080/v1/chat/completions"),
        ("kvstet", "http://127.0.0.1:9/v1/", "messages", "http://127.0.0.1:9/v1/messages"),
        ("llama.cpp", "http://127.0.0.1:9/v1", None, "http://127.0.0.1:9/v1/chat/completions"),
    ],
)
def test_addresses_are_put_together_as_the_sdks_do(
    name: str, url: str | None, dialect: str | None, expected: str
) -> None:
    provider = provider_named(name) if url is None else provider_at(url, name)
    keys = {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k", "DEEPSEEK_API_KEY": "k", "GROQ_API_KEY": "k"}
    assert endpoint_of(provider, "m", keys, dialect=dialect).url == expected


def test_keys_go_where_the_provider_wants_them() -> None:
    anthropic = endpoint_of(provider_named("anthropic"), "claude-opus-5", {"ANTHROPIC_API_KEY": " k\n"})
    assert anthropic.headers["x-api-key"] == "k"
    assert anthropic.headers["anthropic-version"] == "2023-06-01"
    openai = endpoint_of(provider_named("openai"), "gpt-5", {"MINE": "k"}, key_variable="MINE")
    assert openai.headers["authorization"] == "Bearer k"


def test_a_hosted_model_without_a_key_is_not_asked() -> None:
    with pytest.raises(InvalidRequest, match="ANTHROPIC_API_KEY"):
        endpoint_of(provider_named("anthropic"), "claude-opus-5", {})
    with pytest.raises(InvalidRequest, match="does not speak 'responses'"):
        endpoint_of(provider_named("anthropic"), "claude-opus-5", {"ANTHROPIC_API_KEY": "k"}, dialect="responses")
    with pytest.raises(InvalidRequest, match="needs --url"):
        endpoint_of(provider_named("azure"), "gpt-5", {"AZURE_OPENAI_API_KEY": "k"})


def test_an_unknown_server_gets_no_vendors_key() -> None:
    keys = {"OPENAI_API_KEY": "planted", "ANTHROPIC_API_KEY": "planted"}
    assert endpoint_of(provider_at("http://example.org"), "m", keys).headers == {}
    own = endpoint_of(provider_at("http://example.org"), "m", {**keys, "KVSTET_API_KEY": "k"})
    assert own.headers == {"authorization": "Bearer k"}
