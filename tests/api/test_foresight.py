"""What the next prompt begins with is told to the engine, from the template and from what the client did before."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.api.harness import TOKENIZER, eventually, reply, running, tokens_of

from kvstet.api.foresight import PROBES, Foresight, foreseen
from kvstet.chat.builtin import builtin_template
from kvstet.chat.deltas import ParsedCall, ParsedReply
from kvstet.chat.renderer import Renderer
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.engine.messages import Anticipate
from kvstet.errors import TemplateError
from kvstet.types import Prompt

STRIPPING = Renderer(builtin_template("chatml-tools"), TOKENIZER)
TOOL = {"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}

Message = dict[str, Any]


def render(messages: list[Message]) -> Prompt:
    return STRIPPING.render(messages, tools=[TOOL])


def call(id: str) -> Message:
    return {"id": id, "type": "function", "function": {"name": "read", "arguments": "{}"}}


RUN: list[Message] = [
    {"role": "user", "content": "Read it."},
    {"role": "assistant", "content": "", "reasoning_content": "I shall read.", "tool_calls": [call("a")]},
    {"role": "tool", "tool_call_id": "a", "content": "the text"},
]
SAID = ParsedReply(reasoning="It is a text.", text="It says: the text.")


def test_it_is_what_comes_whatever_the_user_says():
    prompt = foreseen(render, RUN, SAID)
    for text in ("Thank you!", "<|im_end|>", "é"):
        message = {"role": "assistant", "content": SAID.text, "reasoning_content": SAID.reasoning}
        after = render([*RUN, message, {"role": "user", "content": text}])
        assert after.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()
        assert len(prompt.tokens) >= after.spans[4].start
        assert prompt.cuts[:-1] == after.cuts[: len(prompt.cuts) - 1]


def test_reasoning_that_the_template_will_drop_is_not_in_it():
    text = bytes(token for token in foreseen(render, RUN, SAID).tokens.tolist() if token < 256).decode()
    assert "I shall read." not in text
    assert "It is a text." not in text
    assert "It says: the text." in text


def test_while_tools_run_reasoning_stays():
    said = ParsedReply(reasoning="Once more.", calls=(ParsedCall("read", "{}"),))
    text = bytes(token for token in foreseen(render, RUN, said).tokens.tolist() if token < 256).decode()
    assert "I shall read." in text
    assert "Once more." in text
    assert text.endswith("<tool_response>\n")


def test_a_client_that_never_sends_reasoning_back_will_not_do_so_now():
    silent = [{key: value for key, value in message.items() if key != "reasoning_content"} for message in RUN]
    said = ParsedReply(reasoning="Once more.", calls=(ParsedCall("read", "{}"),))
    text = bytes(token for token in foreseen(render, silent, said).tokens.tolist() if token < 256).decode()
    assert "Once more." not in text


def test_the_probes_are_not_in_it():
    text = bytes(token for token in foreseen(render, RUN, SAID).tokens.tolist() if token < 256).decode()
    assert not any(probe[:1] in text[-1:] for probe in PROBES)


def test_the_engine_is_told_after_a_reply():
    engine = ScriptedEngine(reply("Fine."))
    with running(engine, foresight=Foresight(engine.anticipate)) as site:
        body = {"messages": [{"role": "user", "content": "How are you?"}]}
        site.post("/v1/chat/completions", body)
        assert eventually(lambda: bool(engine.anticipated))
    (told,) = engine.anticipated
    expected = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\nFine.<|im_end|>\n<|im_start|>user\n"
    assert told.tokens.tolist() == tokens_of(expected)
    assert len(told.cuts) == len(told.cut_kinds) == 3


@pytest.mark.parametrize("fields", [{"cache_prompt": False}, {"stop": ["in"]}])
def test_what_leaves_nothing_behind_is_not_followed_up(fields: dict[str, Any]):
    engine = ScriptedEngine(reply("Fine."))
    foresight = Foresight(engine.anticipate)
    with running(engine, foresight=foresight) as site:
        site.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], **fields})
        assert eventually(lambda: foresight.num_under_way == 0)
    assert engine.anticipated == []


def test_a_template_that_refuses_the_next_prompt_costs_nothing():
    told: list[Anticipate] = []

    def refuse(messages: list[Message]) -> Prompt:
        raise TemplateError("no")

    async def run() -> None:
        foresight = Foresight(told.append)
        foresight.expect(refuse, RUN, frozenset(), SAID)
        await foresight.close()

    asyncio.run(run())
    assert told == []


def test_nothing_renders_any_more_once_it_is_closed():
    """What renders may be freed then: its vocabulary is native memory."""
    told: list[Anticipate] = []
    entered, leave = threading.Event(), threading.Event()

    def slowly(messages: list[Message]) -> Prompt:
        entered.set()
        assert leave.wait(10)
        return render(messages)

    async def run() -> None:
        foresight = Foresight(told.append)
        foresight.expect(slowly, RUN, frozenset(), SAID)
        await asyncio.to_thread(entered.wait, 10)
        closing = asyncio.create_task(foresight.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        foresight.expect(slowly, RUN, frozenset(), SAID)
        assert foresight.num_under_way == 1
        leave.set()
        await closing
        assert repr(foresight) == "Foresight(0 under way)"

    asyncio.run(run())
    assert len(told) == 1
