"""Everything one served model needs, put together.

libllama is loaded by what needs it: the gateway, the agent and their like are installed without.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kvstet.api.foresight import Foresight
from kvstet.api.ports import Served
from kvstet.cache.fingerprint import model_files
from kvstet.chat import ledger
from kvstet.chat.builtin import resolve_template
from kvstet.chat.renderer import Renderer
from kvstet.config import ServedOptions, ServerOptions
from kvstet.engine.client import EngineClient
from kvstet.engine.supervisor import Supervisor
from kvstet.errors import EngineMissing, ModelLoadError
from kvstet.types import Tokenizer

if TYPE_CHECKING:
    from kvstet.llama.model import Model


def load_vocabulary(path: Path) -> Model:
    """A model file without its weights, to be closed by the caller. Raises EngineMissing, and what loading raises."""
    _need_engine()
    from kvstet.llama.model import Model

    return Model.load_vocab(path)


def _need_engine() -> None:
    if find_spec("llama_cpp") is None:
        raise EngineMissing("This needs libllama: pip install 'kvstet[engine]' brings it.")


def load_text(path: Path, chat_template: str | None) -> tuple[Model, Renderer]:
    """A model file's vocabulary, to be closed by the caller, and what renders conversations with it."""
    vocabulary = load_vocabulary(path)
    return vocabulary, Renderer(resolve_template(chat_template, vocabulary.chat_template), vocabulary.vocab)


def needed_bytes(options: ServedOptions) -> int | None:
    """About how much memory the model will take; None where a GPU takes it. Raises EngineMissing, ModelLoadError."""
    _need_engine()
    from kvstet.llama.parameters import working_bytes

    model = options.model
    besides_weights = working_bytes(model.path, model)
    files = (*model_files(model.path), *(lora.path for lora in model.lora))
    try:
        return None if besides_weights is None else besides_weights + sum(file.stat().st_size for file in files)
    except OSError as error:
        raise ModelLoadError(f"Cannot read the model file {error.filename}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Text:
    """A model's text side. Text is the server's business, not the engine's."""

    vocabulary: Model
    """The model file again, vocabulary only."""
    renderer: Renderer
    replies: ledger.Ledger | None

    @classmethod
    def load(cls, options: ServedOptions, server: ServerOptions) -> Text:
        """Raises the KvstetError that says what is wrong with the file or the template."""
        vocabulary = load_vocabulary(options.model.path)
        try:
            template = resolve_template(options.chat_template, vocabulary.chat_template)
            replies = None
            if server.echoes:
                folder = options.engine.cache_folder
                replies = ledger.Ledger(folder / ledger.FILE if folder else None, _identity(vocabulary.vocab, template))
            renderer = Renderer(template, vocabulary.vocab, ledger=replies, masks=server.masks)
        except BaseException:
            vocabulary.close()
            raise
        return cls(vocabulary, renderer, replies)

    def close(self) -> None:
        if self.replies is not None:
            self.replies.close()
        self.vocabulary.close()


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
class LoadedModel:
    """A running engine, and what makes text of its tokens. Implements `kvstet.cli.models.pool.Loaded`."""

    served: Served
    text: Text

    @classmethod
    async def load(
        cls,
        options: ServedOptions,
        server: ServerOptions,
        on_progress: Callable[[float], None] = lambda fraction: None,
        *,
        wrap: Callable[[EngineClient], EngineClient] = same,
    ) -> LoadedModel:
        """Raises the KvstetError that says what is wrong with the file, the template or the options."""
        # In a thread: other models may be at work for clients.
        text = await asyncio.to_thread(Text.load, options, server)
        from kvstet.llama.schema import schema_grammar, schema_rules

        supervisor = Supervisor(options.model, options.engine)
        try:
            await supervisor.start(on_progress)
        except BaseException:
            await supervisor.close()
            text.close()
            raise
        engine = wrap(supervisor)
        served = Served(
            engine,
            text.renderer,
            text.vocabulary.vocab,
            schema_grammar,
            schema_rules,
            options.name,
            options.aliases,
            foresight=Foresight(engine.anticipate) if options.engine.anticipate_share > 0 else None,
        )
        return cls(served, text)

    async def close(self) -> None:
        """Stop the engine and free the vocabulary; nobody may use them any more. May be called again."""
        await self.served.engine.close()
        if self.served.foresight is not None:
            await self.served.foresight.close()
        self.text.close()
