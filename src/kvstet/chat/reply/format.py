"""How one model writes its replies, found out from its chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Literal, cast

from kvstet.chat.deltas import message_of
from kvstet.chat.reply.derivation import derive_calls, derive_ends, derive_reasoning, derive_text_open
from kvstet.chat.reply.grammar import CallDemand, CallGrammar, SchemaRules, call_grammar, harmony_grammar
from kvstet.chat.reply.harmony import HARMONY_MARKERS, HarmonyReader
from kvstet.chat.reply.json_text import decode as json_value
from kvstet.chat.reply.known import HERMES, known_calls, known_ends, named_reasoning, speaks_harmony
from kvstet.chat.reply.parser import ReplyParser
from kvstet.chat.reply.probes import KEYS, NAMES, TOOLS, VALUES, Probes
from kvstet.chat.reply.sink import Sink
from kvstet.chat.reply.source import Source
from kvstet.chat.reply.syntax import CallSyntax, Marker, Reasoning
from kvstet.chat.reply.turn import TurnForm, TurnReader
from kvstet.chat.reply.types import ArgumentTypes
from kvstet.chat.template import ChatTemplate
from kvstet.errors import GrammarError

_CHECKED = ({KEYS[0]: VALUES[0], KEYS[1]: VALUES[1]},)


@dataclass(frozen=True, slots=True)
class ReplyFormat:
    """Where reasoning, text and calls stand in a reply."""

    style: Literal["turn", "harmony"]
    """Harmony (gpt-oss) makes each part a message of its own, with a header."""
    reasoning: Reasoning | None
    text_open: Marker
    """What the template prints in front of text, besides the header of the message."""
    ends: tuple[Marker, ...]
    """End the text, and are cut off."""
    calls: tuple[CallSyntax, ...]
    """The first is how this model is shown to write calls; others are understood as well."""
    calls_source: Literal["derived", "known", "hermes"]
    """Derived from the template, written down by hand, or what kvstet tells models whose template knows no tools."""

    def parser(self, *, tools: Sequence[Mapping[str, object]] = (), prompt_end: str = "") -> ReplyParser:
        """A parser for one reply.

        ``tools`` in OpenAI's form; without them nothing is a call. ``prompt_end`` is the end of the rendered prompt:
        it tells whether reasoning is open already.
        """
        source, sink, types = Source(), Sink(), ArgumentTypes(tools)
        if self.style == "harmony":
            return ReplyParser(source, sink, HarmonyReader(source, sink, types, prompt_end))
        form = TurnForm(self.reasoning, self.text_open, self.ends, self.calls)
        reader = TurnReader(form, source, sink, types, in_reasoning=self.reasons_behind(prompt_end))
        return ReplyParser(source, sink, reader)

    def grammar(
        self,
        tools: Sequence[Mapping[str, object]],
        to_rules: SchemaRules,
        demand: CallDemand,
        *,
        in_reasoning: bool = False,
    ) -> CallGrammar | None:
        """What holds a reply to the tools; None: this format has no grammar. Raises GrammarError."""
        try:
            return self._grammar(tools, to_rules, demand, in_reasoning=in_reasoning)
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            # A schema may say anything: a property that is true, a list where an object belongs.
            raise GrammarError(f"A tool's schema cannot be turned into a grammar: {error}", param="tools") from error

    def _grammar(
        self, tools: Sequence[Mapping[str, object]], to_rules: SchemaRules, demand: CallDemand, *, in_reasoning: bool
    ) -> CallGrammar | None:
        if self.style == "harmony":
            return harmony_grammar(tools, to_rules, demand)
        if not self.calls:
            return None
        return call_grammar(self.calls[0], tools, to_rules, demand, reasoning=self.reasoning, in_reasoning=in_reasoning)

    @property
    def markers(self) -> set[str]:
        """All text that stands around values, in no order. What only ends the turn is none of it."""
        return set(_texts((self.reasoning, self.text_open, self.calls))) | (
            set(HARMONY_MARKERS) if self.style == "harmony" else set()
        )

    def reasons_behind(self, prompt_end: str) -> bool:
        """Whether a prompt that ends like this has opened the reasoning."""
        return self.reasoning is not None and prompt_end.rstrip().endswith(self.reasoning.open.parts[-1])


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for item in cast("tuple[object, ...]", value):
            yield from _texts(item)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _texts(getattr(value, each.name))


def format_of(template: ChatTemplate) -> ReplyFormat:
    """How this template writes replies. It never raises.

    What cannot be derived falls back: calls to an entry of `kvstet.chat.reply.known`, and then to JSON within
    ``<tool_call>`` (what a model is told whose template knows no tools); reasoning to a pair of tags that the template
    names; without any of these, everything is text.
    """
    if speaks_harmony(template.source):
        return ReplyFormat("harmony", None, Marker(), (), (), "known")
    probes = Probes(template)
    derived = derive_calls(probes)
    if derived is not None and not _reads_probe(derived, probes):
        derived = None
    calls, calls_source = _choose(derived, known_calls(template.source), knows_tools=probes.traits.knows_tools)
    reasoning = (
        derive_reasoning(probes, derived)
        or derive_reasoning(probes.thinking(), derived)
        or named_reasoning(template.source)
    )
    ends = derive_ends(probes, derived or calls[0])
    heads = {end.head for end in ends}
    more = tuple(Marker((end,)) for end in known_ends(template.source) if end not in heads)
    return ReplyFormat("turn", reasoning, derive_text_open(probes, reasoning), ends + more, calls, calls_source)


def _reads_probe(calls: CallSyntax, probes: Probes) -> bool:
    """Whether this reads what the template prints; it is trusted where the template refuses the probe."""
    tail = probes.reply(calls=_CHECKED)
    if tail is None:
        return True
    shown = ReplyFormat("turn", None, Marker(), (), (calls,), "derived")
    parser = shown.parser(tools=TOOLS)
    reply = message_of([*parser.feed(tail.removeprefix(probes.prompt or "")), *parser.flush()])
    read = [(call.name, json_value(call.arguments)) for call in reply.calls]
    return read == list(zip(NAMES, _CHECKED, strict=False))


def _choose(
    derived: CallSyntax | None, known: CallSyntax | None, *, knows_tools: bool
) -> tuple[tuple[CallSyntax, ...], Literal["derived", "known", "hermes"]]:
    own = derived or known
    if own is None:
        return (HERMES,), "hermes"
    if not knows_tools and own != HERMES:
        return (HERMES, own), "hermes"
    return (own,), "derived" if derived is not None else "known"
