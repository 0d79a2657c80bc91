"""What the server needs of the layers below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvstet.api.foresight import Foresight
from kvstet.api.metrics import Metrics
from kvstet.api.sessions import Sessions
from kvstet.chat.deltas import Delta, ParsedReply
from kvstet.chat.reply.grammar import CallDemand, CallGrammar, SchemaRules
from kvstet.config import ServerOptions
from kvstet.context.equivalent.equivalence import Equivalence
from kvstet.engine.client import EngineClient
from kvstet.engine.messages import ModelInfo
from kvstet.types import Prompt, Tokenizer, Tokens

Message = dict[str, Any]
"""One message of a request, as the client sent it."""

SchemaToGrammar = Callable[[dict[str, Any]], str]
"""JSON schema to GBNF; GrammarError where it cannot be expressed."""


class ReplyParser(Protocol):
    """Reads one reply as it is generated. Never raises and never loses text, whatever comes."""

    def feed(self, text: str) -> list[Delta]:
        """What is certain by now."""
        ...

    def flush(self) -> list[Delta]:
        """No text will follow."""
        ...


class Renderer(Protocol):
    """Makes prompts of conversations; called from several threads. `kvstet.chat.renderer.Renderer` is the real one."""

    @property
    def template_source(self) -> str:
        """The chat template."""
        ...

    @property
    def shown_tokens(self) -> Set[int]:
        """Control tokens that the parser of replies wants to see."""
        ...

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any],
        reasoning_of: str | None = None,
    ) -> Prompt:
        """The conversation in the model's template; with reasoning that was left out of replies to the API key
        ``reasoning_of``. TemplateError where the template raises on it."""
        ...

    def forget_reasoning(self, messages: list[Message], *, tools: list[dict[str, Any]] | None, owner: str) -> None:
        """Reasoning of these replies to an API key does not come back. Raises InvalidRequest."""
        ...

    def raw(self, text: str) -> Prompt:
        """Text that is a prompt already."""
        ...

    def remember(self, prompt: Prompt, tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None:
        """A reply is complete; ``has_ended``: its last token is the one that ended it. Never raises."""
        ...

    def reply_tokens(
        self,
        prompt: Prompt,
        messages: list[Message],
        reply: ParsedReply,
        *,
        tools: list[dict[str, Any]] | None,
        callable_tools: Sequence[dict[str, Any]],
        extra: Mapping[str, Any],
    ) -> Tokens:
        """What the model generates to say this behind the prompt of these messages. Raises InvalidRequest where it has
        no way to."""
        ...

    def call_grammar(
        self, prompt: Prompt, tools: Sequence[dict[str, Any]], to_rules: SchemaRules, demand: CallDemand
    ) -> CallGrammar | None:
        """What holds a reply to the tools; None: it cannot be held. Raises GrammarError, InvalidRequest."""
        ...

    def parser(self, prompt: Prompt, tools: Sequence[dict[str, Any]]) -> ReplyParser:
        """For one reply to a rendered prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """Everything an endpoint works with that is of one model."""

    engine: EngineClient
    renderer: Renderer
    tokenizer: Tokenizer
    schema_to_grammar: SchemaToGrammar
    schema_rules: SchemaRules
    given_name: str | None = None
    """None: it is called what its file says."""
    aliases: tuple[str, ...] = ()
    foresight: Foresight | None = None
    """None: nothing is computed ahead."""
    equivalence: Equivalence = field(default_factory=Equivalence)
    """What is remembered of conversations, for those that want to go on as they began."""

    @property
    def names(self) -> Sequence[str]:
        """What the model is called: its own name first, then the aliases."""
        return tuple(dict.fromkeys((self.given_name or self.engine.info.name, *self.aliases)))


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One of the models, as it stands."""

    names: Sequence[str]
    """Its own first, then the aliases."""
    info: ModelInfo | None
    """None: it was not loaded yet."""
    engine: EngineClient | None
    """None: it is not loaded."""


class Models(Protocol):
    """The models of a server; `kvstet.api.models.OneModel` is the simple one, `kvstet.cli.models.pool.ModelPool` loads
    them on demand."""

    @property
    def is_ready(self) -> bool:
        """Whether a request can be served by at least one of them, be it that the model is loaded for it."""
        ...

    def statuses(self) -> Sequence[ModelStatus]:
        """Of all models, at least one; the first serves requests that name none."""
        ...

    def status(self, name: str | None) -> ModelStatus:
        """Of the model of this name; loads nothing. Raises UnknownModel."""
        ...

    def use(self, name: str | None) -> AbstractAsyncContextManager[Served]:
        """The model of this name, loaded and held until the block is left.

        Raises UnknownModel, and ModelUnavailable where it cannot be loaded now.
        """
        ...

    async def close(self) -> None:
        """Stop them all; requests in flight end with `ShuttingDown`."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """Everything an endpoint works with, whatever the model."""

    models: Models
    options: ServerOptions
    metrics: Metrics
    sessions: Sessions = field(default_factory=Sessions)

    @property
    def model_names(self) -> Sequence[str]:
        """What clients may ask for: each model's own name, and its aliases."""
        return tuple(dict.fromkeys(name for status in self.models.statuses() for name in status.names))
