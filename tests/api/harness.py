"""A real server on a loopback port, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import httpx2
from openai import AsyncOpenAI, OpenAI

from kvstet.api import create_app
from kvstet.api.models import OneModel
from kvstet.api.ports import Models, Served
from kvstet.api.recording import recording
from kvstet.api.server import Server, listen, url_of
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.renderer import Renderer
from kvstet.config import ServerOptions
from kvstet.engine.fake_client import Say, Script, ScriptedEngine
from kvstet.engine.messages import Event, Generate
from kvstet.errors import GrammarError
from kvstet.types import Tokenizer

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'tool' and message.content == 'bad' -%}{{ raise_exception('no such tool') }}{%- endif -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if tools -%}[{{ tools | length }} tools]{%- endif -%}"
    "{%- if reasoning_effort is defined -%}[effort {{ reasoning_effort }}]{%- endif -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)
TOKENIZER = ByteTokenizer()
END = TOKENIZER.special_tokens["<|im_end|>"]


def tokens_of(text: str) -> list[int]:
    """A token for each byte, and one for each control token."""
    return TOKENIZER.tokenize(text, add_special=False, parse_special=True).tolist()


def reply(text: str, **options: Any) -> Say:
    """A script that says ``text`` and ends its turn."""
    return Say([*tokens_of(text), END], **options)


def toy_grammar(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        raise GrammarError("References are not supported.")
    return f"root ::= {sorted(schema)}"


def toy_rules(schemas: Any) -> str:
    return "".join(f"{name} ::= {sorted(schema)}\n" for name, schema in schemas.items())


@dataclass(frozen=True)
class Held:
    """A script that stands still after its first ``num_events`` until it is let go, from whichever thread."""

    script: Script
    num_events: int = 1
    go: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        async with aclosing(self.script(request)) as events:
            for _ in range(self.num_events):
                yield await anext(events)
            while not self.go.is_set():
                await asyncio.sleep(0.002)
            async for event in events:
                yield event


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether the condition becomes true within ``seconds``.

    As long as a busy machine may take, and shorter than what would bring about the same by itself: a ping that fails,
    or the end of a long reply.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def freed(engine: ScriptedEngine) -> bool:
    """Whether the engine was asked, and all that it was asked is cancelled soon, and over."""
    return eventually(
        lambda: (
            bool(engine.requests)
            and sorted(engine.cancelled) == sorted(request.id for request in engine.requests)
            and engine.stats().num_running == 0
        )
    )


def patiences(engine: ScriptedEngine) -> Iterator[float]:
    """Seconds for a client to wait before it gives up: ever more, until its request has reached the engine by then."""
    seconds = 0.1
    while not engine.requests:
        assert seconds < 30, "it never reached the engine"
        yield seconds
        seconds *= 3


@dataclass(frozen=True)
class Site:
    """A running server."""

    engine: ScriptedEngine
    url: str

    @property
    def prompt(self) -> str:
        """The prompt of the last request."""
        tokens = self.engine.requests[-1].tokens
        return b"".join(TOKENIZER.piece(token) for token in tokens.tolist()).decode()

    @contextmanager
    def sdk(self, **options: Any) -> Iterator[OpenAI]:
        with OpenAI(base_url=f"{self.url}/v1", max_retries=0, **({"api_key": "none"} | options)) as client:
            yield client

    def async_sdk(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @contextmanager
    def http(self, **options: Any) -> Iterator[httpx2.Client]:
        with httpx2.Client(base_url=self.url, trust_env=False, verify=False, **options) as client:
            yield client

    def post(self, path: str, body: Any) -> httpx2.Response:
        """``body`` is sent as JSON, unless it is bytes already."""
        with self.http() as client:
            if isinstance(body, bytes):
                return client.post(path, content=body)
            return client.post(path, json=body)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        with self.http() as client:
            return client.get(path, headers=headers)

    def connect(self) -> socket.socket:
        """A bare connection, which takes in little that is not read."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        return connection


AnySite = TypeVar("AnySite", bound=Site)


def as_new(site: AnySite) -> AnySite:
    """The site, whose model says "Hello."; nobody has asked its engine yet."""
    new = ScriptedEngine(reply("Hello."))
    for each in fields(new):
        setattr(site.engine, each.name, getattr(new, each.name))
    return site


@contextmanager
def asked(site: Site, *headers: str, **body_fields: object) -> Iterator[socket.socket]:
    """A connection on which a chat request was sent, and has reached the engine."""
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **body_fields}).encode()
    lines = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers)
    num_before = len(site.engine.requests)
    with site.connect() as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        assert eventually(lambda: len(site.engine.requests) > num_before)
        yield connection


@contextmanager
def running(
    engine: Any, renderer: Any = None, tokenizer: Tokenizer = TOKENIZER, **options: Any
) -> Generator[Site, None, None]:
    aliases = tuple(options.pop("aliases", ()))
    renderer = renderer or Renderer(TEMPLATE, TOKENIZER)
    foresight = options.pop("foresight", None)
    served = Served(engine, renderer, tokenizer, toy_grammar, toy_rules, aliases=aliases, foresight=foresight)
    with running_models(OneModel(served), **options) as url:
        yield Site(engine, url)


def served_by(engine: ScriptedEngine, **names: Any) -> Served:
    """A model whose engine plays scripts."""
    return Served(engine, Renderer(TEMPLATE, TOKENIZER), TOKENIZER, toy_grammar, toy_rules, **names)


@contextmanager
def running_models(models: Models, **options: Any) -> Generator[str, None, None]:
    """A server of these models; yields its URL."""
    recorder = options.pop("recorder", None)
    settings = ServerOptions(port=0, **options)
    app = recording(create_app(models, settings), recorder)
    server = Server(app, models, drain_seconds=0.1)
    listener = listen(settings)
    # Small buffers on both sides, so that a client that does not read soon blocks the server.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert eventually(lambda: server.started, 30.0)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(30.0)
        listener.close()
