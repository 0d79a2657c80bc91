from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.chat.builtin import BUILTIN_TEMPLATES, builtin_template
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.renderer import Renderer
from kvstet.errors import InvalidRequest, TemplateError
from kvstet.types import MessageSpan, Prompt, Tokenizer

TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in (Path(__file__).parent / "data").glob("*.jinja")}
TEMPLATES |= {f"builtin {name}": builtin_template(name) for name in BUILTIN_TEMPLATES}
TURNS = ["<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|start_header_id|>", "<|eot_id|>"]
TOKENIZER = ByteTokenizer(["<s>", "</s>", "<|im_start|>", "<|im_end|>", *TURNS], bos="<s>", eos="</s>", prefix=["<s>"])
READ = {"type": "function", "function": {"name": "read", "parameters": {}}}

Message = dict[str, object]


def say(role: str, content: object, **fields: object) -> Message:
    return {"role": role, "content": content, **fields}


def parts(prompt: Prompt, tokenizer: Tokenizer = TOKENIZER) -> list[str]:
    """Text of each span."""
    tokens = prompt.tokens.tolist()
    return [b"".join(map(tokenizer.piece, tokens[span.start : span.stop])).decode() for span in prompt.spans]


def test_each_message_has_a_span() -> None:
    prompt = Renderer(builtin_template("chatml"), ByteTokenizer()).render([say("system", "S"), say("user", "é")])
    assert prompt.spans == (
        MessageSpan(0, 11, 0, "system"),
        MessageSpan(11, 21, 1, "user"),
        MessageSpan(21, 32, None, "assistant"),
    )
    assert prompt.text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\né<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.cuts == (11, 21, 32)


def test_without_a_generation_prompt_the_last_message_ends_the_prompt() -> None:
    prompt = Renderer(builtin_template("chatml"), ByteTokenizer()).render(
        [say("user", "U")], add_generation_prompt=False
    )
    assert prompt.spans == (MessageSpan(0, len(prompt.tokens), 0, "user"),)


def test_spans_lie_right_where_messages_do_not_begin_with_special_tokens() -> None:
    prompt = Renderer(TEMPLATES["plain"], TOKENIZER).render(
        [say("user", "é"), say("assistant", "</s>"), say("user", "V")]
    )
    assert parts(prompt) == ["<s>User: é\n\n", "Assistant: </s>\n\n", "User: V\n\n", "Assistant:"]


def test_a_template_that_hides_its_messages_gives_one_span() -> None:
    prompt = Renderer(TEMPLATES["accumulated"], TOKENIZER).render([say("user", "U"), say("assistant", "A")])
    assert prompt.spans == (MessageSpan(0, len(prompt.tokens), None, "prompt"),)


def test_bos_is_not_added_where_the_template_prints_it() -> None:
    for name in ("builtin llama3", "builtin chatml"):
        tokens = Renderer(TEMPLATES[name], TOKENIZER).render([say("user", "U")]).tokens.tolist()
        assert tokens.count(256) == 1
        assert tokens[0] == 256


def test_a_raw_text_is_one_span_with_the_models_own_tokens() -> None:
    prompt = Renderer(builtin_template("chatml"), TOKENIZER).raw("é<|im_end|>")
    assert prompt.tokens.tolist() == [256, 0xC3, 0xA9, 259]
    assert prompt.spans == (MessageSpan(0, 4, None, "prompt"),)
    assert prompt.text == "é<|im_end|>"


def test_half_a_surrogate_pair_is_replaced() -> None:
    renderer = Renderer(builtin_template("chatml"), TOKENIZER)
    assert renderer.raw("a\ud83d").text == "a\ufffd"
    assert parts(renderer.render([say("user", "a\ud83d"), say("user", "b")]))[0].endswith("user\na\ufffd<|im_end|>\n")


def test_content_may_be_a_string_or_parts() -> None:
    renderer = Renderer(builtin_template("chatml"), TOKENIZER)
    as_parts = renderer.render([say("user", [{"type": "text", "text": "U", "cache_control": {"type": "ephemeral"}}])])
    assert as_parts.text == renderer.render([say("user", "U")]).text


def test_variables_reach_the_template() -> None:
    prompt = Renderer(TEMPLATES["qwen3"], TOKENIZER).render([say("user", "U")], extra={"enable_thinking": False})
    assert prompt.text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_a_chatml_template_without_tools_is_replaced_where_tools_are_used() -> None:
    renderer = Renderer(TEMPLATES["chatml"], TOKENIZER)
    calls = [{"id": "1", "function": {"name": "read", "arguments": "{}"}}]
    assert "You are a helpful AI assistant" in renderer.render([say("user", "U")]).text
    for messages, tools in (
        ([say("user", "U")], [READ]),
        ([say("user", "U"), say("assistant", None, tool_calls=calls)], None),
        ([say("user", "U"), say("tool", "R")], None),
    ):
        assert renderer.render(messages, tools=tools).text == (
            Renderer(builtin_template("chatml-tools"), TOKENIZER).render(messages, tools=tools).text
        )
    assert renderer.template.source == TEMPLATES["chatml"]


def test_another_template_without_tools_gets_them_as_text() -> None:
    renderer = Renderer(TEMPLATES["gemma3"], TOKENIZER)
    calls = [{"id": str(i), "function": {"name": "read", "arguments": '{"i": 1}'}} for i in range(2)]
    messages = [
        say("user", "U"),
        say("assistant", None, tool_calls=calls),
        say("tool", "R1"),
        say("tool", "R2"),
        say("assistant", "A"),
    ]
    prompt = renderer.render(messages, tools=[READ])
    call_text = '<tool_call>\n{"name": "read", "arguments": {"i": 1}}\n</tool_call>'
    first, *rest = parts(prompt)
    assert first.startswith("<s><start_of_turn>user\n# Tools\n")
    assert first.endswith("</tool_call>\n\nU<end_of_turn>\n")
    assert rest == [
        f"<start_of_turn>model\n{call_text}\n{call_text}<end_of_turn>\n",
        "<start_of_turn>user\n<tool_response>\nR1\n</tool_response>\n<tool_response>\nR2\n</tool_response><end_of_turn>\n",
        "",
        "<start_of_turn>model\nA<end_of_turn>\n",
        "<start_of_turn>model\n",
    ]
    assert [(span.index, span.role) for span in prompt.spans] == [
        (0, "user"),
        (1, "assistant"),
        (2, "tool"),
        (3, "tool"),
        (4, "assistant"),
        (None, "assistant"),
    ]


def part(text: str, *, is_marked: bool = False) -> dict[str, object]:
    return {"type": "text", "text": text} | ({"cache_control": {"type": "ephemeral"}} if is_marked else {})


def test_a_prompt_is_cut_where_a_client_marks_the_end_of_a_part() -> None:
    renderer = Renderer(TEMPLATES["chatml"], TOKENIZER)
    system = [
        part("Same for all."),
        part("This project. ", is_marked=True),
        part("Today."),
        part("Now", is_marked=True),
    ]
    user = [part("Hi", is_marked=True), part("there"), part("again")]
    messages = [say("system", system), say("user", user), say("assistant", "Hm?"), say("user", "Hi")]
    prompt = renderer.render(messages)
    shown = [b"".join(map(TOKENIZER.piece, prompt.tokens[:cut].tolist())).decode() for cut in prompt.breakpoints]
    first, second = "<|im_start|>system\nSame for all.\nThis project.", "<|im_start|>user\nHi"
    assert shown == ["<s>" + first, "<s>" + prompt.text[: prompt.text.index(second) + len(second)]]
    assert set(prompt.cuts) == {*prompt.breakpoints, *(span.stop for span in prompt.spans)}
    assert prompt.cut_kinds == ("head", "head", "head", "assistant", "user", "other", "other")


def test_a_marked_part_that_is_masked_or_not_shown_cuts_nothing() -> None:
    header = part("x-anthropic-billing-header: cc_version=1;", is_marked=True)
    messages = [say("system", [header, part("S")]), say("user", "U")]
    assert Renderer(TEMPLATES["chatml"], TOKENIZER).render(messages).breakpoints == ()


def test_a_template_that_knows_tools_is_used_for_them() -> None:
    text = Renderer(TEMPLATES["mistral"], TOKENIZER).render([say("user", "U")], tools=[READ]).text
    assert text.startswith('<s>[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "read"')


def test_system_messages_that_were_joined_keep_their_spans() -> None:
    messages = [say("system", "S"), say("developer", "D"), say("user", "U"), say("system", "T")]
    prompt = Renderer(TEMPLATES["system-first"], TOKENIZER).render(messages)
    assert [span.index for span in prompt.spans] == [0, 1, 2, 3, None]
    assert parts(prompt)[0].strip() == "<s><|im_start|>S\n\nD<|im_end|>"
    assert parts(prompt)[1:] == [
        "",
        "<|im_start|>user U<|im_end|>",
        "<|im_start|>user <system-reminder>\nT\n</system-reminder><|im_end|>",
        "<|im_start|>assistant ",
    ]


def test_a_conversation_that_grows_keeps_its_tokens() -> None:
    renderer = Renderer(builtin_template("chatml-tools"), TOKENIZER)
    messages = [say("system", "S"), say("user", "U")]
    before = renderer.render(messages).tokens
    after = renderer.render([*messages, say("assistant", "A"), say("user", "V")]).tokens
    assert after[: len(before)].tolist() == before.tolist()


class Clock:
    """Tells a later day each time."""

    def __init__(self) -> None:
        self.day = 0

    def __call__(self) -> datetime:
        self.day += 1
        return datetime(2026, 1, self.day)


DATED = "{{ strftime_now('%d') }}{% for m in messages %}|{{ m.content }}{% endfor %}"


def test_a_conversation_keeps_the_date_of_its_first_request() -> None:
    renderer = Renderer(DATED, ByteTokenizer(), clock=Clock())
    start = [say("system", "S"), say("user", "U")]
    assert renderer.render(start).text == "01|S|U"
    assert renderer.render([*start, say("assistant", "A"), say("user", "V")]).text == "01|S|U|A|V"


@pytest.mark.parametrize(
    "other", [[say("system", "T"), say("user", "U")], [say("system", "S"), say("user", "V")], [say("user", "SU")]]
)
def test_another_conversation_has_the_date_of_its_own(other: list[Message]) -> None:
    renderer = Renderer(DATED, ByteTokenizer(), clock=Clock())
    renderer.render([say("system", "S"), say("user", "U")])
    assert renderer.render(other).text.startswith("02")


def test_the_caller_may_say_when_a_conversation_started() -> None:
    renderer = Renderer(DATED, ByteTokenizer(), clock=Clock())
    assert renderer.render([say("user", "U")], conversation_started=datetime(2026, 1, 31)).text == "31|U"


def test_what_the_template_refuses_is_a_template_error() -> None:
    template = "{{ raise_exception('No cats here.') if 'cat' in messages[0].content }}"
    with pytest.raises(TemplateError, match="No cats here"):
        Renderer(template, TOKENIZER).render([say("user", "a cat")])


def test_images_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="this model takes text only"):
        Renderer(builtin_template("chatml"), TOKENIZER).render([say("user", [{"type": "image_url"}])])


def test_a_template_with_wrong_syntax_is_refused_when_the_renderer_is_made() -> None:
    with pytest.raises(TemplateError, match="syntax error"):
        Renderer("{% if %}", TOKENIZER)


def test_threads_render_the_same() -> None:
    renderer = Renderer(builtin_template("chatml-tools"), TOKENIZER, cache_bytes=5_000)
    talks = [[say("user", f"{n}" * 50), *(say("assistant", f"{i}") for i in range(20))] for n in range(8)]
    expected = [Renderer(builtin_template("chatml-tools"), TOKENIZER).render(talk).tokens.tolist() for talk in talks]
    with ThreadPoolExecutor(4) as pool:
        prompts = list(pool.map(renderer.render, talks * 4))
    assert [prompt.tokens.tolist() for prompt in prompts] == expected * 4


snippets = st.sampled_from(
    [
        "a",
        "é",
        "🙂",
        " ",
        "\n",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_",
        "</s>",
        "<s>",
        "[INST]",
        "\uf8f0",
        "\uf8f1",
        "\ud83d",
    ]
)
text = st.lists(snippets, max_size=5).map("".join)
plain = st.builds(say, st.sampled_from(["system", "developer", "user", "assistant", "tool"]), text)
call = st.builds(lambda value: {"id": "1", "function": {"name": "read", "arguments": f'{{"path": "{value}"}}'}}, text)
calling = st.builds(
    lambda content, calls, thought: say("assistant", content, tool_calls=calls, reasoning_content=thought),
    text,
    st.lists(call, max_size=2),
    text,
)
conversations = st.lists(st.one_of(plain, calling), min_size=1, max_size=6)
RENDERERS = {name: Renderer(source, TOKENIZER) for name, source in TEMPLATES.items()}


@settings(deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), conversations, st.booleans(), st.booleans())
def test_tokens_are_those_of_the_whole_text_and_spans_cover_them(
    name: str, messages: Sequence[Message], with_tools: bool, add_generation_prompt: bool
) -> None:
    try:
        prompt = RENDERERS[name].render(
            messages, tools=[READ] if with_tools else None, add_generation_prompt=add_generation_prompt
        )
    except TemplateError:
        return
    add_special = not prompt.text.startswith("<s>")
    whole = TOKENIZER.tokenize(prompt.text, add_special=add_special, parse_special=True)
    assert prompt.tokens.tolist() == whole.tolist()
    assert [span.start for span in prompt.spans] == [0, *(span.stop for span in prompt.spans[:-1])]
    assert prompt.spans[-1].stop == len(whole)
    if len(prompt.spans) > 1:
        assert [span.index for span in prompt.spans if span.index is not None] == list(range(len(messages)))
    assert "".join(parts(prompt)) == ("<s>" if add_special else "") + prompt.text
