from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstet.chat.deltas import ParsedCall, ParsedReply
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import FILE, Ledger, purge
from kvstet.chat.renderer import Renderer
from kvstet.types import Prompt

TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}{{ '\n' }}"
    "{%- if message.reasoning_content and loop.last -%}<think>{{ message.reasoning_content }}</think>{%- endif -%}"
    "{{ message.content }}"
    "{%- for call in message.tool_calls -%}"
    "<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{%- endfor -%}"
    "<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
    "{%- if tools -%}{%- endif -%}"
)
MERGED = 1000
"""A token that prints "th"; no text is tokenised into it."""
END = 258


class Merging(ByteTokenizer):
    def piece(self, token: int, *, special: bool = True) -> bytes:
        return b"th" if token == MERGED else super().piece(token, special=special)


@pytest.fixture
def renderer() -> Renderer:
    return Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=Ledger())


USER = {"role": "user", "content": "Hi"}
MORE = {"role": "user", "content": "And?"}


def generated(text: str) -> list[int]:
    """As the model spells it, which is not how the tokenizer does."""
    tokens: list[int] = []
    for number, part in enumerate(text.split("th")):
        tokens += ([MERGED] if number else []) + list(part.encode())
    return tokens


def said(renderer: Renderer, text: str, reply: ParsedReply | None = None, messages: Any = (USER,)) -> list[int]:
    """The model says it in answer to the messages. The tokens of prompt and reply."""
    prompt = renderer.render(messages)
    tokens = [*generated(text), END]
    renderer.remember(prompt, tokens, reply or ParsedReply(text=text), has_ended=True)
    return [*prompt.tokens.tolist(), *tokens]


def goes_on(prompt: Prompt, seen: list[int]) -> bool:
    return prompt.tokens[: len(seen)].tolist() == seen


def test_a_reply_comes_back_as_it_was_generated(renderer: Renderer):
    seen = said(renderer, "the path")
    prompt = renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE])
    assert goes_on(prompt, seen)
    assert prompt.num_echoed_messages == 1
    assert prompt.text.endswith("the path<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n")


def test_the_messages_lie_where_they_did(renderer: Renderer):
    plain = renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE])
    said(renderer, "the path")
    echoed = renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE])
    assert [span.role for span in echoed.spans] == [span.role for span in plain.spans]
    lengths = [span.stop - span.start for span in echoed.spans]
    assert lengths == [n - 2 * (i == 1) for i, n in enumerate(span.stop - span.start for span in plain.spans)]
    assert echoed.spans[-1].stop == len(echoed.tokens)


@pytest.mark.parametrize("text", ["the paths", "The path", "the path.", ""])
def test_a_changed_reply_does_not(renderer: Renderer, text: str):
    said(renderer, "the path")
    prompt = renderer.render([USER, {"role": "assistant", "content": text}, MORE])
    assert prompt.num_echoed_messages == 0
    assert MERGED not in prompt.tokens


def test_white_space_around_it_may_change(renderer: Renderer):
    seen = said(renderer, "\nthe path\n", ParsedReply(text="\nthe path\n"))
    assert goes_on(renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE]), seen)


ARGUMENTS = '{"path":  "thé", "n":[1 , 2.0]}'


def call(arguments: str, name: str = "read", id: str = "call_1") -> dict[str, Any]:
    calls = [{"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def called(renderer: Renderer) -> list[int]:
    return said(renderer, f"<call>read {ARGUMENTS}", ParsedReply(calls=(ParsedCall("read", ARGUMENTS),)))


@pytest.mark.parametrize("arguments", [ARGUMENTS, r'{"n":[1,2.0],"path":"th\u00e9"}', '{"path": "thé", "n": [1, 2.0]}'])
@pytest.mark.parametrize("id", ["call_1", "toolu_9"])
def test_arguments_may_be_written_anew_and_ids_may_change(renderer: Renderer, arguments: str, id: str):
    seen = called(renderer)
    assert goes_on(renderer.render([USER, call(arguments, id=id), MORE]), seen)


EDIT = {
    "name": "edit",
    "parameters": {
        "type": "object",
        "properties": {"old": {"type": "string"}, "all": {"type": "boolean", "default": False}},
    },
}
EDIT_TOOLS = [{"type": "function", "function": EDIT}]


@pytest.mark.parametrize(
    ("said_arguments", "arguments", "is_same"),
    [
        ('{"old": "th"}', '{"old": "th", "all": false}', True),
        ('{"old": "th", "all": false}', '{"old": "th", "all": false}', True),
        ('{"old": "th"}', '{"old": "th", "all": true}', False),
        ('{"old": "th"}', '{"old": "th", "other": false}', False),
    ],
)
def test_a_client_may_write_the_tools_defaults_out(
    renderer: Renderer, said_arguments: str, arguments: str, is_same: bool
):
    reply = ParsedReply(calls=(ParsedCall("edit", said_arguments),))
    seen = said(renderer, f"<call>edit {said_arguments}", reply)
    prompt = renderer.render([USER, call(arguments, "edit"), MORE], tools=EDIT_TOOLS)
    assert goes_on(prompt, seen) == is_same


@pytest.mark.parametrize("message", [call('{"path": "thé"}'), call(ARGUMENTS, name="write"), call("{")])
def test_another_call_is_another_reply(renderer: Renderer, message: dict[str, Any]):
    seen = called(renderer)
    assert not goes_on(renderer.render([USER, message, MORE]), seen)


def test_reasoning_that_the_template_leaves_out_stays_out(renderer: Renderer):
    reply = ParsedReply("think", "path")
    seen = said(renderer, "<think>think</think>path", reply)
    message = {"role": "assistant", "content": "path", "reasoning_content": "think"}
    assert goes_on(renderer.render([USER, message], add_generation_prompt=False), seen)
    prompt = renderer.render([USER, message, MORE])
    assert prompt.num_echoed_messages == 0
    assert "think" not in prompt.text


def test_reasoning_that_the_client_leaves_out_stays_out(renderer: Renderer):
    said(renderer, "<think>think</think>path", ParsedReply("think", "path"))
    assert renderer.render([USER, {"role": "assistant", "content": "path"}]).num_echoed_messages == 0


def test_of_replies_that_mean_the_same_the_one_to_this_prompt_comes_back(renderer: Renderer):
    other = {"role": "user", "content": "Hello"}
    tokens = list(b"path")
    for message, spelt in [(USER, generated("path")), (other, tokens)]:
        renderer.remember(renderer.render([message]), [*spelt, END], ParsedReply(text="path"), has_ended=True)
    for message, is_merged in [(USER, True), (other, False), (MORE, False)]:
        prompt = renderer.render([message, {"role": "assistant", "content": "path"}, MORE])
        assert prompt.num_echoed_messages == 1
        assert (MERGED in prompt.tokens) == is_merged


def test_a_session_of_many_turns_is_always_gone_on_from(renderer: Renderer):
    messages: list[dict[str, Any]] = []
    seen: list[int] = []
    for number in range(20):
        messages.append({"role": "user", "content": f"What about the {number}th?"})
        assert goes_on(renderer.render(messages), seen)
        seen = said(renderer, f"the {number}th path", messages=messages)
        messages.append({"role": "assistant", "content": f"the {number}th path"})


def test_a_reply_that_was_cut_off_comes_back_too(renderer: Renderer):
    prompt = renderer.render([USER])
    tokens = generated("the pa")
    renderer.remember(prompt, tokens, ParsedReply(text="the pa"), has_ended=False)
    again = renderer.render([USER, {"role": "assistant", "content": "the pa"}, MORE])
    assert goes_on(again, [*prompt.tokens.tolist(), *tokens, END])


def test_without_a_ledger_the_tokenizer_has_its_way():
    renderer = Renderer(TEMPLATE, Merging(eos="<|im_end|>"))
    seen = said(renderer, "the path")
    assert not goes_on(renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE]), seen)


def test_replies_outlive_the_process(tmp_path: Path):
    def renderer(model: bytes) -> Renderer:
        return Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=Ledger(tmp_path / FILE, model))

    message = {"role": "assistant", "content": "the path"}
    seen = said(renderer(b"one"), "the path")
    assert goes_on(renderer(b"one").render([USER, message, MORE]), seen)
    assert not goes_on(renderer(b"other").render([USER, message, MORE]), seen)
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    purge(tmp_path / FILE)
    assert not goes_on(renderer(b"one").render([USER, message, MORE]), seen)


def test_a_purge_leaves_no_trace(tmp_path: Path):
    tokens = np.random.default_rng(0).integers(0, 256, 200).tolist()
    ledger = Ledger(tmp_path / FILE)
    renderer = Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=ledger)
    renderer.remember(renderer.render([USER]), tokens, ParsedReply(text="x"), has_ended=False)
    secret = np.array(tokens, "<i4").tobytes()
    assert any(secret in path.read_bytes() for path in (tmp_path / FILE).parent.iterdir())
    ledger.close()
    purge(tmp_path / FILE)
    assert not any(secret in path.read_bytes() for path in (tmp_path / FILE).parent.iterdir())


def test_only_so_many_replies_are_remembered():
    renderer = Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=Ledger(max_replies=2))
    for text in ("th1", "th2", "th3"):
        said(renderer, text)
    remembered = [
        renderer.render([USER, {"role": "assistant", "content": text}]).num_echoed_messages
        for text in ("th1", "th2", "th3")
    ]
    assert remembered == [0, 1, 1]


def test_a_ledger_that_fails_costs_nothing_but_its_use(caplog: pytest.LogCaptureFixture):
    ledger = Ledger()
    renderer = Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=ledger)
    ledger.close()
    with caplog.at_level(logging.WARNING):
        said(renderer, "the path")
        prompt = renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE])
    assert prompt.num_echoed_messages == 0
    assert len(caplog.records) == 1


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / FILE
    path.parent.mkdir()
    path.write_bytes(b"nonsense" * 1000)
    renderer = Renderer(TEMPLATE, Merging(eos="<|im_end|>"), ledger=Ledger(path))
    seen = said(renderer, "the path")
    assert goes_on(renderer.render([USER, {"role": "assistant", "content": "the path"}, MORE]), seen)
    assert path.read_bytes() == b"nonsense" * 1000
    assert "until the server stops only" in caplog.text


REASONED = ParsedReply("think", "path")
STRIPPED = {"role": "assistant", "content": "path"}


def reasoned(renderer: Renderer, owner: str = "ali") -> list[int]:
    """The model reasons in answer to the first message. The tokens of prompt and reply."""
    prompt = renderer.render([USER], reasoning_of=owner)
    tokens = [*generated("<think>think</think>path"), END]
    renderer.remember(prompt, tokens, REASONED, has_ended=True)
    return [*prompt.tokens.tolist(), *tokens]


@pytest.mark.parametrize("message", [STRIPPED, {**STRIPPED, "reasoning_content": "think"}])
def test_reasoning_that_was_left_out_comes_back_where_it_is_wanted(renderer: Renderer, message: dict[str, Any]):
    seen = reasoned(renderer)
    prompt = renderer.render([USER, message, MORE], reasoning_of="ali")
    assert goes_on(prompt, seen)
    assert [(each.name, each.message) for each in prompt.substitutions] == [("reasoning", 1)]
    assert [span.stop - span.start for span in prompt.spans][1] == len(seen) + 1 - prompt.spans[1].start
    assert not goes_on(renderer.render([USER, message, MORE]), seen)


def test_a_conversation_goes_on_behind_reasoning_that_came_back(renderer: Renderer):
    seen = reasoned(renderer)
    messages = [USER, STRIPPED, MORE]
    prompt = renderer.render(messages, reasoning_of="ali")
    assert goes_on(prompt, seen)
    tokens = [*generated("<think>the other</think>that"), END]
    renderer.remember(prompt, tokens, ParsedReply("the other", "that"), has_ended=True)
    later = renderer.render([*messages, {"role": "assistant", "content": "that"}, MORE], reasoning_of="ali")
    assert goes_on(later, [*prompt.tokens.tolist(), *tokens])


@pytest.mark.parametrize(
    ("messages", "owner"),
    [
        ([USER, STRIPPED, MORE], "other"),
        ([USER, {**STRIPPED, "reasoning_content": "another"}, MORE], "ali"),
        ([USER, {**STRIPPED, "content": "paths"}, MORE], "ali"),
        ([MORE, STRIPPED, MORE], "ali"),
        ([USER, MORE, STRIPPED, MORE], "ali"),
    ],
)
def test_reasoning_comes_back_to_its_owner_and_behind_its_prompt_only(
    renderer: Renderer, messages: list[dict[str, Any]], owner: str
):
    reasoned(renderer)
    prompt = renderer.render(messages, reasoning_of=owner)
    assert "think" not in prompt.text
    assert prompt.substitutions == ()


def test_reasoning_that_is_forgotten_does_not_come_back(renderer: Renderer):
    reasoned(renderer)
    renderer.forget_reasoning([USER, STRIPPED], tools=None, owner="ali")
    assert "think" not in renderer.render([USER, STRIPPED, MORE], reasoning_of="ali").text


def test_an_opening_that_begins_the_reasoning_comes_back_with_it():
    opens = TEMPLATE.replace("<|im_start|>assistant{{ '\n' }}", "<|im_start|>assistant{{ '\n<think>' }}")
    renderer = Renderer(opens, Merging(eos="<|im_end|>"), ledger=Ledger())
    prompt = renderer.render([USER], reasoning_of="")
    tokens = [*generated("think</think>path"), END]
    renderer.remember(prompt, tokens, REASONED, has_ended=True)
    again = renderer.render([USER, STRIPPED, MORE], reasoning_of="")
    assert goes_on(again, [*prompt.tokens.tolist(), *tokens])
    assert again.text.count("<think>") == 2, "there and in the new opening"
