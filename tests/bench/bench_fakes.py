"""Servers of OpenAI's API that count instead of computing: a character is a token, and what is cached is a choice."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kvstet.api.server import listen, url_of
from kvstet.bench.software import Endpoint, Limits
from kvstet.config import ServerOptions
from kvstet.errors import ServerGone

Remembered = Callable[[list[str]], list[str]]
"""What a server still has of all prompts that it was sent, in order."""


def everything(prompts: list[str]) -> list[str]:
    return prompts


def the_last(prompts: list[str]) -> list[str]:
    return prompts[-1:]


def text_of(body: dict[str, Any]) -> str:
    """A chat template."""
    return json.dumps([*body["messages"], body.get("tools")])


@dataclass
class FakeServer:
    """Implements `kvstet.bench.servers.Server`, and is one."""

    name: str
    remembers: Remembered = everything
    account: str = "timings"
    """What it tells of its costs: ``kvstet``, ``timings`` or nothing."""
    refuses: str = ""
    """Requests that hold this are refused with 400."""
    can_restart: bool = True
    tokens_seconds: float = 0.0
    version: str = "1"
    command: str = "fake"
    endpoint: Endpoint = "chat"
    model: str = "tiny"
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    resting: int = 0
    at_rest: Callable[[], list[str]] = list
    """Who else stands still; asked with each request."""
    seen_at_rest: list[list[str]] = field(default_factory=list)
    limits: list[Limits | None] = field(default_factory=list)
    num_bytes: int = 1000
    _prompts: list[str] = field(default_factory=list)

    async def fit(self, limits: Limits | None) -> None:
        self.limits.append(limits)

    async def restart(self) -> float:
        if not self.can_restart:
            raise ServerGone("It does not start.")
        self._prompts.clear()
        return 0.5

    def memory_bytes(self) -> int | None:
        return self.num_bytes

    def rest(self) -> None:
        self.resting += 1

    def wake(self) -> None:
        self.resting -= 1

    def answer(self, prompt: str, uses_cache: bool) -> dict[str, Any]:
        """Costs of a prompt; it is remembered."""
        known = max((_num_common(prompt, before) for before in self.remembers(self._prompts)), default=0)
        known = min(known, len(prompt) - 1) if uses_cache else 0
        if uses_cache:
            self._prompts.append(prompt)
        self.num_bytes += 2 * (len(prompt) - known)
        usage: dict[str, Any] = {"usage": {"prompt_tokens": len(prompt)}}
        computed = len(prompt) - known
        if self.account == "kvstet":
            costs = {"reused": known, "loaded": 0, "shifted": 0, "computed": computed, "known": known, "verdict": "So."}
            return usage | {"kvstet": costs}
        return usage | ({"timings": {"prompt_n": computed, "cache_n": known}} if self.account == "timings" else {})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/health", self._models),
                Route("/apply-template", self._rendered, methods=["POST"]),
                Route("/tokenize", self._tokenized, methods=["POST"]),
                Route("/v1/chat/completions", self._completed, methods=["POST"]),
                Route("/v1/completions", self._completed, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"data": [{"id": self.model}]})

    async def _rendered(self, request: Request) -> Response:
        return JSONResponse({"prompt": text_of(await request.json())})

    async def _tokenized(self, request: Request) -> Response:
        return JSONResponse({"tokens": [ord(character) for character in (await request.json())["content"]]})

    async def _completed(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.seen_at_rest.append(self.at_rest())
        if self.refuses and self.refuses in json.dumps(body):
            return JSONResponse({"error": {"message": "too long"}}, status_code=400)
        prompt = text_of(body) if "messages" in body else body["prompt"]
        costs = self.answer(prompt, body.get("cache_prompt", True))
        return StreamingResponse(self._events(body, costs), media_type="text/event-stream")

    async def _events(self, body: dict[str, Any], costs: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        for _ in range(body["max_tokens"]):
            await asyncio.sleep(self.tokens_seconds)
            said = {"delta": {"content": "x"}} if "messages" in body else {"text": "x"}
            yield _event({"choices": [said]})
        yield _event({"choices": [{"finish_reason": "length"}]})
        yield _event({"choices": [], **costs})
        yield b"data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _num_common(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))


@contextmanager
def serving(*servers: FakeServer) -> Iterator[None]:
    """All of them under real uvicorn, on ports of their own."""
    with _stack([_listening(server) for server in servers]):
        for server in servers:
            server.at_rest = lambda: [other.name for other in servers if other.resting]
        yield


@contextmanager
def _stack(managers: list[Any]) -> Generator[None, None, None]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


@contextmanager
def _listening(server: FakeServer) -> Generator[None, None, None]:
    listener = listen(ServerOptions(port=0))
    http = uvicorn.Server(uvicorn.Config(server.app(), log_level="error", lifespan="off", ws="none"))
    http.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: asyncio.run(http.serve(sockets=[listener])))
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not http.started and time.monotonic() < deadline:
            time.sleep(0.01)
        server.url = url_of(listener)
        yield
    finally:
        http.should_exit = True
        thread.join(30)
        listener.close()
