"""Whatever a model writes: nothing raises, and nothing that it said is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reply_families import FAMILIES, Call, Family, Said, family, tools_for
from reply_messages import are_well_formed, in_pieces, read

from kvstet.chat.deltas import CallBegin, CallEnd, Delta, TextDelta, message_of
from kvstet.chat.reply.syntax import ListedCalls, MarkedCalls, ObjectCalls

each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
often = settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
cuts = st.lists(st.integers(1, 12), min_size=1, max_size=4)

TOOLS = tools_for(Said("", "", (Call("read", {"path": "a", "limit": 1, "lines": [1]}), Call("write", {"text": "a"}))))
SOUND = Said("why", "so", (Call("read", {"path": 'a "b"\n', "limit": 3}), Call("write", {"text": "é </x>", "n": [{}]})))
WORD = re.compile(r"w\d+w")


def soup(family: Family) -> st.SearchStrategy[str]:
    """Words, whole and broken markers of this family, and pieces of calls, in any order."""
    reply, _ = family.reply(family.held(SOUND))
    markers = re.findall(r"<[^<>]*>|\[/?[A-Z_]+\]|[{}\[\]():,=\"'\n\\]|\w+|\s+|.", reply)
    whole = [*family.ends, *family.opens, *family.thinks, "read", "write", '{"name": "read", "arguments": {', "null"]
    parts = st.one_of(
        st.sampled_from(markers),
        st.sampled_from(whole),
        st.sampled_from(whole).map(lambda marker: marker[: len(marker) // 2 + 1]),
        st.just("word"),
    )
    return st.lists(parts, max_size=30).map(_numbered)


def _numbered(parts: list[str]) -> str:
    """Each word is one of its own."""
    return "".join(f" w{number}w " if part == "word" else part for number, part in enumerate(parts))


def everything(deltas: list[Delta]) -> str:
    reply = message_of(deltas)
    return "\0".join([reply.reasoning, reply.text, *(f"{call.name}\0{call.arguments}" for call in reply.calls)])


def damaged(family: Family) -> st.SearchStrategy[str]:
    """A reply of which pieces are missing or doubled, with words in between."""
    reply, _ = family.reply(family.held(SOUND))
    tokens = re.findall(r"<[^<>]*>|\[/?[A-Z_]+\]|\w+|\s+|.", reply)

    def change(choices: bytes) -> str:
        pieces = dict(enumerate(["", "{0}{0}", "{0} w{1}w ", "{0} w{1}w "] * 10))
        numbered = enumerate(zip(tokens, choices, strict=True))
        return "".join(pieces.get(255 - choice, "{0}").format(token, n) for n, (token, choice) in numbered)

    return st.binary(min_size=len(tokens), max_size=len(tokens)).map(change)


def drops_members(family: Family) -> bool:
    """Whether calls have more than name and arguments: ids, or other members of a JSON object."""
    syntax = family.format.calls[0] if family.format.calls else None
    if isinstance(syntax, ListedCalls):
        return isinstance(syntax.items, ObjectCalls)
    return isinstance(syntax, MarkedCalls) and bool(syntax.id_after)


@each_family
@often
@given(data=st.data(), sizes=cuts)
def test_no_word_is_lost_whatever_is_wrong(family: Family, data: st.DataObject, sizes: list[int]) -> None:
    text = data.draw(soup(family) | damaged(family))
    deltas = read(family.format.parser(tools=TOOLS), in_pieces(text, sizes))
    assert are_well_formed(deltas)
    if drops_members(family) and any(isinstance(delta, CallBegin) for delta in deltas):
        return
    kept = everything(deltas)
    assert [word for word in WORD.findall(text) if word not in kept] == []


@each_family
@often
@given(data=st.data(), sizes=cuts)
def test_a_reply_can_be_cut_off_anywhere(family: Family, data: st.DataObject, sizes: list[int]) -> None:
    held = family.held(SOUND)
    reply, prompt = family.reply(held)
    stop = data.draw(st.integers(0, len(reply)))
    deltas = read(family.format.parser(tools=tools_for(held), prompt_end=prompt[-200:]), in_pieces(reply[:stop], sizes))
    assert are_well_formed(deltas)
    parsed = message_of(deltas)
    assert held.reasoning.startswith(parsed.reasoning[: len(held.reasoning)])
    names = [call.name for call in parsed.calls]
    assert names == [call.name for call in held.calls][: len(names)]


@each_family
@often
@given(data=st.data(), sizes=cuts)
def test_without_tools_calls_are_text_with_their_markers(family: Family, data: st.DataObject, sizes: list[int]) -> None:
    text = data.draw(soup(family) | damaged(family))
    deltas = read(family.format.parser(), in_pieces(text, sizes))
    assert not any(isinstance(delta, CallBegin) for delta in deltas)
    assert all(word in everything(deltas) for word in WORD.findall(text))


@each_family
def test_without_tools_reasoning_is_still_told_from_text(family: Family) -> None:
    held = family.held(SOUND)
    reply, prompt = family.reply(held)
    parsed = message_of(read(family.format.parser(prompt_end=prompt[-200:]), [reply]))
    assert parsed.reasoning == held.reasoning
    assert not parsed.calls
    if held.calls:
        assert all(call.name in parsed.text for call in held.calls)
        assert all(marker in parsed.text for marker in family.opens[:1])


@each_family
@often
@given(data=st.data(), sizes=cuts)
def test_where_a_reply_is_cut_into_pieces_makes_no_difference(
    family: Family, data: st.DataObject, sizes: list[int]
) -> None:
    text = data.draw(soup(family) | damaged(family))
    whole = read(family.format.parser(tools=TOOLS), [text])
    pieces = read(family.format.parser(tools=TOOLS), in_pieces(text, sizes))
    assert message_of(pieces) == message_of(whole)
    assert [type(d) for d in whole if isinstance(d, CallBegin | CallEnd)] == [
        type(d) for d in pieces if isinstance(d, CallBegin | CallEnd)
    ]


def parsed(name: str, text: str, prompt_end: str = "") -> tuple[str, str, list[tuple[str, str]]]:
    reply = message_of(read(family(name).format.parser(tools=TOOLS, prompt_end=prompt_end), list(text)))
    return reply.reasoning, reply.text, [(call.name, call.arguments) for call in reply.calls]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", "<tool_call>\nno call\n</tool_call>"),
        ("qwen3", '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>'),
        ("qwen3", '<tool_call>\n{"arguments": {"path": "a"}}\n</tool_call>'),
        ("qwen3", "<tool_call></tool_call>"),
        ("qwen3", '<tool_call>\n{"name": "read", "args": {"path": "a"}}\n</tool_call>'),
        ("qwen3", "<tool_call>"),
        ("qwen3", "<tool_"),
        ("qwen3-coder", "<tool_call>\n<function=two words>\n</function>\n</tool_call>"),
        ("qwen3-coder", "<tool_call>\nread(path)\n</tool_call>"),
        ("glm-4.5", "<tool_call>a long sentence about this\nand that</tool_call>"),
        ("devstral", "[TOOL_CALLS] is what I write"),
        ("devstral", "[TOOL_CALLS]read[ARGS]nothing"),
        ("llama-3.1", '{"name": "unknown_tool", "parameters": {}}'),
        ("llama-3.1", '{"answer": 42}'),
        ("llama-4-pythonic", "[1, 2, 3]"),
        ("llama-4-pythonic", "[nothing(path='a')]"),
        ("kimi-k2", "<|tool_calls_section_begin|><|tool_calls_section_end|>"),
        ("gpt-oss", "<|start|>assistant and no more"),
        ("gemma-4", "<|tool_call>call:read"),
    ],
)
def test_what_is_no_call_is_text_with_its_markers(name: str, text: str) -> None:
    assert parsed(name, text) == ("", text, [])


@pytest.mark.parametrize(
    ("name", "text", "arguments"),
    [
        ("qwen3", '<tool_call>\n{"name": "read", "arguments": {"path": "a', '{"path": "a'),
        ("qwen3", '<tool_call>\n{"name": "read", "arguments": {"path": <b> } }</tool_call>', '{"path": <b> } }'),
        ("qwen3", '<tool_call>{"name": "read", "arguments": {"path": "a"}</tool_call>', '{"path": "a"}'),
        ("qwen3-coder", "<tool_call>\n<function=read>\n<parameter=path>\nab", '{"path": "ab'),
        (
            "kimi-k2",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.read:0<|tool_call_argument_begin|>{]",
            "{]",
        ),
    ],
)
def test_of_a_call_that_has_begun_the_rest_is_arguments(name: str, text: str, arguments: str) -> None:
    assert parsed(name, text) == ("", "", [("read", arguments)])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("qwen3", '<tool_call>{"arguments": {"path": "a"}, "name": "read"}</tool_call>'),
        ("qwen3", '<tool_call>\n\n{"name": "read", "arguments": "{\\"path\\": \\"a\\"}"}\n</tool_call>'),
        ("qwen3", '<tool_call>[{"name": "read", "parameters": {"path": "a"}, "id": 1}]</tool_call>'),
        ("qwen3", '<tool_call>{"name": "read", "arguments": {"path": "a"}}'),
        ("qwen3-coder", "<tool_call><function=read><parameter=path>a</parameter></function></tool_call>"),
        ("llama-3.1", ' {"type": "function", "name": "read", "parameters": {"path": "a"}}'),
        ("llama-4-pythonic", "[read(path = 'a',)]"),
        ("kimi-k2", '<|tool_calls_section_begin|> <|tool_call_begin|>read<|tool_call_argument_begin|>{"path": "a"}'),
        ("gpt-oss", '<|channel|>commentary to=functions.read <|constrain|>json<|message|>{"path": "a"}<|call|>'),
        ("gpt-oss", ' to=functions.read<|channel|>commentary json<|message|>{"path": "a"}'),
    ],
)
def test_deviations_that_leave_no_doubt_are_calls(name: str, text: str) -> None:
    reasoning, said, [(called, arguments)] = parsed(name, text, "<|start|>assistant" if name == "gpt-oss" else "")
    assert (reasoning, said, called, arguments.replace(" ", "")) == ("", "", "read", '{"path":"a"}')


def test_a_name_that_no_tool_has_is_a_call_all_the_same_where_a_marker_says_so() -> None:
    text = '<tool_call>\n{"name": "reed", "arguments": {}}\n</tool_call>'
    assert parsed("qwen3", text) == ("", "", [("reed", "{}")])


def test_a_marker_within_a_marker_does_not_hide_the_call_behind_it() -> None:
    text = '<tool_call>\n<tool_call>\n{"name": "read", "arguments": {}}\n</tool_call>'
    assert parsed("qwen3", text) == ("", "<tool_call>", [("read", "{}")])


def test_arguments_nested_ten_thousand_deep_are_passed_on() -> None:
    deep = "[" * 10_000 + "]" * 10_000
    assert parsed("qwen3", f'<tool_call>{{"name": "read", "arguments": {deep}}}</tool_call>')[2] == [("read", deep)]
    assert parsed("gemma-4", f"<|tool_call>call:read{{a:{deep}}}<tool_call|>")[2] == [("read", f'{{"a": {deep}}}')]
    assert parsed("lfm2", f"<|tool_call_start|>[read(a={deep})]")[2] == [("read", f'{{"a": {deep}}}')]
    tagged = f"<tool_call>\n<function=read>\n<parameter=lines>\n{deep}\n</parameter>\n</function>\n</tool_call>"
    assert parsed("qwen3-coder", tagged)[2] == [("read", f'{{"lines": "{deep}"}}')]


def test_what_is_fed_behind_the_end_is_text() -> None:
    parser = family("qwen3").format.parser(tools=TOOLS)
    assert parser.flush() == []
    assert parser.feed("late") == [TextDelta("late")]
    assert parser.feed("") == parser.flush() == []
