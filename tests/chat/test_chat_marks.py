from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import jinja2.ext
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvstet.chat.builtin import BUILTIN_TEMPLATES, builtin_template
from kvstet.chat.marks import MARK, Marker, Rendered
from kvstet.chat.template import ChatTemplate
from kvstet.errors import TemplateError

NOW = datetime(2026, 11, 21)
PUBLISHED = {path.stem: path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "data").glob("*.jinja")}
TEMPLATES = PUBLISHED | {f"builtin {name}": builtin_template(name) for name in BUILTIN_TEMPLATES}
WITHOUT_MARKS = {"captured", "accumulated"}

Message = dict[str, object]


class GenerationTag(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: object) -> object:
        return caller()


def transformers_render(source: str, messages: Sequence[Message], **variables: object) -> str:
    """What transformers would print, by an environment made for this test alone."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = NOW.strftime
    return environment.from_string(source).render(
        messages=messages, documents=None, bos_token="<s>", eos_token="</s>", **variables
    )


def render(name: str, messages: Sequence[Message], **options: object) -> Rendered:
    return ChatTemplate(TEMPLATES[name], bos="<s>", eos="</s>").render(messages, now=NOW, **options)


def parts(rendered: Rendered) -> list[str]:
    """Text of each message, and of the generation prompt."""
    starts = [mark.start for mark in rendered.marks]
    return [rendered.text[start:stop] for start, stop in zip(starts, [*starts[1:], None], strict=True)]


def talk(*turns: str) -> list[Message]:
    """Messages from texts like "user: hi"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]


snippets = st.sampled_from(
    ["a", " ", "\n", "é", "🙂", "<|im_start|>", "<think>", "</think>", "\uf8f0", "\uf8f1", "0:0", "{{ 1 }}"]
)
text = st.lists(snippets, max_size=6).map("".join)
call = st.builds(lambda value: {"id": "123456789", "function": {"name": "read", "arguments": {"path": value}}}, text)
plain_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": text}
)
calling_message = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": text, "reasoning_content": text, "tool_calls": st.lists(call, max_size=2)}
)
alternating = st.lists(st.tuples(text, text), min_size=1, max_size=4).map(
    lambda pairs: [
        message
        for question, answer in pairs
        for message in ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    ]
)
conversations = st.lists(plain_message | calling_message, min_size=1, max_size=8) | alternating


@settings(deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), conversations, st.booleans(), st.booleans())
def test_marks_never_change_what_the_template_prints(
    name: str, messages: list[Message], with_tools: bool, add_generation_prompt: bool
) -> None:
    tools = [{"name": "read", "parameters": {}}] if with_tools else None
    try:
        expected = transformers_render(
            TEMPLATES[name], messages, tools=tools, add_generation_prompt=add_generation_prompt
        )
    except (jinja2.TemplateError, TypeError):
        with pytest.raises(TemplateError):
            render(name, messages, tools=tools, add_generation_prompt=add_generation_prompt)
        return
    rendered = render(name, messages, tools=tools, add_generation_prompt=add_generation_prompt)
    assert rendered.text == expected
    check_marks(name, rendered, len(messages))


def check_marks(name: str, rendered: Rendered, num_messages: int) -> None:
    if name in WITHOUT_MARKS:
        assert rendered.marks == ()
    elif rendered.marks:
        assert [mark.index for mark in rendered.marks] == [*range(num_messages), None]
        assert "".join(parts(rendered)) == rendered.text


def test_each_message_of_a_chatml_template_has_its_text() -> None:
    rendered = render("chatml", talk("system: S", "user: U", "assistant: A"))
    assert parts(rendered) == [
        "<|im_start|>system\nS<|im_end|>\n",
        "<|im_start|>user\nU<|im_end|>\n",
        "<|im_start|>assistant\nA<|im_end|>\n",
        "<|im_start|>assistant\n",
    ]


def test_a_default_system_text_belongs_to_the_first_message() -> None:
    first, generation = parts(render("chatml", talk("user: U")))
    assert first.startswith("<|im_start|>system\nYou are")
    assert first.endswith("<|im_start|>user\nU<|im_end|>\n")
    assert generation == "<|im_start|>assistant\n"


def test_a_system_message_printed_before_the_loop_has_the_tools_and_its_own_text() -> None:
    tools = [{"name": "read"}]
    system, user, assistant, generation = parts(
        render("qwen3", talk("system: S", "user: U", "assistant: A"), tools=tools)
    )
    assert system == '<|im_start|>system\nS\n\n# Tools\n<tools>\n{"name": "read"}\n</tools><|im_end|>\n'
    assert user == "<|im_start|>user\nU<|im_end|>\n"
    assert assistant == "<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n"
    assert generation == "<|im_start|>assistant\n"


def test_tool_results_in_one_turn_have_a_part_each() -> None:
    assert parts(render("qwen3", talk("user: U", "tool: R1", "tool: R2", "user: V")))[1:4] == [
        "<|im_start|>user\n<tool_response>\nR1\n</tool_response>",
        "\n<tool_response>\nR2\n</tool_response><|im_end|>\n",
        "<|im_start|>user\nV<|im_end|>\n",
    ]


def test_a_system_message_that_is_taken_out_of_the_messages_keeps_the_numbers_right() -> None:
    system, user, generation = parts(render("llama3", talk("system: S", "user: U")))
    assert system == ("<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 21 Nov 2026\n\nS<|eot_id|>")
    assert user == "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    assert generation == "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_a_system_text_within_the_first_user_turn_belongs_to_the_user() -> None:
    assert parts(render("gemma3", talk("system: S", "user: U", "assistant: A"))) == [
        "<s>",
        "<start_of_turn>user\nS\n\nU<end_of_turn>\n",
        "<start_of_turn>model\nA<end_of_turn>\n",
        "<start_of_turn>model\n",
    ]


def test_passes_that_print_nothing_are_no_messages() -> None:
    assert parts(render("mistral", talk("user: U", "assistant: A", "user: V"))) == [
        "<s>[INST]U[/INST]",
        "A</s>",
        "[INST]V[/INST]",
        "",
    ]


def test_positions_in_a_part_of_the_messages_are_told_from_positions_in_all() -> None:
    assert parts(render("indices", talk("system: S", "user: U", "assistant: A"))) == [
        "<|im_start|>system\nS<|im_end|>\n",
        "<|im_start|>user\nU<|im_end|>\n012",
        "<|im_start|>assistant\nA<|im_end|>\n012",
        "",
    ]


def test_results_printed_by_a_nested_loop_are_found_there() -> None:
    assert parts(render("nested", talk("user: U", "assistant: A", "tool: R1", "tool: R2", "user: V"))) == [
        "<turn>user\nU</turn>\n",
        "<turn>assistant\nA",
        "<result>R1</result>",
        "<result>R2</result></turn>\n",
        "<turn>user\nV</turn>\n",
        "<turn>assistant\n",
    ]


def test_a_message_printed_out_of_order_does_not_hide_the_others() -> None:
    assert parts(render("system-first", talk("system: S", "user: U", "system: T", "assistant: A"))) == [
        "<|im_start|>S<|im_end|>\n\n\n\n<|im_start|>T<|im_end|>\n\n\n\n",
        "<|im_start|>user U<|im_end|>",
        "",
        "<|im_start|>assistant A<|im_end|>",
        "<|im_start|>assistant ",
    ]


def test_a_message_that_prints_nothing_is_empty() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rendered = ChatTemplate(source, bos="", eos="").render(talk("user: a", "user: ", "user: b"), now=NOW)
    assert parts(rendered) == ["a", "", "b", ""]


def test_one_object_sent_twice_is_two_messages() -> None:
    message = {"role": "user", "content": "U"}
    turn = "<|im_start|>user\nU<|im_end|>\n"
    assert parts(render("qwen3", [message, message])) == [turn, turn, "<|im_start|>assistant\n"]


def test_the_markers_of_one_render_are_plain_text_in_another() -> None:
    messages = talk("user: U", "user: V")
    marker = Marker(messages)
    mark = marker.functions[MARK]
    assert callable(mark)
    messages[1]["content"] = f"{mark(0, messages[0])}\uf8f0:0:0\uf8f1"
    assert parts(render("chatml", messages))[1] == f"<|im_start|>user\n{messages[1]['content']}<|im_end|>\n"


@pytest.mark.parametrize("name", sorted(WITHOUT_MARKS))
def test_a_template_that_looks_at_what_its_loops_printed_has_no_marks(name: str) -> None:
    assert render(name, talk("user: U", "assistant: A")).marks == ()


@pytest.mark.parametrize(
    "source",
    [
        "{% set a = messages %}{% set b = a[:] %}{% for m in b %}{{ m.content }};{% endfor %}",
        "{% with list = messages %}{% for m in list %}{{ m.content }};{% endfor %}{% endwith %}",
        "{% set ns = namespace(all=messages) %}{% for m in ns.all %}{{ m.content }};{% endfor %}",
        "{% set ns = namespace() %}{% set ns.all = messages %}{% for m in ns.all %}{{ m.content }};{% endfor %}",
        "{% for i in range(messages | count) %}{{ messages[i].content }};{% endfor %}",
        "{% set n = messages | length %}{% for i in range(n) %}{{ messages[i].content }};{% endfor %}",
        "{% for m, n in [(messages[0], 1), (messages[1], 2)] %}{{ m.content }};{% endfor %}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content }};{% endfor %}",
    ],
)
def test_messages_are_found_under_other_names(source: str) -> None:
    rendered = ChatTemplate(source, bos="", eos="").render(talk("user: a", "user: b"), now=NOW)
    assert parts(rendered) == ["a;", "b;", ""]


def test_numbers_that_are_no_positions_of_messages_mark_nothing() -> None:
    source = "{% set calls = messages[0].calls %}{% for c in range(calls | length) %}{{ c }};{% endfor %}"
    message = {"role": "user", "content": "", "calls": [1, 2]}
    assert ChatTemplate(source, bos="", eos="").render([message, message], now=NOW).marks == ()
