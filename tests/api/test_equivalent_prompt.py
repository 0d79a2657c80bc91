"""Prompts at fidelity ``equivalent``, of conversations that a client changes as clients do."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.growth import growing

from kvstet.api.equivalent import Room, equivalent_prompt
from kvstet.api.wishes import Wishes
from kvstet.chat.builtin import builtin_template
from kvstet.chat.deltas import ParsedCall, ParsedReply
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.context.equivalent.equivalence import Equivalence
from kvstet.types import Prompt

TOKENIZER = ByteTokenizer(eos="<|im_end|>")
WISHES = Wishes("equivalent")
ROOMY, TIGHT = Room(1 << 20, None), Room(8_000, None)

Request = tuple[list[dict[str, Any]], list[Any]]


def new_renderer() -> Renderer:
    return Renderer(builtin_template("chatml-tools"), TOKENIZER, ledger=Ledger())


def prompt_of(renderer: Renderer, equivalence: Equivalence, request: Request, room: Room = ROOMY) -> Prompt:
    def render(messages: Any, tools: Any, reasoning_of: str | None) -> Prompt:
        return renderer.render(messages, tools=tools, reasoning_of=reasoning_of)

    return equivalent_prompt(*request, WISHES, room, render=render, equivalence=equivalence)


def say(renderer: Renderer, prompt: Prompt, number: int) -> str:
    """The reply that the next request has as a message; it was reasoned."""
    reasoning, arguments = f"This is number {number}.", f'{{"path":  ".", "n": {number}}}'
    call = f'<tool_call>\n{{"name": "ls", "arguments": {arguments}}}\n</tool_call>'
    text = f"<think>\n{reasoning}\n</think>\n\nHm.\n{call}"
    reply = ParsedReply(reasoning, "Hm.", (ParsedCall("ls", arguments),))
    tokens = TOKENIZER.tokenize(f"{text}<|im_end|>", add_special=False, parse_special=True).tolist()
    renderer.remember(prompt, tokens, reply, has_ended=True)
    return text


@settings(max_examples=40)
@given(growing(), st.booleans())
def test_each_prompt_goes_on_where_the_reply_to_the_last_one_ended(requests: list[Request], returns_reasoning: bool):
    renderer, equivalence = new_renderer(), Equivalence()
    before = ""
    for number, (messages, tools) in enumerate(requests):
        if returns_reasoning:
            replies = (message for message in messages if message["role"] == "assistant")
            for said, message in enumerate(replies):
                message["reasoning_content"] = f"This is number {said}."
        prompt = prompt_of(renderer, equivalence, (messages, tools))
        assert prompt.text.startswith(before)
        before = prompt.text + say(renderer, prompt, number)


@settings(max_examples=40)
@given(growing())
def test_it_fits_where_what_was_sent_does(requests: list[Request]):
    renderer, equivalence = new_renderer(), Equivalence()
    for number, (messages, tools) in enumerate(requests):
        plain = renderer.render(messages, tools=tools)
        prompt = prompt_of(renderer, equivalence, (messages, tools), TIGHT)
        assert len(prompt.tokens) < TIGHT.context_length or prompt.tokens.tolist() == plain.tokens.tolist()
        say(renderer, prompt, number)


@settings(max_examples=40)
@given(growing())
def test_exact_prompts_do_not_know_what_went_before(requests: list[Request]):
    renderer, equivalence = new_renderer(), Equivalence()
    untouched = new_renderer()
    for number, (messages, tools) in enumerate(requests):
        say(renderer, prompt_of(renderer, equivalence, (messages, tools)), number)
        say(untouched, untouched.render(messages, tools=tools), number)
        plain = [each.render(messages, tools=tools).tokens.tolist() for each in (renderer, untouched)]
        assert plain[0] == plain[1]
