"""A request that was understood, in no dialect: what to ask of the engine, and how to read what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from kvstet.api.decoding import TextStream
from kvstet.api.equivalent import Room, equivalent_prompt
from kvstet.api.forcing import FIELD, forced_text, given_tokens
from kvstet.api.generation import Generation, OnEnd
from kvstet.api.ports import Message, Renderer, ReplyParser, Served
from kvstet.api.sessions import Visit
from kvstet.api.wishes import EXACTLY, Wishes
from kvstet.chat.deltas import ParsedReply
from kvstet.chat.plain import PlainParser
from kvstet.chat.reply.grammar import ANY_CALL, CallDemand
from kvstet.context.equivalent.equivalence import Equivalence
from kvstet.edits.snapshot import Snapshot, snapshot_of
from kvstet.engine.messages import Generate
from kvstet.errors import ContextOverflow, GrammarError, InvalidRequest, RequestError, TemplateError
from kvstet.types import DEFAULT_SAMPLING, GREEDY, Fidelity, Prompt, RequestId, Sampling, Tokenizer

logger = logging.getLogger("kvstet.api")

_MAX_CHOICES = 64
_NUM_SEEDS = 2**32 - 1
"""libllama's seeds are 32 bits wide, and the highest one means a random seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a request wants to be answered, whatever its prompt."""

    sampling: Sampling = DEFAULT_SAMPLING
    stops: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    num_choices: int = 1
    """For each prompt."""
    num_logprobs: int | None = None
    ignores_eos: bool = False
    uses_cache: bool = True
    is_streamed: bool = False
    wishes: Wishes = EXACTLY

    @property
    def fidelity(self) -> Fidelity:
        """The least that the request is content with."""
        return self.wishes.fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What every dialect's chat is translated into. Messages and tools are in OpenAI's form."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    deferred_tools: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Tools that are not in the prompt's head. The messages tell of those that may be called, and the reply may call
    them."""
    calls_tools: bool = True
    """False: the tools stand in the prompt, as ever, but the reply is to call none."""
    demand: CallDemand = ANY_CALL
    """Which tools are to be called, where any may be."""
    adds_generation_prompt: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the template."""


@dataclass(frozen=True, slots=True)
class Job:
    """``requests`` hold ``terms.num_choices`` for each prompt, in the order of the response's choices."""

    id: str
    terms: Terms
    prompts: tuple[Prompt, ...]
    requests: tuple[Generate, ...]
    new_text: Callable[[], TextStream]
    new_parser: Callable[[], ReplyParser]
    on_end: OnEnd | None = None
    snapshot: Snapshot | None = None
    """Of the conversation as it was sent; None for bare text."""

    def start(self, served: Served, *, on_first_token: Callable[[], None], visit: Visit | None = None) -> Generation:
        """Nothing is asked of the engine before the first piece is awaited."""
        return Generation(
            served.engine,
            self.requests,
            self.new_text,
            self.new_parser,
            on_first_token=on_first_token,
            on_end=self.on_end,
            visit=visit,
        )


def chat_job(served: Served, id: str, conversation: Conversation, terms: Terms, *, prompt_field: str) -> Job:
    """Raises a RequestError for what could not be served; ``prompt_field`` is where the messages came from."""
    variables = dict(conversation.variables)
    sent = snapshot_of(conversation.messages, conversation.tools, model=served.names[0], settings=variables)
    prompt = _prompt_of(served, conversation, terms, served.equivalence)
    tools = [*conversation.tools, *conversation.deferred_tools] if conversation.calls_tools else []
    forced = _forced(served, conversation, prompt, tools, terms)
    if not forced:
        terms = _held_to_tools(served, prompt, tools, conversation.demand, terms)
    job = _make_job(
        served,
        id,
        [prompt],
        terms,
        forced,
        prompt_field=prompt_field,
        new_text=partial(TextStream, served.tokenizer, terms.stops, served.renderer.shown_tokens),
        new_parser=partial(served.renderer.parser, prompt, tools),
    )
    on_end = _on_end(served, conversation, sent, prompt, terms) if terms.uses_cache else None
    return replace(job, on_end=on_end, snapshot=sent.with_prompt(prompt))


def _prompt_of(served: Served, conversation: Conversation, terms: Terms, equivalence: Equivalence) -> Prompt:
    """At the fidelity that is wanted. ``equivalence`` learns from it."""
    wishes = terms.wishes
    if wishes.redacts:
        equivalence.forget(conversation.messages, owner=wishes.owner)
        served.renderer.forget_reasoning(conversation.messages, tools=conversation.tools, owner=wishes.owner)
    if not wishes.substitutes:
        return replace(render(served.renderer, conversation), owner=wishes.owner)

    def render_as(messages: list[Message], tools: list[dict[str, Any]], reasoning_of: str | None) -> Prompt:
        said = replace(conversation, messages=messages, tools=tools)
        return render(served.renderer, said, reasoning_of=reasoning_of)

    room = Room(served.engine.info.context_length, terms.max_new_tokens)
    return equivalent_prompt(
        conversation.messages, conversation.tools, wishes, room, render=render_as, equivalence=equivalence
    )


def _forced(
    served: Served, conversation: Conversation, prompt: Prompt, tools: list[dict[str, Any]], terms: Terms
) -> tuple[int, ...]:
    """The reply that the request brings along, token by token. Raises InvalidRequest."""
    reply = terms.wishes.reply
    if reply is None:
        return ()
    if reply.tokens is not None:
        return given_tokens(reply.tokens, served.tokenizer)
    try:
        tokens = served.renderer.reply_tokens(
            prompt,
            conversation.messages,
            reply.parsed,
            tools=conversation.tools,
            callable_tools=tools,
            extra=conversation.variables,
        )
    except RequestError as error:
        raise InvalidRequest(f"{FIELD}: {error}", param=FIELD) from error
    return tuple(tokens.tolist())


def _on_end(served: Served, conversation: Conversation, sent: Snapshot, prompt: Prompt, terms: Terms) -> OnEnd:
    def render_next(messages: list[Message]) -> Prompt:
        following = replace(conversation, messages=messages, adds_generation_prompt=True)
        wishes = replace(terms.wishes, redacts=False)
        return _prompt_of(served, following, replace(terms, wishes=wishes), served.equivalence.draft())

    def note(tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None:
        served.renderer.remember(prompt, tokens, reply, has_ended=has_ended)
        if served.foresight is not None:
            served.foresight.expect(render_next, conversation.messages, sent.tool_names, reply)

    return note


def text_job(served: Served, id: str, prompts: Sequence[Prompt], terms: Terms, *, prompt_field: str) -> Job:
    """A reply to bare text is text."""
    new_text = partial(TextStream, served.tokenizer, terms.stops)
    reply = terms.wishes.reply
    forced = () if reply is None else forced_text(reply, served.tokenizer)
    return _make_job(
        served, id, prompts, terms, forced, prompt_field=prompt_field, new_text=new_text, new_parser=PlainParser
    )


def render(renderer: Renderer, conversation: Conversation, *, reasoning_of: str | None = None) -> Prompt:
    """The conversation in the model's template; ``reasoning_of`` as in `Renderer.render`."""
    try:
        return renderer.render(
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=conversation.adds_generation_prompt,
            extra=conversation.variables,
            reasoning_of=reasoning_of,
        )
    except RecursionError:
        raise TemplateError("The messages or tools are nested too deeply.", param="messages") from None


def _held_to_tools(
    served: Served, prompt: Prompt, tools: list[dict[str, Any]], demand: CallDemand, terms: Terms
) -> Terms:
    """With a grammar for the calls, unless the reply has one already. Raises GrammarError where a call is required."""
    if not tools or terms.sampling.grammar is not None:
        return terms
    try:
        grammar = served.renderer.call_grammar(prompt, tools, served.schema_rules, demand)
    except GrammarError as error:
        if demand.is_required:
            raise
        logger.debug("The tools have no grammar: %s", type(error).__name__)
        grammar = None
    if grammar is None:
        return terms
    sampling = replace(
        terms.sampling,
        grammar=grammar.text,
        grammar_triggers=grammar.triggers,
        grammar_pause=grammar.pause,
        is_grammar_paused=grammar.is_paused,
    )
    return replace(terms, sampling=sampling)


def _make_job(
    served: Served,
    id: str,
    prompts: Sequence[Prompt],
    terms: Terms,
    forced: tuple[int, ...],
    *,
    prompt_field: str,
    new_text: Callable[[], TextStream],
    new_parser: Callable[[], ReplyParser],
) -> Job:
    # One token more, unless no reply is asked for. The engine says the same, but knows no field to name.
    num_reply_tokens = len(forced) or 1
    if terms.max_new_tokens is not None:
        num_reply_tokens = min(num_reply_tokens, terms.max_new_tokens)
    for prompt in prompts:
        _check_length(prompt, num_reply_tokens, served.engine.info.context_length, prompt_field)
    if terms.num_choices * len(prompts) > _MAX_CHOICES:
        raise InvalidRequest(f"One request may ask for at most {_MAX_CHOICES} choices in all.", param="n")
    if forced:
        terms = _ended_behind(forced, terms, served.tokenizer)
    repeated = [(prompt, choice) for prompt in prompts for choice in range(terms.num_choices)]
    requests = (_request(f"{id}:{number}", *pair, terms, forced) for number, pair in enumerate(repeated))
    return Job(id, terms, tuple(prompts), tuple(requests), new_text, new_parser)


def _request(id: str, prompt: Prompt, choice: int, terms: Terms, forced: tuple[int, ...]) -> Generate:
    return Generate(
        RequestId(id),
        prompt.tokens,
        prompt.cuts,
        terms.max_new_tokens,
        _with_seed_of_choice(terms.sampling, choice),
        terms.num_logprobs,
        terms.ignores_eos,
        terms.uses_cache,
        cut_kinds=prompt.cut_kinds,
        is_streamed=terms.is_streamed,
        # A tail that is moved has read what was taken out.
        fidelity="exact" if terms.wishes.redacts else terms.fidelity,
        forced=forced,
    )


def _ended_behind(forced: tuple[int, ...], terms: Terms, tokenizer: Tokenizer) -> Terms:
    """The reply is what is forced and no more; nothing is drawn."""
    limit = terms.max_new_tokens
    if forced[-1] not in tokenizer.end_tokens:
        limit = len(forced) if limit is None else min(limit, len(forced))
    return replace(terms, sampling=GREEDY, max_new_tokens=limit, ignores_eos=False)


def _with_seed_of_choice(sampling: Sampling, choice: int) -> Sampling:
    """Each choice draws with a seed of its own, and the first with the one that was asked for."""
    if sampling.seed is None:
        return sampling
    return replace(sampling, seed=(sampling.seed + choice) % _NUM_SEEDS)


def _check_length(prompt: Prompt, num_reply_tokens: int, context_length: int, field: str) -> None:
    num_tokens = len(prompt.tokens)
    if num_tokens == 0:
        raise InvalidRequest("The prompt is empty.", param=field)
    if num_tokens + num_reply_tokens > context_length:
        raise ContextOverflow(num_prompt_tokens=num_tokens, max_prompt_tokens=context_length, param=field)
