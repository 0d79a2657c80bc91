"""A scripted server that speaks all dialects, under a real uvicorn; and an MCP server to be started as a process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kvstet.dialects.dialect import dialect_of_path
from kvstet.dialects.reply import Delta, Failure
from kvstet.dialects.request import Request
from kvstet.dialects.values import body_of


@dataclass(frozen=True, slots=True)
class Raw:
    """An answer as it goes over the wire."""

    content: bytes
    status: int = 200
    media_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[Request], "Sequence[Delta] | Raw | Failure"]


@dataclass(slots=True)
class Upstream:
    """What was asked, and where to ask."""

    port: int
    script: Script
    bodies: list[dict[str, Any]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "scripted", "meta": {"n_ctx": 20_000}}])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, http: HttpRequest) -> Response:
        dialect = dialect_of_path(http.url.path)
        assert dialect is not None
        body = body_of(await http.body())
        request = dialect.read_request(body)
        self.bodies.append(body)
        self.requests.append(request)
        self.headers.append(dict(http.headers))
        self.paths.append(http.url.path)
        reply = self.script(request)
        if isinstance(reply, Raw):
            return Response(reply.content, reply.status, reply.headers, reply.media_type)
        if isinstance(reply, Failure):
            return JSONResponse(dialect.write_error(reply), reply.status)
        writer = dialect.reply_writer(request)

        async def pieces() -> Any:
            for delta in reply:
                yield writer.feed(delta)

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def list_models(self, _: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": self.models})


@contextmanager
def upstream(script: Script) -> Generator[Upstream, None, None]:
    """The server, for the time of the block."""
    listening = socket.create_server(("127.0.0.1", 0))
    state = Upstream(listening.getsockname()[1], script)
    paths = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
    routes = [Route(path, state.answer, methods=["POST"]) for path in paths]
    app = Starlette(routes=[*routes, Route("/v1/models", state.list_models)])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def in_order(*replies: Sequence[Delta] | Raw | Failure) -> Script:
    """These replies, one after the other."""
    left: Iterator[Any] = iter(replies)
    return lambda _: next(left, Failure(400, "The script has come to its end."))
