from __future__ import annotations

from datetime import datetime

import pytest

from kvstet.chat.template import ChatTemplate
from kvstet.errors import TemplateError

NOW = datetime(2026, 11, 21, 23, 59)
HELLO = [{"role": "user", "content": "Hello"}]


def render(source: str, **variables: object) -> str:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return template.render(HELLO, now=NOW, extra=variables).text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}|{{ eos_token }}", "<s>|</s>"),
        ("{{ tools is none }} {{ documents is none }} {{ add_generation_prompt }}", "True True True"),
        ("{{ enable_thinking }}", "no"),
        ("{{ missing }}{{ missing is defined }}", "False"),
        ("{% if true %}\n  {% set a = 1 %}\nx\n{% endif %}\n", "x\n"),
        (
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i > 2 %}{% break %}{% endif %}"
            "{% endfor %}",
            "023",
        ),
        ("{% set ns = namespace(n=1) %}{% if true %}{% set ns.n = 2 %}{% endif %}{{ ns.n }}", "2"),
        ("{{ strftime_now('%Y-%m-%d %H:%M') }}", "2026-11-21 23:59"),
        ("a{% generation %}b{% set c = 1 %}{% endgeneration %}{{ c is defined }}", "abFalse"),
    ],
)
def test_templates_follow_the_conventions_of_transformers(source: str, text: str) -> None:
    assert render(source, enable_thinking="no") == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", '{"b": "<é>", "a": [1]}'),
        ("sort_keys=true", '{"a": [1], "b": "<é>"}'),
        ("separators=(',', ':')", '{"b":"<é>","a":[1]}'),
        ("indent=1", '{\n "b": "<é>",\n "a": [\n  1\n ]\n}'),
        ("ensure_ascii=true", r'{"b": "<\u00e9>", "a": [1]}'),
    ],
)
def test_tojson_keeps_html_and_takes_the_options_of_json_dumps(arguments: str, text: str) -> None:
    assert render(f"{{{{ value | tojson({arguments}) }}}}", value={"b": "<é>", "a": [1]}) == text


def test_tools_are_seen_as_a_list_and_no_tools_as_none() -> None:
    template = ChatTemplate("{{ tools | tojson }}", bos="", eos="")
    assert template.render(HELLO, tools=({"name": "read"},), now=NOW).text == '[{"name": "read"}]'
    assert template.render(HELLO, tools=(), now=NOW).text == "null"


def test_extra_variables_cannot_replace_the_conversation() -> None:
    assert render("{{ messages[0].content }}", messages=[]) == "Hello"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "refused the conversation: Roles must alternate"),
        ("{{ messages[7].content }}", "refused the conversation: .*no element 7"),
        ("{{ messages.append(1) }}", "refused the conversation: .*unsafe"),
        ("{{ ''.__class__.__mro__ }}", "refused the conversation: .*unsafe"),
        ("{% include 'other' %}", "failed on the conversation: TypeError: no loader"),
        ("{{ 'a' + 1 }}", "failed on the conversation: TypeError"),
        ("{{ 1 / 0 }}", "failed on the conversation: ZeroDivisionError"),
        ("{{ range(10 ** 9) }}", "failed on the conversation: OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed on the conversation: RecursionError"),
        ("{{ strftime_now(1) }}", "failed on the conversation: TypeError"),
    ],
)
def test_whatever_a_template_raises_is_a_template_error(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        render(source)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "syntax error in line 1"),
        ("a\n{% for m in messages %}", "syntax error in line 2"),
        ("{{ messages | nonsense }}", "cannot be compiled: No filter named 'nonsense'"),
        ("{% break %}", "cannot be compiled"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deep"),
    ],
)
def test_a_template_that_cannot_be_compiled_is_refused_when_it_is_made(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatTemplate(source, bos="", eos="")


def test_a_template_tells_its_size_and_its_loops() -> None:
    template = ChatTemplate("{% for m in messages %}{% endfor %}{% for t in tools %}{% endfor %}", bos="", eos="")
    assert repr(template) == "ChatTemplate(67 characters, 1 loops over messages)"
