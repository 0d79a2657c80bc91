"""Conversation to prompt: the tokens that the model reads, and which of them each message became."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import cast

import numpy as np

from kvstet.canonical import canonical
from kvstet.chat.builtin import FALLBACK, builtin_template, knows_tools
from kvstet.chat.deltas import ParsedReply, message_of
from kvstet.chat.echo import Echoed, as_tokens, digest_of, echo
from kvstet.chat.fit import Fitted, fit
from kvstet.chat.ledger import Ledger, Said, lean_meaning_of, lean_meanings_of_message, meaning_of
from kvstet.chat.lru import Lru
from kvstet.chat.marks import Mark, Rendered
from kvstet.chat.masks import mask
from kvstet.chat.messages import Message, marked_parts, normalise
from kvstet.chat.reply.format import ReplyFormat, format_of
from kvstet.chat.reply.grammar import CallDemand, CallGrammar, SchemaRules
from kvstet.chat.reply.parser import ReplyParser
from kvstet.chat.saying import message_of_reply, ways_to_say
from kvstet.chat.segments import DEFAULT_CACHE_BYTES, Encoded, SegmentTokenizer
from kvstet.chat.template import ChatTemplate
from kvstet.chat.tools import checked, defaults_of
from kvstet.chat.traits import Traits, traits_of
from kvstet.errors import InvalidRequest
from kvstet.types import MessageSpan, Prompt, Substitution, Tokenizer, Tokens

_MAX_CONVERSATIONS = 4096
_MAX_GRAMMARS = 64
_END_CHARACTERS = 200
"""Of a prompt: enough to tell what the reply begins in the middle of."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class _Page:
    """A template with its traits."""

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template

    @cached_property
    def traits(self) -> Traits:
        return traits_of(self.template)

    @cached_property
    def reply_format(self) -> ReplyFormat:
        return format_of(self.template)


class Renderer:
    """Renders conversations with one model's template and tokenizer; thread-safe.

    A conversation that uses tools, with a template that knows none, is rendered with the built-in ``chatml-tools``
    template if the model's is ChatML too, and else with the tools told as text (see `kvstet.chat.fit`).
    """

    def __init__(
        self,
        template: str,
        tokenizer: Tokenizer,
        *,
        ledger: Ledger | None = None,
        masks: bool = True,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        """``template`` is the source. TemplateError where its syntax is wrong.

        With a ``ledger``, the model's own replies are put back as it generated them (`kvstet.chat.echo`); ``masks``
        keeps from the model what would change the prompt's beginning and says nothing to it (`kvstet.chat.masks`).
        """
        self._ledger = ledger
        self._masks = masks
        self._bos = tokenizer.token_text("bos")
        self._eos = eos = tokenizer.token_text("eos")
        needs_other = not knows_tools(template) and "<|im_start|>" in template
        tools_template = builtin_template(FALLBACK) if needs_other else template
        self._page = _Page(ChatTemplate(template, bos=self._bos, eos=eos))
        self._tools_page = _Page(ChatTemplate(tools_template, bos=self._bos, eos=eos)) if needs_other else self._page
        self._segments = SegmentTokenizer(tokenizer, {template, tools_template}, cache_bytes=cache_bytes)
        self._tokenizer = tokenizer
        self._special_tokens = tokenizer.special_tokens
        self._grammars: Lru[str, CallGrammar | None] = Lru(_MAX_GRAMMARS)
        self._started: Lru[bytes, datetime] = Lru(_MAX_CONVERSATIONS)
        self._clock = clock

    def __repr__(self) -> str:
        return f"Renderer({self._page.template!r}, {self._segments!r})"

    @property
    def template(self) -> ChatTemplate:
        """The model's template."""
        return self._page.template

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        conversation_started: datetime | None = None,
        extra: Mapping[str, object] | None = None,
        reasoning_of: str | None = None,
    ) -> Prompt:
        """Prompt of a conversation in OpenAI's form, with one span per message and one for the generation prompt.

        Messages that print nothing of their own have empty spans; a template that does not show where its messages
        begin gives a single span without an index. ``conversation_started`` is what the template sees as the current
        time; None: when this conversation (its first system and user message) was rendered first, so that midnight does
        not change its prefix. ``extra`` are variables of the template (``enable_thinking``, ``reasoning_effort``).
        With ``reasoning_of``, the model's replies to the API key of this name come back with the reasoning that the
        client or the template has left out.

        InvalidRequest: a message that cannot be used. TemplateError: the template refused the conversation.
        """
        clean = normalise(messages)
        masked = mask(clean) if self._masks else ()
        tools = _checked(tools)
        fitted, rendered = self._printed(
            clean, tools, add_generation_prompt=add_generation_prompt, started=conversation_started, extra=extra
        )
        echoed = self._echoed(rendered, fitted, clean, tools, reasoning_of)
        text = "".join(part if isinstance(part, str) else part.text for part in echoed.parts)
        has_bos = bool(self._bos) and text.startswith(self._bos)
        hints = [mark.start for mark in echoed.marks]
        encoded = self._segments.encode_parts(echoed.parts, add_special=not has_bos, hints=hints)
        return Prompt(
            encoded.tokens,
            _spans(encoded, echoed.marks, fitted, clean),
            text,
            opening=text[echoed.marks[-1].start :] if echoed.marks and add_generation_prompt else "",
            num_echoed_messages=echoed.num_messages,
            masked=masked,
            breakpoints=tuple(_ends(marked_parts(messages), text, encoded)),
            substitutions=tuple(
                Substitution("reasoning", fitted.origins[index], "the reply stands with its reasoning")
                for index in echoed.reasoned
            ),
            owner=reasoning_of or "",
        )

    def _printed(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        started: datetime | None,
        extra: Mapping[str, object] | None,
    ) -> tuple[Fitted, Rendered]:
        page = self._tools_page if tools or _use_tools(messages) else self._page
        fitted = fit(messages, tools, page.traits)
        rendered = page.template.render(
            fitted.messages,
            tools=fitted.tools,
            add_generation_prompt=add_generation_prompt,
            now=started or self._start_of(messages),
            extra=extra,
        )
        return fitted, Rendered(_encodable(rendered.text), rendered.marks)

    def reply_tokens(
        self,
        prompt: Prompt,
        messages: Sequence[Mapping[str, object]],
        reply: ParsedReply,
        *,
        tools: Sequence[Mapping[str, object]] | None,
        callable_tools: Sequence[Mapping[str, object]],
        extra: Mapping[str, object] | None = None,
    ) -> Tokens:
        """What the model generates to say this behind the prompt of these messages, to the token that ends its turn.

        Reasoning is left out where the model has no form for it. What is found is read again as any reply is:
        InvalidRequest where that is not the reply, because the template cannot show it, or because it calls a tool and
        there are no ``callable_tools``.
        """
        form = self._format(callable_tools)
        if form.reasoning is None and form.style != "harmony":
            reply = replace(reply, reasoning="")
        shown = self._shown(messages, reply, tools, extra)
        for text in ways_to_say(shown, prompt.opening, reply, form.reasoning):
            tokens = self._ended(self._behind(prompt.opening, text), form, has_calls=bool(reply.calls))
            if meaning_of(self._read(prompt, tokens, callable_tools)) == meaning_of(reply):
                return tokens
        raise InvalidRequest("the model's chat template has no way to write this reply.")

    def _shown(
        self,
        messages: Sequence[Mapping[str, object]],
        reply: ParsedReply,
        tools: Sequence[Mapping[str, object]] | None,
        extra: Mapping[str, object] | None,
    ) -> str:
        """What the template prints of a reply behind these messages; nothing where it does not tell them apart."""
        clean = normalise([*messages, message_of_reply(reply)])
        fitted, rendered = self._printed(clean, _checked(tools), add_generation_prompt=False, started=None, extra=extra)
        starts = (mark.start for mark in rendered.marks if mark.index is not None and _is_last(fitted, mark.index))
        start = next(starts, None)
        return "" if start is None else rendered.text[start:]

    def _behind(self, opening: str, text: str) -> Tokens:
        """Tokens of a text that follows another, where they do not depend on each other; else of the text alone."""
        before, whole = (self._segments.encode(part, add_special=False).tokens for part in (opening, opening + text))
        if np.array_equal(whole[: len(before)], before):
            return whole[len(before) :]
        return self._segments.encode(text, add_special=False).tokens

    def _ended(self, tokens: Tokens, form: ReplyFormat, *, has_calls: bool) -> Tokens:
        """Up to the first token that ends a turn; a template may print none of a reply that nothing follows."""
        (ends,) = np.nonzero(np.isin(tokens, list(self._tokenizer.end_tokens)))
        if len(ends):
            return tokens[: ends[0] + 1]
        texts = [end.head for end in form.ends]
        texts = [*(reversed(texts) if has_calls else texts), self._eos]
        known = (self._special_tokens.get(text) for text in texts)
        end = next(
            (token for token in known if token in self._tokenizer.end_tokens),
            min(self._tokenizer.end_tokens, default=None),
        )
        return tokens if end is None else np.append(tokens, np.int32(end))

    def _read(self, prompt: Prompt, tokens: Tokens, tools: Sequence[Mapping[str, object]]) -> ParsedReply:
        """A reply, as it is told to the client."""
        shown = self.shown_tokens
        data = b"".join(self._tokenizer.piece(token, special=token in shown) for token in tokens.tolist())
        parser = self.parser(prompt, tools)
        return message_of([*parser.feed(data.decode(errors="replace")), *parser.flush()])

    def remember(self, prompt: Prompt, tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None:
        """Keep what was generated for a prompt; ``has_ended``: its last token is the one that ended it."""
        if self._ledger is None or not prompt.opening:
            return
        told, end = (tokens[:-1], self._segments.segment_of(as_tokens(tokens[-1:])).text) if has_ended else (tokens, "")
        said = Said(digest_of(prompt.text), prompt.opening, as_tokens(told), end or self._eos)
        self._ledger.remember(meaning_of(reply), said)
        if reply.reasoning:
            self._ledger.remember(lean_meaning_of(reply, prompt.owner), said)

    def forget_reasoning(
        self, messages: Sequence[Mapping[str, object]], *, tools: Sequence[Mapping[str, object]] | None, owner: str
    ) -> None:
        """Reasoning of these replies does not come back, unless it is sent. Raises InvalidRequest."""
        defaults = defaults_of([checked(tool, f"tools[{index}]") for index, tool in enumerate(tools or ())])
        if self._ledger is not None:
            for message in (message for message in normalise(messages) if message["role"] == "assistant"):
                for meaning in lean_meanings_of_message(message, defaults, owner):
                    self._ledger.forget(meaning)

    def _echoed(
        self,
        rendered: Rendered,
        fitted: Fitted,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, object]],
        reasoning_of: str | None,
    ) -> Echoed:
        if self._ledger is None or not rendered.marks:
            return Echoed([rendered.text], rendered.marks)
        pairs = zip(fitted.origins, fitted.alone, strict=True)
        sources = [messages[origin] if is_alone else None for origin, is_alone in pairs]
        return echo(rendered, sources, defaults_of(tools), self._ledger, self._segments, reasoning_of=reasoning_of)

    def raw(self, text: str) -> Prompt:
        """Prompt of a bare text: one span, with the special tokens that the model wants around a text."""
        text = _encodable(text)
        tokens = self._segments.encode(text, add_special=True).tokens
        return Prompt(tokens, (MessageSpan(0, len(tokens), None, "prompt"),), text)

    @property
    def template_source(self) -> str:
        return self._page.template.source

    @property
    def shown_tokens(self) -> Set[int]:
        """Control tokens that the parser of replies wants to see."""
        return self._shown_tokens

    @cached_property
    def _shown_tokens(self) -> Set[int]:
        texts = {text for page in (self._page, self._tools_page) for text in page.reply_format.markers}
        return {token for special, token in self._special_tokens.items() if any(special in text for text in texts)}

    def parser(self, prompt: Prompt, tools: Sequence[Mapping[str, object]]) -> ReplyParser:
        """For one reply to a rendered prompt, which may call these tools and no others."""
        return self._format(tools).parser(tools=tools, prompt_end=prompt.text[-_END_CHARACTERS:])

    def call_grammar(
        self, prompt: Prompt, tools: Sequence[Mapping[str, object]], to_rules: SchemaRules, demand: CallDemand
    ) -> CallGrammar | None:
        """What holds the reply to the tools; None: this format has no grammar. Raises GrammarError."""
        wanted = [tool for tool in tools if demand.names is None or _name_of(tool) in demand.names]
        if missing := set(demand.names or ()).difference(map(_name_of, wanted)):
            raise InvalidRequest(f"There is no tool named {min(missing)!r}.", param="tool_choice")
        end = prompt.text[-_END_CHARACTERS:]
        form = self._format(tools)
        in_reasoning = form.reasons_behind(end)
        key = json.dumps([wanted, demand.is_required, demand.is_parallel, in_reasoning])
        return self._grammars.get_or_make(
            key, lambda: form.grammar(wanted, to_rules, demand, in_reasoning=in_reasoning)
        )

    def _format(self, tools: Sequence[Mapping[str, object]]) -> ReplyFormat:
        return (self._tools_page if tools else self._page).reply_format

    def _start_of(self, messages: Sequence[Message]) -> datetime:
        first = {str(message["role"]): str(message["content"]) for message in reversed(messages)}
        digest = hashlib.blake2b(digest_size=16)
        for role in ("system", "developer", "user"):
            digest.update(f"{role}:{len(first.get(role, ''))}:{first.get(role, '')}".encode(errors="surrogatepass"))
        return self._started.get_or_make(digest.digest(), self._clock)


def _is_last(fitted: Fitted, index: int) -> bool:
    return fitted.origins[index] == fitted.num_sent - 1


def _checked(tools: Sequence[Mapping[str, object]] | None) -> list[Mapping[str, object]]:
    return [canonical(checked(tool, f"tools[{index}]")) for index, tool in enumerate(tools or ())]


def _name_of(tool: Mapping[str, object]) -> object:
    return cast("Mapping[str, object]", tool.get("function", {})).get("name")


def _encodable(text: str) -> str:
    """JSON can hold half of a surrogate pair, UTF-8 cannot. Characters keep their places."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def _use_tools(messages: Sequence[Message]) -> bool:
    return any("tool_calls" in message or message["role"] == "tool" for message in messages)


def _spans(
    encoded: Encoded, marks: Sequence[Mark], fitted: Fitted, messages: Sequence[Message]
) -> tuple[MessageSpan, ...]:
    num_tokens = len(encoded.tokens)
    if not marks:
        return (MessageSpan(0, num_tokens, None, "prompt"),)
    starts = _starts(encoded, marks, fitted, len(messages))
    stops = [*starts[1:], num_tokens]
    roles = [*(str(message["role"]) for message in messages), "assistant"]
    indices = [*range(len(messages)), None]
    spans = map(MessageSpan, starts, stops, indices, roles)
    return tuple(span for span in spans if span.index is not None or span.start < span.stop)


def _ends(texts: Sequence[str], whole: str, encoded: Encoded) -> Iterator[int]:
    """Token positions at which these texts end, which stand in the whole in this order; of one that does not, none."""
    place = 0
    for text in texts:
        found = whole.find(text, place)
        if found >= 0:
            place = found + len(text)
            yield encoded.token_at(place)


def _starts(encoded: Encoded, marks: Sequence[Mark], fitted: Fitted, num_messages: int) -> list[int]:
    """First token of each message and of the generation prompt, ascending; messages joined to another come after it."""
    end = num_messages
    origins = (end if mark.index is None else fitted.origins[mark.index] for mark in marks)
    known: dict[int, int] = {}
    for origin, mark in zip(origins, marks, strict=True):
        known.setdefault(origin, encoded.token_at(mark.start))
    starts = [known[end]]
    for index in reversed(range(num_messages)):
        starts.append(min(known.get(index, starts[-1]), starts[-1]))
    return [0, *starts[-2::-1]]
