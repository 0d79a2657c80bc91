"""Everything one served model needs, put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette

from kvstet.api import app as api
from kvstet.api import server as http
from kvstet.chat import ledger
from kvstet.chat.builtin import resolve_template
from kvstet.chat.renderer import Renderer
from kvstet.config import EngineOptions, ModelOptions, ServerOptions
from kvstet.engine.client import EngineClient
from kvstet.engine.supervisor import Supervisor
from kvstet.llama.model import Model
from kvstet.llama.schema import schema_grammar, schema_rules
from kvstet.types import Tokenizer


def load_text(path: Path, chat_template: str | None) -> tuple[Model, Renderer]:
    """A model file's vocabulary, to be closed by the caller, and what renders conversations with it."""
    vocabulary = Model.load_vocab(path)
    return vocabulary, Renderer(resolve_template(chat_template, vocabulary.chat_template), vocabulary.vocab)


def load_served_text(path: Path, server: ServerOptions, cache_folder: Path | None) -> tuple[Model, Renderer]:
    """As `load_text`, for a server: with what the model said before."""
    vocabulary = Model.load_vocab(path)
    template = resolve_template(server.chat_template, vocabulary.chat_template)
    replies = None
    if server.echoes:
        file = cache_folder / ledger.FILE if cache_folder else None
        replies = ledger.Ledger(file, _identity(vocabulary.vocab, template))
    return vocabulary, Renderer(template, vocabulary.vocab, ledger=replies, masks=server.masks)


def _identity(tokenizer: Tokenizer, template: str) -> bytes:
    """Of all that makes text of tokens, and the other way round."""
    digest = hashlib.blake2b(template.encode(errors="surrogatepass"), digest_size=16)
    for token in range(tokenizer.num_tokens):
        digest.update(tokenizer.piece(token) + b"\0")
    return digest.digest()


def same(engine: EngineClient) -> EngineClient:
    """The engine as it is."""
    return engine


@dataclass(frozen=True, slots=True)
class Stack:
    """A running engine and the HTTP application in front of it."""

    engine: EngineClient
    app: Starlette
    options: ServerOptions
    vocabulary: Model
    """The model file again, vocabulary only: text is the server's business, not the engine's."""

    @classmethod
    async def start(
        cls,
        model: ModelOptions,
        engine: EngineOptions,
        server: ServerOptions,
        on_progress: Callable[[float], None] = lambda fraction: None,
        *,
        wrap: Callable[[EngineClient], EngineClient] = same,
    ) -> Stack:
        """Load the model. Raises the KvstetError that says what is wrong with the file, the template or the options."""
        vocabulary, renderer = load_served_text(model.path, server, engine.cache_folder)
        supervisor = Supervisor(model, engine)
        try:
            await supervisor.start(on_progress)
        except BaseException:
            await supervisor.close()
            raise
        client = wrap(supervisor)
        app = api.create_app(
            client, renderer, vocabulary.vocab, server, schema_to_grammar=schema_grammar, schema_rules=schema_rules
        )
        return cls(client, app, server, vocabulary)

    async def serve(self, *, on_listening: Callable[[str], None]) -> None:
        """Until SIGINT or SIGTERM; closes the engine. Raises OSError where the address cannot be bound."""
        await http.serve(self.app, self.engine, self.options, on_listening=on_listening)
        self.vocabulary.close()
