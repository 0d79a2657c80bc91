"""What is derived from templates, and how soon a parser tells what it knows."""

from __future__ import annotations

import time

import pytest
from reply_families import FAMILIES, Call, Family, Said, family, tools_for
from reply_messages import read

from kvstet.chat.deltas import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    ParsedCall,
    ParsedReply,
    ReasoningDelta,
    TextDelta,
    message_of,
)
from kvstet.chat.reply.format import format_of
from kvstet.chat.reply.known import HERMES
from kvstet.chat.reply.syntax import (
    JsonArguments,
    KeyedArguments,
    ListedCalls,
    MarkedCalls,
    Marker,
    ObjectCalls,
    PythonCalls,
    Reasoning,
    TagArguments,
)
from kvstet.chat.template import ChatTemplate

TOOLS = tools_for(Said("", "", (Call("read", {"path": "a", "limit": 1}),)))


def marker(*parts: str, before: str = "", after: str = "") -> Marker:
    return Marker(parts, before, after)


HAND_WRITTEN = {"gpt-oss", "granite-3.3", "lfm2", "kimi-k2-thinking"}
TOLD_IN_HERMES_FORM = {"deepseek-r1", "gemma-3", "smollm3"}


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_all_but_a_few_families_are_derived(family: Family) -> None:
    by_hand, hermes = family.name in HAND_WRITTEN, family.name in TOLD_IN_HERMES_FORM
    assert family.format.calls_source == ("known" if by_hand else "hermes" if hermes else "derived")
    if family.reasoning != "never" and family.name != "gpt-oss":
        assert family.format.reasoning is not None
        assert family.format.reasoning.source == "rendered"


@pytest.mark.parametrize(
    ("name", "syntax"),
    [
        ("qwen2.5", ListedCalls(ObjectCalls(), (marker("<tool_call>", before="\n"),), marker("</tool_call>"))),
        ("mistral-nemo", ListedCalls(ObjectCalls(), (marker("[TOOL_CALLS]"),), Marker())),
        (
            "command-r7b",
            ListedCalls(
                ObjectCalls("tool_name", "parameters"), (marker("<|START_ACTION|>"),), marker("<|END_ACTION|>")
            ),
        ),
        ("llama-3.1", ListedCalls(ObjectCalls("name", "parameters"), (), Marker())),
        ("llama-4-pythonic", ListedCalls(PythonCalls(), (), Marker())),
        ("lfm2.5", ListedCalls(PythonCalls(), (marker("<|tool_call_start|>"),), marker("<|tool_call_end|>"))),
        (
            "kimi-k2",
            MarkedCalls(
                section_open=marker("<|tool_calls_section_begin|>"),
                call_open=marker("<|tool_call_begin|>"),
                id_before="",
                name_prefix="functions.",
                id_after=":",
                name_close=marker("<|tool_call_argument_begin|>"),
                arguments=JsonArguments(),
                call_close=marker("<|tool_call_end|>"),
                section_close=marker("<|tool_calls_section_end|>"),
            ),
        ),
        (
            "qwen3-coder",
            MarkedCalls(
                section_open=Marker(),
                call_open=marker("<tool_call>", "<function=", before="\n\n"),
                id_before="",
                name_prefix="",
                id_after="",
                name_close=marker(">"),
                arguments=TagArguments(
                    marker("<parameter=", before="\n"),
                    marker(">", after="\n"),
                    marker(">", after="\n"),
                    marker("</parameter>", before="\n"),
                ),
                call_close=marker("</function>", "</tool_call>", before="\n"),
                section_close=Marker(),
            ),
        ),
        (
            "gemma-4",
            MarkedCalls(
                section_open=Marker(),
                call_open=marker("<|tool_call>"),
                id_before="",
                name_prefix="call:",
                id_after="",
                name_close=Marker(),
                arguments=KeyedArguments('<|"|>'),
                call_close=marker("<tool_call|>"),
                section_close=Marker(),
            ),
        ),
    ],
)
def test_calls_are_derived(name: str, syntax: object) -> None:
    assert family(name).format.calls == (syntax,)


@pytest.mark.parametrize(
    ("name", "reasoning"),
    [
        ("qwen3", Reasoning(marker("<think>", after="\n"), marker("</think>", before="\n", after="\n\n"))),
        ("magistral", Reasoning(marker("[THINK]"), marker("[/THINK]"))),
        ("gemma-4", Reasoning(marker("<|channel>thought", after="\n"), marker("<channel|>", before="\n"))),
        ("deepseek-v3.1", Reasoning(marker("<think>"), marker("</think>"), "named")),
        ("qwen2.5", None),
    ],
)
def test_the_place_of_reasoning_is_derived(name: str, reasoning: Reasoning | None) -> None:
    assert family(name).format.reasoning == reasoning


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[9].content }}",
        "nothing of the conversation",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson }}{{ tools }}{% endfor %}",
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ tools and c.function.name }}"
        "{{ c.function.arguments.values() | join }}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_tells_nothing_gives_a_format_all_the_same(source: str) -> None:
    form = format_of(ChatTemplate(source, bos="", eos=""))
    assert form.calls
    assert read(form.parser(tools=TOOLS), ["Hello"]) == [TextDelta("Hello")]


def test_a_template_without_tools_is_read_in_the_form_that_kvstet_tells_its_model() -> None:
    form = format_of(ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}", bos="", eos=""))
    assert form.calls == (HERMES,)
    text = 'Now.\n<tool_call>\n{"name": "read", "arguments": {"path": "a"}}\n</tool_call>'
    assert message_of(read(form.parser(tools=TOOLS), [text])) == ParsedReply(
        "", "Now.", (ParsedCall("read", '{"path": "a"}'),)
    )


def test_what_a_derived_syntax_cannot_read_back_is_not_used() -> None:
    source = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() %}<key>{{ k }}</key><value>{{ v }}END</value>{% endfor %}"
        "</call>{% endfor %}{% endfor %}{{ tools | length }}"
    )
    numbers_its_values = source.replace("END", "{{ '.' * loop.index0 }}")
    assert format_of(ChatTemplate(source.replace("END", ""), bos="", eos="")).calls_source == "derived"
    assert format_of(ChatTemplate(numbers_its_values, bos="", eos="")).calls_source == "hermes"


def test_the_end_of_the_prompt_tells_whether_reasoning_is_open() -> None:
    form = family("qwen3").format
    text = "why\n</think>\n\nso<|im_end|>"
    open_ = message_of(read(form.parser(prompt_end="<|im_start|>assistant\n<think>\n"), [text]))
    assert (open_.reasoning, open_.text) == ("why", "so")
    closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert message_of(read(form.parser(prompt_end=closed), ["so<think>"])).text == "so<think>"
    assert message_of(read(form.parser(), ["\n<think>\nwhy\n</think>\n\nso"])) == ParsedReply("why", "so", ())


def test_the_end_of_the_prompt_tells_the_open_channel() -> None:
    form = family("gpt-oss").format
    final = form.parser(prompt_end="<|start|>assistant<|channel|>final<|message|>")
    assert message_of(read(final, ["so<|return|>"])) == ParsedReply("", "so", ())
    analysis = form.parser(prompt_end="<|start|>assistant<|channel|>analysis<|message|>")
    assert message_of(read(analysis, ["why<|end|>"])) == ParsedReply("why", "", ())


def test_text_and_arguments_are_given_out_as_they_come() -> None:
    parser = family("qwen3").format.parser(tools=TOOLS)
    assert parser.feed("Some te") == [TextDelta("Some te")]
    assert parser.feed("xt <tool_") == [TextDelta("xt")]
    assert parser.feed("box>") == [TextDelta(" <tool_box>")]
    assert parser.feed('\n<tool_call>\n{"name": "re') == []
    assert parser.feed('ad", "arguments": {"pa') == [CallBegin(0, "read"), ArgumentsDelta(0, '{"pa')]
    assert parser.feed('th": "a') == [ArgumentsDelta(0, 'th": "a')]
    assert parser.feed('"}}') == [ArgumentsDelta(0, '"}'), CallEnd(0)]
    assert parser.feed("\n</tool_call><|im_end|>") == parser.flush() == []


def test_strings_between_tags_are_given_out_as_they_come() -> None:
    parser = family("qwen3-coder").format.parser(tools=TOOLS)
    assert parser.feed("<tool_call>\n<function=read>\n<parameter=path>\n") == [
        CallBegin(0, "read"),
        ArgumentsDelta(0, '{"path": "'),
    ]
    assert parser.feed('a "b"\n</par') == [ArgumentsDelta(0, 'a \\"b\\"')]
    assert parser.feed("t") == [ArgumentsDelta(0, "\\n</part")]
    assert parser.feed("\n</parameter>\n<parameter=limit>\n1") == [ArgumentsDelta(0, '", "limit": ')]
    assert parser.feed("0\n</parameter>\n</function>") == [ArgumentsDelta(0, "10")]
    assert parser.feed("\n</tool_call>") == [ArgumentsDelta(0, "}"), CallEnd(0)]


def test_reasoning_is_given_out_as_it_comes() -> None:
    parser = family("glm-4.5").format.parser(prompt_end="<think>")
    assert parser.feed("so <") == [ReasoningDelta("so ")]
    assert parser.feed("b> </thin") == [ReasoningDelta("<b> ")]
    assert parser.feed("k>\nYes") == [TextDelta("Yes")]


def arguments_of(tools: list[dict[str, object]], value: str) -> str:
    parser = family("qwen3-coder").format.parser(tools=tools)
    text = f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n</function>\n</tool_call>"
    return message_of(read(parser, [text])).calls[0].arguments


@pytest.mark.parametrize(
    ("schema", "value", "json"),
    [
        ({"type": "string"}, "12", '"12"'),
        ({"type": "string"}, "null", '"null"'),
        ({"type": "integer"}, "12", "12"),
        ({"type": "integer"}, "many", '"many"'),
        ({"type": "boolean"}, "True", "true"),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"type": ["string", "null"]}, "12", '"12"'),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "12", "12"),
        ({"enum": ["1", "2"]}, "1", '"1"'),
        ({"const": 1}, "1", "1"),
        ({"$ref": "#/$defs/number"}, "1", "1"),
        ({"$ref": "#/$defs/number/circle"}, "1", "1"),
        ({"type": "array"}, "['a', None, True]", '["a", null, true]'),
        ({"type": "object"}, '{"a": 1}', '{"a": 1}'),
        ({"type": "object"}, "{'a': 1e999}", "\"{'a': 1e999}\""),
        ({}, "12", "12"),
        ({}, "NaN", '"NaN"'),
        ({}, '"quoted"', '"\\"quoted\\""'),
        ({}, "word", '"word"'),
        (None, "[1]", "[1]"),
        ("malformed", "[1]", "[1]"),
    ],
)
def test_types_come_from_the_schema(schema: object, value: str, json: str) -> None:
    parameters = {
        "properties": {} if schema is None else {"x": schema},
        "$defs": {"number": {"type": "number"}, "circle": {"$ref": "#/$defs/circle"}},
    }
    tools: list[dict[str, object]] = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert arguments_of(tools, value) == f'{{"x": {json}}}'


@pytest.mark.parametrize("tools", [[{}], [{"function": None}], [{"function": {"name": "f", "parameters": []}}]])
def test_malformed_tools_say_nothing(tools: list[dict[str, object]]) -> None:
    valid = [*tools, {"type": "function", "function": {"name": "g"}}]
    assert arguments_of(valid, "1") == '{"x": 1}'


def test_a_long_reply_takes_time_in_proportion() -> None:
    value = '[{"a": "\\n"}, ' * 20_000 + "0" + "]" * 20_000
    text = "word <b> " * 20_000 + f'\n<tool_call>\n{{"name": "read", "arguments": {value}}}\n</tool_call>'
    form = family("qwen3").format
    started = time.process_time()
    whole = form.parser(tools=TOOLS).feed(text)
    pieces = read(form.parser(tools=TOOLS), (text[start : start + 4] for start in range(0, len(text), 4)))
    assert time.process_time() - started < 20  # quadratic time would be minutes
    assert message_of(whole) == message_of(pieces)
    assert message_of(whole).calls == (ParsedCall("read", value),)


def test_formats_and_parsers_tell_what_they_are() -> None:
    form = family("qwen3").format
    assert "Marker('\\n</think>\\n\\n')" in repr(form)
    parser = form.parser(tools=TOOLS)
    parser.feed("Hello <tool")
    assert "Source(' <tool')" in repr(parser)
