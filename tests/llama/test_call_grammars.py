"""Grammars of tool calls, against what the templates of current models print and what libllama lets through."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstet.chat.fit import fit
from kvstet.chat.messages import normalise
from kvstet.chat.reply.format import ReplyFormat, format_of
from kvstet.chat.reply.grammar import ANY_CALL, CallDemand, CallGrammar
from kvstet.chat.template import ChatTemplate
from kvstet.chat.traits import traits_of
from kvstet.llama.grammar import check_grammar
from kvstet.llama.model import Model
from kvstet.llama.sampler import GrammarSampler, Trigger
from kvstet.llama.schema import schema_rules
from kvstet.llama.vocab import Vocab
from kvstet.types import GREEDY

FAMILIES = Path(__file__).parents[1] / "chat" / "families"
UNMARKED = {"llama-3.1", "llama-3.2", "llama-4", "llama-4-pythonic"}
"""Nothing announces a call, so that a grammar can bind only where one is required."""

PRINTS_NO_CALLS = {"granite-3.3", "lfm2"}
PRINTS_PYTHON = {"seed-oss"}
"""Where a value is no string, their templates print it as Python would; models write JSON."""

ESCAPES_NOTHING = {"lfm2.5"}
"""Its template prints quotes within quotes."""

NAMES = sorted(path.stem for path in FAMILIES.glob("*.jinja"))
HARMONY = {"gpt-oss"}
"""It reasons in messages of their own, so that it cannot be held to a call from the start."""


def tool(name: str, properties: dict[str, Any], required: list[str], **more: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required, **more}
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}


TOOLS = [
    tool(
        "edit_file",
        {
            "path": {"type": "string"},
            "text": {"type": "string"},
            "line": {"type": "integer"},
            "options": {"$ref": "#/$defs/options"},
        },
        ["path", "text"],
        **{"$defs": {"options": {"type": "object", "properties": {"all": {"type": "boolean"}}, "required": ["all"]}}},
    ),
    tool("list_files", {}, []),
]
EDIT = {"path": "src/größe.py", "text": "if a < b:\n\tprint(\"</b>\", 'x')\n", "line": 12, "options": {"all": True}}
EDIT_ONLY = {"path": "a", "text": ""}


@pytest.fixture(scope="module")
def vocab(smollm2: Model) -> Vocab:
    return smollm2.vocab


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate((FAMILIES / f"{name}.jinja").read_text(), bos="<s>", eos="</s>")


def written(template: ChatTemplate, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the template prints of calls, to the end of the conversation."""
    tool_calls = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": called, "arguments": json.dumps(arguments)}}
        for i, (called, arguments) in enumerate(calls)
    ]
    messages = [{"role": "user", "content": "@@"}, {"role": "assistant", "content": "", "tool_calls": tool_calls}]
    fitted = fit(normalise(messages), TOOLS, traits_of(template))
    text = template.render(
        fitted.messages, tools=fitted.tools, add_generation_prompt=False, now=datetime(2026, 1, 1)
    ).text
    return text.partition("@@")[2]


def behind(form: ReplyFormat, grammar: CallGrammar, text: str) -> str:
    """The calls: from behind the trigger to the end of the turn."""
    trigger = min(grammar.triggers, key=lambda trigger: text.find(trigger) % (len(text) + 1))
    calls = text.partition(trigger)[2]
    for end in form.ends:
        calls = calls.partition(end.head)[0]
    return calls.removesuffix("</s>")


def fits(vocab: Vocab, grammar: str, text: str) -> bool:
    """Whether the text is one that the grammar wants, to its end."""
    sampler = GrammarSampler(vocab, grammar)
    end = next(token for token in range(vocab.num_tokens) if vocab.is_end(token))
    is_fitting = sampler.accept_text(text.encode()) and sampler._allows(end)
    sampler.close()
    return is_fitting


@pytest.mark.parametrize("name", [name for name in NAMES if name not in UNMARKED | PRINTS_NO_CALLS])
def test_what_the_template_prints_fits_its_grammar(name: str, vocab: Vocab) -> None:
    template = template_of(name)
    form = format_of(template)
    grammar = form.grammar(TOOLS, schema_rules, ANY_CALL)
    assert grammar is not None
    check_grammar(grammar.text)
    edit = {**EDIT, "options": None} if name in PRINTS_PYTHON else dict(EDIT)
    if name in ESCAPES_NOTHING:
        edit["text"] = str(edit["text"]).replace("'", "")
    edit = {key: value for key, value in edit.items() if value is not None}
    for calls in ([("edit_file", edit)], [("list_files", {})], [("edit_file", EDIT_ONLY)]):
        text = behind(form, grammar, written(template, calls))
        assert fits(vocab, grammar.text, text), text


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HARMONY])
def test_a_call_that_is_required_fits_from_the_start(name: str, vocab: Vocab) -> None:
    form = format_of(template_of(name))
    demand = CallDemand(is_required=True, is_parallel=False, names=("list_files",))
    grammar = form.grammar(TOOLS[1:], schema_rules, demand)
    assert grammar is not None
    assert grammar.triggers == ()
    check_grammar(grammar.text)
    assert not fits(vocab, grammar.text, "I would rather not.")


HERMES_BAD = [
    '{"name": "remove_file", "arguments": {}}',
    '{"name": "edit_file", "arguments": {"path": "a"}}',
    '{"name": "edit_file", "arguments": {"path": "a", "text": 1}}',
    '{"name": "edit_file", "arguments": {"path": "a", "text": "b", "line": "1"}}',
    '{"name": "list_files"}',
]


@pytest.mark.parametrize("call", HERMES_BAD)
def test_arguments_that_break_the_schema_do_not_fit(call: str, vocab: Vocab) -> None:
    grammar = format_of(template_of("qwen3")).grammar(TOOLS, schema_rules, ANY_CALL)
    assert grammar is not None
    assert fits(vocab, grammar.text, '\n{"name": "list_files", "arguments": {}}\n</tool_call>')
    assert not fits(vocab, grammar.text, f"\n{call}\n</tool_call>")


def test_one_call_alone_is_one_call(vocab: Vocab) -> None:
    form = format_of(template_of("qwen3"))
    call = '\n{"name": "list_files", "arguments": {}}\n</tool_call>'
    for demand, is_fitting in [(ANY_CALL, True), (CallDemand(is_parallel=False), False)]:
        grammar = form.grammar(TOOLS, schema_rules, demand)
        assert grammar is not None
        assert fits(vocab, grammar.text, call)
        assert fits(vocab, grammar.text, f"{call}\n<tool_call>{call}") == is_fitting


@pytest.mark.parametrize("seed", range(5))
def test_text_between_tags_ends_at_the_first_closing_tag(seed: int, vocab: Vocab) -> None:
    grammar = format_of(template_of("qwen3-coder")).grammar(TOOLS, schema_rules, ANY_CALL)
    assert grammar is not None
    random = np.random.default_rng(seed)
    parts = ["<", "/", "</", "</p", "</para", "parameter", "a", "\n", "</paramete", ">"]
    text = "".join(random.choice(parts, 12)).replace("</parameter>", "")
    path, content = "<parameter=path>\n{}\n</parameter>", "<parameter=text>\nb\n</parameter>"
    call = f"\n<function=edit_file>\n{path}\n{content}\n</function>\n</tool_call>"
    assert fits(vocab, grammar.text, call.format(text))
    assert not fits(vocab, grammar.text, call.format("a\n</parameter>"))


# When a grammar begins to bind


def pushed(trigger: Trigger, text: str) -> list[bytes | None]:
    return [trigger.push(character.encode()) for character in text]


LAZY = replace(GREEDY, grammar="root ::= .", grammar_triggers=("<call>", "<|c|>"))


@pytest.mark.parametrize("text", ["<call>", "Let me see. <call>", "<cal<call>", "<|c<call>", "<<|c|>"])
def test_a_trigger_is_found_at_its_last_character(text: str) -> None:
    found = pushed(Trigger(LAZY), text)
    assert found[-1] == b""
    assert set(found[:-1]) <= {None}


def test_what_a_token_says_behind_the_trigger_is_told() -> None:
    assert Trigger(LAZY).push(b"So <call>{") == b"{"


def test_reasoning_triggers_nothing() -> None:
    sampling = replace(LAZY, grammar_pause=("<think>", "</think>"))
    assert set(pushed(Trigger(sampling), "<think>I could <call></think>")) == {None}
    assert pushed(Trigger(sampling), "<think>I could <call></think><call>")[-1] == b""
    assert set(pushed(Trigger(replace(sampling, is_grammar_paused=True)), "I could <call>")) == {None}
    assert pushed(Trigger(replace(sampling, is_grammar_paused=True)), "x</think><call>")[-1] == b""
