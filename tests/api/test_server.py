from __future__ import annotations

import asyncio
import json
import signal
import socket

import httpx2
import pytest
from tests.api.harness import reply, served_by, tokens_of

from kvstet.api import create_app, serve
from kvstet.api.models import OneModel
from kvstet.api.server import listen, url_of
from kvstet.config import ServerOptions
from kvstet.engine.fake_client import Hang, Say, ScriptedEngine

OPTIONS = ServerOptions(port=0)
USER = [{"role": "user", "content": "Hi"}]


async def serving(engine: ScriptedEngine, drain_seconds: float = 10.0) -> tuple[asyncio.Task[None], str]:
    """A task that serves, and where."""
    app = create_app(OneModel(served_by(engine)), OPTIONS)
    urls: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(serve(app, engine, OPTIONS, drain_seconds=drain_seconds, on_listening=urls.put_nowait))
    return task, await urls.get()


def client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, trust_env=False, verify=False, timeout=30)


async def stop(task: asyncio.Task[None]) -> None:
    """Returns only if the signal ends the server and not the process."""
    signal.raise_signal(signal.SIGTERM)
    await task


async def test_a_free_port_is_found_and_told():
    engine = ScriptedEngine(reply("Hello."))
    task, url = await serving(engine)
    async with client(url) as http:
        assert (await http.get("/health")).status_code == 200
    await stop(task)
    assert engine.is_closed
    with pytest.raises(httpx2.ConnectError):
        async with client(url) as http:
            await http.get("/health")


async def test_a_reply_that_runs_may_finish():
    engine = ScriptedEngine(reply("Hello.", token_seconds=0.03))
    task, url = await serving(engine)
    async with client(url) as http:
        asking = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": USER}))
        while not engine.requests:
            await asyncio.sleep(0.005)
        await stop(task)
        answer = (await asking).json()
    assert answer["choices"][0]["message"]["content"] == "Hello."


async def test_a_reply_that_takes_too_long_is_told_that_the_server_stops():
    engine = ScriptedEngine(Say(tokens_of("x" * 1000), token_seconds=0.01))
    engine.scripts.append(Hang())
    task, url = await serving(engine, drain_seconds=0.1)
    async with client(url) as http:
        waiting = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": USER}))
        while not engine.requests:
            await asyncio.sleep(0.005)
        streaming = asyncio.create_task(http.post("/v1/chat/completions", json={"messages": USER, "stream": True}))
        while engine.stats().num_generated_tokens < 3:
            await asyncio.sleep(0.005)
        await stop(task)
        refused, broken_off = await waiting, await streaming
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    last = broken_off.text.removesuffix("\n\n").split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"


def test_a_port_that_is_taken_is_an_error():
    with listen(OPTIONS) as first:
        port = first.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen(ServerOptions(port=port))


def has_ipv6() -> bool:
    """Whether this machine has an address to listen on; containers often have none."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_urls_put_ipv6_addresses_in_brackets():
    with listen(ServerOptions(host="127.0.0.1", port=0)) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    if has_ipv6():
        with listen(ServerOptions(host="[::1]", port=0)) as listener:
            assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
