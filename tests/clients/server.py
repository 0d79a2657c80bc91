"""A real server, engine process and all, whose model says what a script tells it to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tests.api.test_traces import ALL_REASONING, Watched
from tests.api.traces import reply_text, spelt
from tests.clients.script import Script

from kvstet.api import create_app
from kvstet.api.models import OneModel
from kvstet.api.ports import Served
from kvstet.api.server import Server, listen, url_of
from kvstet.chat.ledger import Ledger
from kvstet.chat.messages import normalise
from kvstet.config import EngineOptions, ModelOptions, ServerOptions
from kvstet.engine.client import EngineClient
from kvstet.engine.messages import Anticipate, Appraise, Appraised, Event, Generate, ModelInfo, Started, Stats
from kvstet.engine.supervisor import Supervisor
from kvstet.llama.model import Model
from kvstet.llama.schema import schema_grammar, schema_rules
from kvstet.types import Prompt, Reuse

START_SECONDS = 60.0


@dataclass
class Answered:
    """A request over HTTP, and how it was answered."""

    method: str
    path: str
    body: bytes = b""
    status: int | None = None
    answer: bytes = b""


class Listening(Watched):
    """A renderer that keeps what each prompt was made of."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conversations: dict[bytes, tuple[list[dict[str, Any]], set[str]]] = {}

    def render(self, messages: Sequence[Mapping[str, object]], **options: Any) -> Prompt:
        prompt = super().render(messages, **options)
        names = {name_of(tool) for tool in options.get("tools") or ()}
        self.conversations[prompt.tokens.tobytes()] = (normalise(messages), names)
        return prompt


def name_of(tool: Mapping[str, Any]) -> str:
    return str(tool.get("function", tool).get("name"))


class Scripted:
    """An `EngineClient` around the real one: it says what the script chooses."""

    def __init__(self, engine: EngineClient, renderer: Listening, script: Script, vocabulary: Model) -> None:
        self._engine, self._renderer, self._script = engine, renderer, script
        self._vocab = vocabulary.vocab
        self._end = self._vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
        self._random = np.random.default_rng(0)
        self.requests: list[tuple[str, Generate]] = []
        self.reuses: list[Reuse] = []

    @property
    def info(self) -> ModelInfo:
        return self._engine.info

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        say = self._script.reply(*self._renderer.conversations[request.tokens.tobytes()])
        said = spelt(reply_text(say.plan), self._vocab, self._random)
        self.requests.append((self._script.chosen[-1], request))
        async with aclosing(self._engine.generate(replace(request, forced=(*said, *self._end)))) as events:
            async for event in events:
                if isinstance(event, Started):
                    self.reuses.append(event.reuse)
                yield event

    async def appraise(self, question: Appraise) -> Appraised:
        return await self._engine.appraise(question)

    def anticipate(self, prompt: Anticipate) -> None:
        self._engine.anticipate(prompt)

    def stats(self) -> Stats:
        return self._engine.stats()

    async def close(self) -> None:
        await self._engine.close()


@dataclass
class Site:
    """A running server, and all that it was asked."""

    url: str
    script: Script
    renderer: Listening
    engine: Scripted
    answered: list[Answered] = field(default_factory=list, repr=False)

    def num_answered(self, status: int) -> int:
        return sum(one.status == status for one in self.answered)

    @property
    def num_computed_tokens(self) -> int:
        return sum(reuse.num_computed_tokens for reuse in self.engine.reuses)

    def has_seen(self, text: str) -> bool:
        """Whether any request brought this text, as a tool's output for example."""
        conversations = self.renderer.conversations.values()
        return any(text in str(message["content"]) for messages, _ in conversations for message in messages)


class Recorder:
    """An ASGI application around the real one that keeps requests and answers."""

    def __init__(self, app: ASGIApp, answered: list[Answered]) -> None:
        self._app, self._answered = app, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        one = Answered(scope["method"], scope["path"])
        self._answered.append(one)

        async def receive_kept() -> Message:
            message = await receive()
            one.body += message.get("body", b"")
            return message

        async def send_kept(message: Message) -> None:
            one.status = message.get("status", one.status)
            one.answer += message.get("body", b"")
            await send(message)

        await self._app(scope, receive_kept, send_kept)


@contextmanager
def running(model: Path, script: Script, *, context_length: int, echoes: bool = True) -> Iterator[Site]:
    """The server on a free port, until the block ends."""
    ready, stop = threading.Event(), threading.Event()
    site: list[Site] = []
    troubles: list[BaseException] = []

    async def serve() -> None:
        with Model.load_vocab(model) as vocabulary:
            options = ModelOptions(model, ctx_size=context_length, parallel=4)
            supervisor = Supervisor(options, EngineOptions(prefill_chunk=2048))
            await supervisor.start()
            renderer = Listening(ALL_REASONING, vocabulary.vocab, ledger=Ledger() if echoes else None)
            engine = Scripted(supervisor, renderer, script, vocabulary)
            served = Served(engine, renderer, vocabulary.vocab, schema_grammar, schema_rules, aliases=("coder",))
            settings = ServerOptions(port=0)
            listener = listen(settings)
            site.append(Site(url_of(listener), script, renderer, engine))
            models = OneModel(served)
            server = Server(Recorder(create_app(models, settings), site[0].answered), models, drain_seconds=0.1)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            ready.set()
            await asyncio.to_thread(stop.wait)
            server.should_exit = True
            await serving
            listener.close()
            await models.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            troubles.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(START_SECONDS)
        if troubles:
            raise troubles[0]
        yield site[0]
    finally:
        stop.set()
        thread.join(30.0)
        assert not thread.is_alive()
