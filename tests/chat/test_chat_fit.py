from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from kvstet.chat.builtin import builtin_template
from kvstet.chat.fit import fit
from kvstet.chat.template import ChatTemplate
from kvstet.chat.traits import CallShape, Traits, traits_of

DATA = Path(__file__).parent / "data"
READ = {"type": "function", "function": {"name": "read"}}
ABLE = Traits(
    knows_tools=True,
    knows_developer=True,
    first_system="in_place",
    later_system="in_place",
    calls=CallShape(),
    reasoning_key="reasoning_content",
    mixed_calls="accepted",
    call_ids="any",
    calls_at_once="many",
    roles="any",
)

Message = dict[str, object]


def say(role: str, content: str, **fields: object) -> Message:
    return {"role": role, "content": content, **fields}


def calling(*arguments: object) -> list[Message]:
    return [{"type": "function", "function": {"name": "read", "arguments": a}} for a in arguments]


def traits(source: str) -> Traits:
    return traits_of(ChatTemplate(source, bos="<s>", eos="</s>"))


def test_a_template_that_can_do_everything_gets_the_messages_as_they_are() -> None:
    messages = [
        say("developer", "D"),
        say("user", "U"),
        say("system", "S"),
        say("assistant", "", tool_calls=calling({})),
    ]
    fitted = fit(messages, [READ], ABLE)
    assert (list(fitted.messages), fitted.origins, fitted.tools) == (messages, (0, 1, 2, 3), (READ,))


def test_developers_become_system_where_they_are_not_known() -> None:
    fitted = fit([say("developer", "D"), say("user", "U")], (), replace(ABLE, knows_developer=False))
    assert fitted.messages == (say("system", "D"), say("user", "U"))


def test_system_messages_at_the_start_are_joined_and_later_ones_become_reminders() -> None:
    messages = [say("system", "S"), say("system", "T"), say("user", "U"), say("system", "V")]
    fitted = fit(messages, (), replace(ABLE, later_system="elsewhere"))
    assert fitted.messages == (
        say("system", "S\n\nT"),
        say("user", "U"),
        say("user", "<system-reminder>\nV\n</system-reminder>"),
    )
    assert fitted.origins == (0, 2, 3)


def test_calls_and_results_become_text_where_tools_are_not_known() -> None:
    messages = [
        say("user", "U"),
        say("assistant", "A", tool_calls=calling({"b": "é", "a": 1}, "{")),
        say("tool", "R", tool_call_id="1"),
        say("tool", "Q", tool_call_id="2"),
        say("assistant", "done"),
    ]
    fitted = fit(messages, (), replace(ABLE, knows_tools=False))
    assert fitted.messages == (
        say("user", "U"),
        say(
            "assistant",
            'A\n<tool_call>\n{"name": "read", "arguments": {"b": "é", "a": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "read", "arguments": {}\n</tool_call>',
        ),
        say("user", "<tool_response>\nR\n</tool_response>\n<tool_response>\nQ\n</tool_response>"),
        say("assistant", "done"),
    )
    assert fitted.origins == (0, 1, 2, 4)


def test_tools_are_told_as_chatml_tools_tells_them() -> None:
    fitted = fit([say("system", "S"), say("user", "U")], [READ], replace(ABLE, knows_tools=False))
    template = ChatTemplate(builtin_template("chatml-tools"), bos="", eos="")
    printed = fit_and_render(template, [say("system", "S"), say("user", "U")])
    assert f"<|im_start|>system\n{fitted.messages[0]['content']}<|im_end|>\n" in printed
    assert fitted.tools == ()


def fit_and_render(template: ChatTemplate, messages: list[Message]) -> str:
    fitted = fit(messages, [READ], traits_of(template))
    return template.render(fitted.messages, tools=fitted.tools, now=datetime(2026, 1, 1)).text


def test_tools_get_a_system_message_where_there_is_none() -> None:
    fitted = fit([say("user", "U")], [READ], replace(ABLE, knows_tools=False))
    assert [message["role"] for message in fitted.messages] == ["system", "user"]
    assert str(fitted.messages[0]["content"]).startswith("# Tools\n")
    assert fitted.origins == (0, 0)


def test_tools_stand_before_the_first_user_text_where_there_can_be_no_system_message() -> None:
    weak = replace(ABLE, knows_tools=False, first_system="elsewhere")
    fitted = fit([say("assistant", "A"), say("user", "U")], [READ], weak)
    assert str(fitted.messages[1]["content"]).startswith("# Tools\n")
    assert str(fitted.messages[1]["content"]).endswith("</tool_call>\n\nU")
    assert [m["role"] for m in fit([say("assistant", "A")], [READ], weak).messages] == ["user", "assistant"]


def test_calls_take_the_shape_that_the_template_reads() -> None:
    strict = replace(ABLE, calls=CallShape("text", "null"))
    fitted = fit([say("assistant", "", tool_calls=calling({"a": "é"})), say("assistant", "")], (), strict)
    assert fitted.messages[0] == {"role": "assistant", "content": None, "tool_calls": calling('{"a": "é"}')}
    assert fitted.messages[1] == say("assistant", "")


def test_reasoning_takes_the_name_that_the_template_reads() -> None:
    fitted = fit([say("assistant", "A", reasoning_content="hm")], (), replace(ABLE, reasoning_key="thinking"))
    assert fitted.messages == (say("assistant", "A", thinking="hm"),)


def test_text_joins_the_reasoning_where_a_call_may_not_have_both() -> None:
    message = say("assistant", "A", reasoning_content="hm", tool_calls=calling({}))
    [fitted] = fit([message], (), replace(ABLE, mixed_calls="refused")).messages
    assert (fitted["reasoning_content"], fitted["content"]) == ("hm\n\nA", "")
    assert fit([message], (), ABLE).messages == (message,)


def test_the_clean_messages_are_not_changed() -> None:
    messages = [say("system", "S"), say("user", "U"), say("assistant", "", tool_calls=calling({}))]
    before = [dict(message) for message in messages]
    fit(messages, [READ], replace(ABLE, knows_tools=False, calls=CallShape("text", "null")))
    assert messages == before


def test_traits_of_a_template_with_tools() -> None:
    assert traits((DATA / "qwen3.jinja").read_text()) == replace(ABLE, knows_developer=False)


def test_a_template_that_refuses_a_later_system_message_is_found_out() -> None:
    mistral = traits((DATA / "mistral.jinja").read_text())
    assert (mistral.first_system, mistral.later_system) == ("in_place", "elsewhere")


def test_a_template_that_moves_system_messages_to_the_front_is_found_out() -> None:
    assert traits((DATA / "system-first.jinja").read_text()).later_system == "elsewhere"


def test_a_template_that_drops_system_messages_is_found_out() -> None:
    source = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    assert traits(source).first_system == "elsewhere"


@pytest.mark.parametrize(
    ("shown", "shape"),
    [
        ("{{ call.arguments | tojson }}", CallShape("object", "")),
        ("{{ '' + call.arguments }}", CallShape("text", "")),
        ("{{ call.arguments }}", CallShape("text", "")),
        ("{% if m.content is none %}{{ call.arguments | tojson }}{% endif %}", CallShape("object", "null")),
        ("{% if m.content is none %}{{ '' + call.arguments }}{% endif %}", CallShape("text", "null")),
        ("", CallShape()),
    ],
)
def test_the_shape_of_calls_is_found_by_trying(shown: str, shape: CallShape) -> None:
    source = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% set call = c.function %}"
        + shown
        + "{% endfor %}{% endfor %}"
    )
    assert traits(source).calls == shape


def test_a_template_that_refuses_text_beside_reasoning_and_calls_is_found_out() -> None:
    source = (
        "{% for m in messages %}{% if m.thinking and m.content %}{{ raise_exception('both') }}{% endif %}"
        "{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    )
    assert (traits(source).mixed_calls, traits(source).reasoning_key) == ("refused", "thinking")


def test_where_only_ids_are_printed_they_name_the_tools():
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": {}}} for i, n in enumerate("ab")
    ]
    results = [{"role": "tool", "tool_call_id": f"call_{i}", "content": ""} for i in (1, 0)]
    messages = [{"role": "assistant", "content": "", "tool_calls": calls}, *results]
    fitted = fit(messages, (), replace(ABLE, call_ids="named")).messages
    assert [call["id"] for call in fitted[0]["tool_calls"]] == ["functions.a:0", "functions.b:1"]
    assert [message["tool_call_id"] for message in fitted[1:]] == ["functions.b:1", "functions.a:0"]
    assert fit(messages, (), ABLE).messages[1]["tool_call_id"] == "call_1"


def test_a_template_that_prints_only_ids_is_found_out():
    head = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}"
    )
    tail = "{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
    assert traits(f"{head}{{{{ c.id }}}}{tail}").call_ids == "named"
    assert traits(f"{head}{{{{ c.function.name }}}}{{{{ c.id }}}}{tail}").call_ids == "any"


def fitted_roles(messages: list[dict[str, object]], **traits: str) -> list[tuple[object, object]]:
    fitted = fit(messages, (), replace(ABLE, **traits))
    return [(message["role"], message["content"]) for message in fitted.messages]


def test_where_roles_must_alternate_neighbours_are_joined():
    user, more = {"role": "user", "content": "a"}, {"role": "user", "content": "b"}
    said = {"role": "assistant", "content": "c"}
    assert fitted_roles([user, more, said], roles="alternate") == [("user", "a\n\nb"), ("assistant", "c")]
    assert fitted_roles([user, said, said], roles="alternate") == [("user", "a"), ("assistant", "c\n\nc")]
    assert fitted_roles([said, user], roles="alternate") == [("user", ""), ("assistant", "c"), ("user", "a")]
    assert len(fitted_roles([user, more, said], roles="any")) == 3


def test_what_is_joined_stands_for_no_single_message():
    said = {"role": "assistant", "content": "c"}
    fitted = fit([{"role": "user", "content": "a"}, said, said], (), replace(ABLE, roles="alternate"))
    assert fitted.alone == (True, False)
    assert fit([said, said], (), ABLE).alone == (True, True)


def called(*ids: str) -> dict[str, object]:
    calls = [{"id": id, "type": "function", "function": {"name": "f", "arguments": {}}} for id in ids]
    return {"role": "assistant", "content": "x", "tool_calls": calls}


def test_where_a_message_has_one_call_each_has_its_result_behind_it():
    results = [{"role": "tool", "tool_call_id": id, "content": id} for id in "ba"]
    fitted = fit([called("a", "b"), *results, {"role": "user", "content": "c"}], (), replace(ABLE, calls_at_once="one"))
    told = [(message["role"], message["content"]) for message in fitted.messages]
    assert told == [("assistant", "x"), ("tool", "a"), ("assistant", ""), ("tool", "b"), ("user", "c")]
    assert fitted.origins == (0, 2, 0, 1, 3)
    assert not fitted.alone[0]


def test_where_ids_must_be_short_they_are_and_results_follow_them():
    messages = [
        called("call_0123456789", "abcdefgh9"),
        {"role": "tool", "tool_call_id": "call_0123456789", "content": ""},
    ]
    first, result = fit(messages, (), replace(ABLE, call_ids="short")).messages
    ids = [call["id"] for call in first["tool_calls"]]
    assert [len(id) for id in ids] == [9, 9]
    assert ids[1] == "abcdefgh9"
    assert result["tool_call_id"] == ids[0]


def test_what_a_template_refuses_is_found_out():
    loop = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}{{ c.function }}{% endfor %}{% endfor %}"
    check = "{{% for m in messages %}}{{% if {} %}}{{{{ raise_exception('') }}}}{{% endif %}}{{% endfor %}}"
    alternate = check.format("(m.role == 'user') != (loop.index0 % 2 == 0)")
    one = check.format("m.tool_calls and m.tool_calls | length > 1")
    short = check.format("m.tool_calls and m.tool_calls[0].id | length != 9")
    found = [traits(head + loop) for head in ("", alternate, one, short)]
    assert [(t.roles, t.calls_at_once, t.call_ids) for t in found] == [
        ("any", "many", "any"),
        ("alternate", "many", "any"),
        ("any", "one", "any"),
        ("any", "many", "short"),
    ]
