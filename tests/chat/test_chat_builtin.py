from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from kvstet.chat.builtin import BUILTIN_TEMPLATES, builtin_template, knows_tools, resolve_template
from kvstet.chat.template import ChatTemplate
from kvstet.errors import InvalidRequest, TemplateError

READ = {"type": "function", "function": {"name": "read", "parameters": {}}}
SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ASSISTANT = {"role": "assistant", "content": "A"}


def call(**arguments: object) -> dict[str, object]:
    return {"function": {"name": "read", "arguments": arguments}}


def render(name: str, messages: Sequence[dict[str, object]], tools: Sequence[dict[str, object]] = ()) -> str:
    template = ChatTemplate(builtin_template(name), bos="<s>", eos="</s>")
    return template.render(messages, tools=tools, now=datetime(2026, 1, 1)).text


def test_chatml_prints_every_message_alike() -> None:
    assert render("chatml", [SYSTEM, USER, ASSISTANT, SYSTEM]) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_tools_prints_a_plain_conversation_as_chatml_does() -> None:
    conversation = [SYSTEM, USER, ASSISTANT, SYSTEM, USER]
    assert render("chatml-tools", conversation) == render("chatml", conversation)


def test_chatml_tools_lists_tools_behind_the_system_text() -> None:
    text = render("chatml-tools", [SYSTEM, USER], [READ, READ])
    line = '{"type": "function", "function": {"name": "read", "parameters": {}}}'
    assert text.startswith("<|im_start|>system\nS\n\n# Tools\n\nYou may call")
    assert f"<tools>\n{line}\n{line}\n</tools>" in text
    assert text.endswith("</tool_call><|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n")


def test_chatml_tools_makes_a_system_message_for_tools_where_there_is_none() -> None:
    assert render("chatml-tools", [USER], [READ]).startswith("<|im_start|>system\n# Tools\n\n")


def test_chatml_tools_prints_calls_as_json_and_merges_results() -> None:
    calling = {"role": "assistant", "content": "", "tool_calls": [call(path="é", all=True), call()]}
    result = {"role": "tool", "content": "R"}
    assert render("chatml-tools", [calling, result, result, USER]) == (
        '<|im_start|>assistant\n<tool_call>\n{"name": "read", "arguments": {"path": "é", "all": true}}\n</tool_call>\n'
        '<tool_call>\n{"name": "read", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nR\n</tool_response>\n<tool_response>\nR\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    )


def test_chatml_tools_prints_arguments_that_are_no_json_as_they_are() -> None:
    calling = {"role": "assistant", "content": "A", "tool_calls": [{"function": {"name": "read", "arguments": "{"}}]}
    assert 'A\n<tool_call>\n{"name": "read", "arguments": {}\n</tool_call>' in render("chatml-tools", [USER, calling])


def test_chatml_tools_shows_reasoning_after_the_last_user_message_only() -> None:
    thinking = {**ASSISTANT, "reasoning_content": "\nhm\n"}
    assert render("chatml-tools", [USER, thinking, USER, thinking]) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nhm\n</think>\n\nA<|im_end|>\n<|im_start|>assistant\n"
    )


def test_llama3_prints_headers() -> None:
    assert render("llama3", [SYSTEM, USER]) == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_gemma_puts_system_texts_into_the_next_user_turn() -> None:
    assert render("gemma", [SYSTEM, SYSTEM, USER, ASSISTANT, SYSTEM, USER]) == (
        "<s><start_of_turn>user\nS\n\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n"
    )


def test_gemma_makes_a_turn_for_a_system_text_without_a_user() -> None:
    assert render("gemma", [SYSTEM, ASSISTANT, SYSTEM]) == (
        "<s><start_of_turn>user\nS<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n"
        "<start_of_turn>user\nS<end_of_turn>\n<start_of_turn>model\n"
    )


def test_mistral_puts_system_texts_into_the_next_user_turn() -> None:
    assert render("mistral", [SYSTEM, USER, ASSISTANT, SYSTEM, USER, SYSTEM]) == (
        "<s>[INST]S\n\nU[/INST]A</s>[INST]S\n\nU[/INST][INST]S[/INST]"
    )


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_a_longer_conversation_begins_like_a_shorter_one(name: str) -> None:
    short = render(name, [SYSTEM, USER])
    assert render(name, [SYSTEM, USER, ASSISTANT, USER]).startswith(short)


def test_the_models_own_template_is_used_unless_there_is_an_option() -> None:
    assert resolve_template(None, "own") == "own"
    assert resolve_template("gemma", "own") == builtin_template("gemma")


@pytest.mark.parametrize("missing", [None, ""])
def test_a_model_without_a_template_gets_chatml_with_tools(missing: str | None) -> None:
    assert resolve_template(None, missing) == builtin_template("chatml-tools")


@pytest.mark.parametrize("source", ["{{ messages }}", "{% for m in messages %}{% endfor %}"])
def test_an_option_may_be_the_template_itself(source: str) -> None:
    assert resolve_template(source, "own") == source


def test_an_option_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("é{{ 1 }}", encoding="utf-8")
    assert resolve_template(str(file), None) == "é{{ 1 }}"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"'vicuna'.*chatml, chatml-tools, gemma, llama3, mistral"):
        resolve_template("vicuna", None)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin1.jinja").write_bytes(b"\xe9")
    for path in (tmp_path, tmp_path / "latin1.jinja"):
        with pytest.raises(InvalidRequest, match="cannot be read"):
            resolve_template(str(path), None)


@pytest.mark.parametrize(
    ("source", "known"),
    [
        ("{% if tools %}{% endif %}", True),
        ("{{ tools | tojson }}", True),
        ("{{ 'tools' }} tools {# {{ tools }} #}", False),
        ("{% set tools = 1 %}", False),
        ("{{ message.tools }}", False),
    ],
)
def test_a_template_knows_tools_if_it_reads_them(source: str, known: bool) -> None:
    assert knows_tools(source) is known


def test_only_chatml_tools_knows_tools_of_the_built_in_ones() -> None:
    assert [name for name in BUILTIN_TEMPLATES if knows_tools(builtin_template(name))] == ["chatml-tools"]


def test_a_template_with_wrong_syntax_is_a_template_error() -> None:
    with pytest.raises(TemplateError, match="syntax error"):
        knows_tools("{% if %}")
