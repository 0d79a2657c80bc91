"""What models generate to say a given reply: of every family, it is read again as it was given."""

from __future__ import annotations

from typing import Any

import pytest
from reply_families import FAMILIES, Family

from kvstet.chat.deltas import ParsedCall, ParsedReply
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.renderer import Renderer
from kvstet.errors import InvalidRequest

PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "string"}}}
BASH = {"type": "function", "function": {"name": "bash", "description": "Runs.", "parameters": PARAMETERS}}
USER = [{"role": "user", "content": "Hi"}]
REPLY = ParsedReply("Hm.", "", (ParsedCall("bash", '{"cmd": "ls"}'),))
NEVER_SHOW_CALLS = {"granite-3.3", "lfm2"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if family.name not in NEVER_SHOW_CALLS], ids=repr)
@pytest.mark.parametrize("reply", [ParsedReply("Hm.", "Yes."), REPLY], ids=["text", "call"])
def test_every_family_writes_replies_that_are_read_as_they_were_given(family: Family, reply: ParsedReply):
    ends = [end for end in family.ends if end != "<|end|>"]
    tokenizer = ByteTokenizer(list(dict.fromkeys(["<s>", "</s>", *ends])), bos="<s>", eos="</s>")
    renderer = Renderer(family.template.source, tokenizer)
    prompt = renderer.render(USER, tools=[BASH], extra=family.extra)
    options: dict[str, Any] = {"tools": [BASH], "callable_tools": [BASH], "extra": family.extra}
    tokens = renderer.reply_tokens(prompt, USER, reply, **options)
    assert tokens[-1] in tokenizer.end_tokens
    text = b"".join(tokenizer.piece(token) for token in tokens.tolist()).decode()
    assert (reply.text or "bash") in text
    thinks = family.name == "gpt-oss" or renderer._format([BASH]).reasoning is not None
    assert ("Hm." in text) == thinks


@pytest.mark.parametrize("name", sorted(NEVER_SHOW_CALLS))
def test_a_family_whose_template_shows_no_calls_says_so(name: str):
    family = next(family for family in FAMILIES if family.name == name)
    renderer = Renderer(family.template.source, ByteTokenizer(["<s>", "</s>"], bos="<s>", eos="</s>"))
    prompt = renderer.render(USER, tools=[BASH])
    with pytest.raises(InvalidRequest, match="no way to write"):
        renderer.reply_tokens(prompt, USER, REPLY, tools=[BASH], callable_tools=[BASH])
