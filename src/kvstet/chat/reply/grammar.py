"""Grammars that hold a model to its tools: which names there are, and what their arguments look like.

A grammar begins to bind where the model begins a call, behind the marker that triggers it; where a call is required it
binds from the start. JSON is held to the tool's schema in full; values in other spellings to the types, names and order
of the arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from kvstet.chat.reply.syntax import (
    CallSyntax,
    JsonArguments,
    KeyedArguments,
    ListedCalls,
    MarkedCalls,
    Marker,
    ObjectCalls,
    Reasoning,
    TagArguments,
)
from kvstet.chat.reply.value_rules import KEYED_RULES, PYTHON_RULES, keyed_arguments, python_arguments

HARMONY_MESSAGE = "<|message|>"
HARMONY_RECIPIENT = "to=functions."

Schema = dict[str, object]
SchemaRules = Callable[[Mapping[str, Schema]], str]
"""JSON schemas by name -> GBNF rules of those names. Raises GrammarError."""

_SPACE = "ws ::= [ \\t\\n]{0,8}\n"
_ID = "[a-zA-Z0-9_-]{1,40}"


@dataclass(frozen=True, slots=True)
class CallDemand:
    """What the client wants called."""

    is_required: bool = False
    """At least one call."""
    is_parallel: bool = True
    """Maybe several."""
    names: tuple[str, ...] | None = None
    """Of the tools that may be called; None: any."""


ANY_CALL = CallDemand()


@dataclass(frozen=True, slots=True)
class CallGrammar:
    """GBNF of what follows a trigger; without triggers, of the whole reply."""

    text: str
    triggers: tuple[str, ...] = ()
    pause: tuple[str, str] | None = None
    """Markers between which triggers are text."""
    is_paused: bool = False


def call_grammar(
    syntax: CallSyntax,
    tools: Sequence[Mapping[str, object]],
    to_rules: SchemaRules,
    demand: CallDemand,
    *,
    reasoning: Reasoning | None = None,
    in_reasoning: bool = False,
) -> CallGrammar | None:
    """None: this format has no grammar, or nothing that could trigger it.

    Where a call is required, the reply may still reason before. ``in_reasoning``: the prompt has opened that. Raises
    GrammarError where a tool's schema cannot be used.
    """
    builder = _Builder(to_rules)
    body = builder.listed(syntax, tools) if isinstance(syntax, ListedCalls) else builder.marked(syntax, tools)
    if body is None:
        return None
    opens = syntax.opens if isinstance(syntax, ListedCalls) else (syntax.open,)
    again = _again(syntax)
    more = f" (ws {_sequence(again, body)})*" if demand.is_parallel and again is not None else ""
    close = f" (ws {_text(syntax.section_close)})?" if isinstance(syntax, MarkedCalls) and syntax.section_close else ""
    calls = f"{body}{more}{close} ws"
    if not demand.is_required:
        if not opens:
            return None
        root = f"ws {_sequence(_rest(opens[0]), calls)}"
        pause = (reasoning.open.head, reasoning.close.head) if reasoning else None
        return CallGrammar(builder.grammar(root), tuple(marker.head for marker in opens), pause, in_reasoning)
    thought = builder.thought(reasoning, in_reasoning=in_reasoning) if reasoning else ""
    first = _text(opens[0]) if opens else ""
    return CallGrammar(builder.grammar(f"{thought} ws {_sequence(first, calls)}"))


def harmony_grammar(
    tools: Sequence[Mapping[str, object]], to_rules: SchemaRules, demand: CallDemand
) -> CallGrammar | None:
    """As `call_grammar`, for gpt-oss. It reasons in a message of its own, so that a call cannot be required of it."""
    if demand.is_required:
        return None
    builder = _Builder(to_rules)
    return CallGrammar(builder.grammar(builder.message(tools)), (HARMONY_RECIPIENT,))


class _Builder:
    """Collects rules."""

    def __init__(self, to_rules: SchemaRules) -> None:
        self._to_rules = to_rules
        self._schemas: dict[str, Schema] = {}
        self._rules: list[str] = []

    def grammar(self, root: str) -> str:
        schemas = self._to_rules(self._schemas) if self._schemas else ""
        return f"root ::= {root}\n{_SPACE}{''.join(self._rules)}{schemas}"

    def listed(self, syntax: ListedCalls, tools: Sequence[Mapping[str, object]]) -> str | None:
        """One call, or a list of calls, and what closes it."""
        if not isinstance(syntax.items, ObjectCalls):
            self._rules.append(PYTHON_RULES)
            for number, (name, schema, _) in enumerate(map(_parts, tools)):
                self._rule(f"call-{number}", f'{_literal(name)} ws "(" ws {python_arguments(schema)} ws ")"')
            self._rule("item", " | ".join(f"call-{number}" for number in range(len(tools))))
            self._rule("items", 'item | "[" ws item (ws "," ws item)* ws "]"')
            return _sequence("items", _text(syntax.close))
        items = syntax.items
        calls: list[str] = []
        for number, (name, schema, definitions) in enumerate(map(_parts, tools)):
            self._schemas[f"args-{number}"] = schema | definitions
            # Some templates show ids, before or behind.
            calls.append(
                _sequence(
                    f'"{{" ws (id-field ws "," ws)? {_literal(json.dumps(items.name_key))}',
                    f'":" ws {_literal(json.dumps(name, ensure_ascii=False))}',
                    f'"," ws {_literal(json.dumps(items.arguments_key))}',
                    f'":" ws args-{number} ws ("," ws id-field ws)? "}}"',
                )
            )
        self._rule("id-field", r'("\"tool_call_id\"" | "\"id\"") ws ":" ws "\"" [^"\\\n]{0,64} "\""')
        self._rule("item", " | ".join(calls))
        self._rule("items", 'item | "[" ws item ("," ws item)* ws "]"')
        return _sequence("items", _text(syntax.close))

    def marked(self, syntax: MarkedCalls, tools: Sequence[Mapping[str, object]]) -> str | None:
        """What follows the marker in front of one call."""
        calls: list[str] = []
        for number, (name, schema, definitions) in enumerate(map(_parts, tools)):
            arguments = self._arguments(syntax, f"args-{number}", schema, definitions)
            if arguments is None:
                return None
            id_after = f" ({_literal(syntax.id_after)} {_ID})?" if syntax.id_after else ""
            named = f"{_literal(syntax.name_prefix + name)}{id_after}"
            calls.append(_sequence(named, _text(syntax.name_close), arguments))
        self._rule("named", " | ".join(calls))
        id_before = f"({_ID} {_literal(syntax.id_before)})? " if syntax.id_before else ""
        return _sequence(f"{id_before}named", _text(syntax.call_close))

    def thought(self, reasoning: Reasoning, *, in_reasoning: bool) -> str:
        """Reasoning that the reply may begin with, or has begun with."""
        self._all_but("thought", reasoning.close.head)
        body = f"thought {_literal(reasoning.close.head)}"
        return body if in_reasoning else f"(ws {_text(reasoning.open)} {body})?"

    def _arguments(self, syntax: MarkedCalls, name: str, schema: Schema, definitions: Schema) -> str | None:
        match syntax.arguments:
            case JsonArguments():
                self._schemas[name] = schema | definitions
                return name
            case TagArguments() as tags:
                return self._tags(tags, name, schema, definitions)
            case KeyedArguments(quote):
                return self._keyed(quote, name, schema)

    def _tags(self, tags: TagArguments, name: str, schema: Schema, definitions: Schema) -> str:
        """One pair of tags for each argument, in the order of the schema; strings stand as they are."""
        properties = cast("Mapping[str, Schema]", schema.get("properties") or {})
        required = cast("Sequence[str]", schema.get("required") or ())
        parts: list[str] = []
        for number, (key, value) in enumerate(properties.items()):
            rule = f"{name}-{number}"
            if value.get("type") == "string" and "enum" not in value and "const" not in value:
                close, text = tags.string_key_close, f"{name}-text"
                self._all_but(text, tags.value_close.head)
            else:
                close, text = tags.other_key_close, f"{rule}-value"
                self._schemas[text] = value | definitions
            value_text = text if text.endswith("-text") else f"ws {text} ws"
            self._rule(
                rule,
                f"{_sequence(_text(tags.key_open), _literal(key), _text(close))} {value_text}"
                f" {_sequence(_literal(tags.value_close.head), _rest(tags.value_close))} ws",
            )
            parts.append(rule if key in required else f"({rule})?")
        return " ".join(parts)

    def _keyed(self, quote: str, name: str, schema: Schema) -> str:
        if KEYED_RULES not in self._rules:
            self._rules.append(KEYED_RULES)
            self._all_but("keyed-text", quote)
            self._rule("keyed-string", f"{_literal(quote)} keyed-text {_literal(quote)}")
        self._rule(name, f'"{{" ws {keyed_arguments(schema, quote)} ws "}}"')
        return name

    def message(self, tools: Sequence[Mapping[str, object]]) -> str:
        """Harmony: what follows the recipient's namespace, to the end of the message."""
        self._all_but("header", HARMONY_MESSAGE)
        for number, (name, schema, definitions) in enumerate(map(_parts, tools)):
            self._schemas[f"args-{number}"] = schema | definitions
            self._rule(
                f"call-{number}",
                f"{_literal(name)} [^a-zA-Z0-9_.-] header {_literal(HARMONY_MESSAGE)} ws args-{number}",
            )
        self._rule("call", " | ".join(f"call-{number}" for number in range(len(tools))))
        return 'call ws "<|call|>"?'

    def _all_but(self, name: str, end: str) -> None:
        """Any text that does not contain ``end``: an automaton, whose state is how much of it was just seen."""
        if any(rule.startswith(f"{name} ::=") for rule in self._rules):
            return
        for seen in range(len(end)):
            others = sorted({c for c in end[: seen + 1] if c != end[seen]})
            moves = [f"{_class(c)} {_state(name, _overlap(end, end[:seen] + c))}" for c in others]
            moves.append(f"{_class(*others, end[seen], negated=True)} {name}")
            if seen + 1 < len(end):
                moves.append(f"{_class(end[seen])} {_state(name, seen + 1)}")
            # Empty last: what was seen may be the start of the end.
            self._rule(_state(name, seen), " | ".join([*moves, '""']))

    def _rule(self, name: str, body: str) -> None:
        self._rules.append(f"{name} ::= {body}\n")


def _again(syntax: CallSyntax) -> str | None:
    """What stands before a further call; None: there can be none but in a list."""
    if isinstance(syntax, ListedCalls):
        return _text(syntax.opens[0]) if syntax.opens and syntax.close else None
    return _text(syntax.call_open)


def _parts(tool: Mapping[str, object]) -> tuple[str, Schema, Schema]:
    """Name, schema of the arguments, and what the schema's references may point to."""
    function = cast("Mapping[str, object]", tool["function"])
    schema = cast("Schema", function.get("parameters") or {"type": "object"})
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    return str(function["name"]), schema, definitions


def _sequence(*parts: str) -> str:
    """One behind the other, with any white space between them, but none around them."""
    return " ws ".join(part for part in parts if part)


def _text(marker: Marker) -> str:
    return _sequence(*map(_literal, marker.parts))


def _rest(marker: Marker) -> str:
    """The marker behind its head."""
    return _sequence(*map(_literal, marker.parts[1:]))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else '""'


def _class(*characters: str, negated: bool = False) -> str:
    escaped = "".join(f"\\x{ord(c):02x}" if ord(c) < 128 and not c.isalnum() else c for c in characters)
    return f"[{'^' if negated else ''}{escaped}]"


def _state(name: str, seen: int) -> str:
    return f"{name}-{seen}" if seen else name


def _overlap(end: str, text: str) -> int:
    """How much of the beginning of ``end`` the text ends with."""
    return next(n for n in range(min(len(text), len(end) - 1), -1, -1) if text.endswith(end[:n]))
