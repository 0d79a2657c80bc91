"""A real server on a loopback port, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI, OpenAI

from kvstet.api import create_app
from kvstet.api.models import OneModel
from kvstet.api.ports import Models, Served
from kvstet.api.server import Server, listen, url_of
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.renderer import Renderer
from kvstet.config import ServerOptions
from kvstet.engine.fake_client import Say, ScriptedEngine
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


def eventually(condition: Callable[[], bool], seconds: float = 1.0) -> bool:
    """Whether the condition becomes true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


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
    def http(self, **options: Any) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.url, trust_env=False, verify=False, **options) as client:
            yield client

    def post(self, path: str, body: Any) -> httpx.Response:
        """``body`` is sent as JSON, unless it is bytes already."""
        with self.http() as client:
            if isinstance(body, bytes):
                return client.post(path, content=body)
            return client.post(path, json=body)

    def get(self, path: str, **headers: str) -> httpx.Response:
        with self.http() as client:
            return client.get(path, headers=headers)

    def connect(self) -> socket.socket:
        """A bare connection, which takes in little that is not read."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        return connection


@contextmanager
def running(
    engine: Any, renderer: Any = None, tokenizer: Tokenizer = TOKENIZER, **options: Any
) -> Generator[Site, None, None]:
    aliases = tuple(options.pop("aliases", ()))
    renderer = renderer or Renderer(TEMPLATE, TOKENIZER)
    served = Served(engine, renderer, tokenizer, toy_grammar, toy_rules, aliases=aliases)
    with running_models(OneModel(served), **options) as url:
        yield Site(engine, url)


def served_by(engine: ScriptedEngine, **names: Any) -> Served:
    """A model whose engine plays scripts."""
    return Served(engine, Renderer(TEMPLATE, TOKENIZER), TOKENIZER, toy_grammar, toy_rules, **names)


@contextmanager
def running_models(models: Models, **options: Any) -> Generator[str, None, None]:
    """A server of these models; yields its URL."""
    settings = ServerOptions(port=0, **options)
    app = create_app(models, settings)
    server = Server(app, models, drain_seconds=0.1)
    listener = listen(settings)
    # Small buffers on both sides, so that a client that does not read soon blocks the server.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        assert eventually(lambda: server.started, 5.0)
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join(5.0)
        listener.close()
