# ruff: noqa: RUF001  DeepSeek's markers have wide bars
"""The families of the test set: what each one's template cannot hold, and how to get a reply out of it.

A template loses information: it strips text, drops it beside calls, or prints it where its own markers could not be
told from it. `Family.held` says what is left of a message; what is left must come back exactly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from kvstet.chat.builtin import builtin_template
from kvstet.chat.fit import fit
from kvstet.chat.reply.format import ReplyFormat, format_of
from kvstet.chat.template import ChatTemplate
from kvstet.chat.traits import Traits, traits_of

FOLDER = Path(__file__).parents[1] / "families"
NOW = datetime(2026, 11, 22)
USER = "the user's question"

Arguments = dict[str, object]


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: Arguments


@dataclass(frozen=True, slots=True)
class Said:
    """An assistant's message."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[Call, ...] = ()


def same(text: str) -> str:
    return text


def newlines(text: str) -> str:
    return text.strip("\n")


def first_newlines(text: str) -> str:
    return text.lstrip("\n")


def _python(value: object) -> str:
    return repr(value)


def as_python(said: Said) -> str:
    """What LFM2 writes, whose template prints no calls."""
    calls = (f"{c.name}({', '.join(f'{k}={_python(v)}' for k, v in c.arguments.items())})" for c in said.calls)
    return said.text + (f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>" if said.calls else "")


def as_list(said: Said) -> str:
    """What Granite 3.3 writes."""
    calls = [{"name": c.name, "arguments": c.arguments} for c in said.calls]
    return said.text + (f"<|tool_call|>{json.dumps(calls)}" if said.calls else "")


NAME = re.compile(r"[A-Za-z_]\w{0,20}")


@dataclass(frozen=True)
class Family:
    """One family's template, and what it cannot hold."""

    name: str
    ends: tuple[str, ...]
    """End a message, or text within it: no text or reasoning can contain these."""
    opens: tuple[str, ...] = ()
    """Begin calls: no text can contain these."""
    thinks: tuple[str, ...] = ()
    """Begin and end reasoning: no reasoning contains the last, no text begins with any."""
    in_values: tuple[str, ...] = ()
    """No string of the arguments can contain these."""
    in_keys: tuple[str, ...] = ()
    """No name of an argument can contain these."""
    reasoning: Literal["never", "printed", "with calls"] = "never"
    parts: bool = False
    """Reasoning is sent as a part of the content."""
    text_with_calls: bool = True
    max_calls: int = 3
    names_only: bool = False
    """Keys are names, on all levels."""
    strips_reasoning: Callable[[str], str] = same
    strips_text: Callable[[str], str] = same
    strips_text_before_calls: Callable[[str], str] | None = None
    header: str = ""
    """The bare header of an assistant's message, where the generation prompt holds more than replies begin with."""
    extra: Mapping[str, object] = field(default_factory=dict)
    written: Callable[[Said], str] | None = None
    """Content with calls in it, for templates that print no calls."""

    def __repr__(self) -> str:
        return self.name

    @cached_property
    def template(self) -> ChatTemplate:
        path = FOLDER / f"{self.name}.jinja"
        source = path.read_text(encoding="utf-8") if path.exists() else builtin_template(self.name)
        return ChatTemplate(source, bos="<s>", eos="</s>")

    @cached_property
    def traits(self) -> Traits:
        return traits_of(self.template)

    @cached_property
    def format(self) -> ReplyFormat:
        return format_of(self.template)

    def held(self, said: Said) -> Said:
        """What the template can hold of a message."""
        calls = said.calls[: self.max_calls]
        text = said.text if self.text_with_calls or not calls else ""
        strip = self.strips_text_before_calls if calls and self.strips_text_before_calls else self.strips_text
        prints = self.reasoning == "printed" or (self.reasoning == "with calls" and calls)
        reasoning = self.strips_reasoning(self._clean(said.reasoning, self.thinks[1:])) if prints else ""
        text = strip(self._clean_start(self._clean(text, self.opens)))
        return Said(reasoning, text, tuple(replace(c, arguments=self._clean_arguments(c.arguments)) for c in calls))

    def _clean(self, text: str, markers: Sequence[str]) -> str:
        return cleaned(text, (*markers, *self.ends))

    def _clean_start(self, text: str) -> str:
        while any(text.lstrip().startswith(marker) for marker in self.thinks):
            text = text.lstrip()[1:]
        return text

    def _clean_arguments(self, arguments: Arguments) -> Arguments:
        return {self._clean_key(key): self._clean_value(value) for key, value in arguments.items()}

    def _clean_key(self, key: str) -> str:
        if self.names_only:
            return NAME.search(key).group() if NAME.search(key) else "key"
        return cleaned(key, self.in_keys)

    def _clean_value(self, value: object) -> object:
        if isinstance(value, str):
            return cleaned(value, self.in_values)
        if isinstance(value, list):
            return [self._clean_value(item) for item in value]
        if isinstance(value, dict):
            clean = self._clean_key if self.names_only else self._clean_value
            return {str(clean(key)): self._clean_value(item) for key, item in value.items()}
        return value

    def reply(self, said: Said) -> tuple[str, str]:
        """The reply as this template prints it in the history, and the prompt before it."""
        prompt = self._render([], said, add_generation_prompt=True)
        history = self._render([self.message(said)], said, add_generation_prompt=False)
        if history.startswith(prompt):
            return history[len(prompt) :], prompt
        start = history.index(self.header, history.index(USER)) + len(self.header)
        assert self.header
        return history[start:], history[:start]

    def message(self, said: Said) -> Mapping[str, object]:
        content: object = self.written(said) if self.written is not None else said.text
        message: dict[str, object] = {"role": "assistant", "content": content}
        if said.reasoning and self.parts:
            text = [{"type": "text", "text": said.text}] if said.text else []
            message["content"] = [{"type": "thinking", "thinking": said.reasoning}, *text]
        elif said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls and self.written is None:
            message["tool_calls"] = [_tool_call(call, number) for number, call in enumerate(said.calls)]
        return message

    def _render(self, replies: list[Mapping[str, object]], said: Said, *, add_generation_prompt: bool) -> str:
        messages = [{"role": "user", "content": USER}, *replies]
        fitted = fit(messages, tools_for(said) if self.traits.knows_tools else (), self.traits)
        return self.template.render(
            fitted.messages,
            tools=fitted.tools,
            add_generation_prompt=add_generation_prompt,
            now=NOW,
            extra=self.extra,
        ).text


def cleaned(text: str, markers: Sequence[str]) -> str:
    """Without these markers, and without an end that would run into one."""
    while any(marker in text for marker in markers):
        for marker in markers:
            text = text.replace(marker, "")
    while any((text + marker).index(marker) < len(text) for marker in markers):
        text = text[:-1]
    return text


def _tool_call(call: Call, number: int) -> Mapping[str, object]:
    function = {"name": call.name, "arguments": call.arguments}
    # Kimi's own form of an id, or nine letters, which Mistral wants.
    kimi = f"functions.{call.name}:{number}"
    return {"id": f"callid{number:03}", "type": "function", "function": function, "kimi_id": kimi}


def tools_for(said: Said) -> list[Mapping[str, object]]:
    """Tools with schemas that say the type of each argument."""
    return [
        {
            "type": "function",
            "function": {
                "name": call.name,
                "description": "",
                "parameters": {
                    "type": "object",
                    "properties": {key: {"type": _type(value)} for key, value in call.arguments.items()},
                },
            },
        }
        for call in (*said.calls, Call("unused_tool", {}))
    ]


def _type(value: object) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
    return kinds.get(type(value), "null")


_IM = ("<|im_end|>",)
_THINK = ("<think>", "</think>")
_HERMES = ("<tool_call>",)
_COHERE = ("<|END_OF_TURN_TOKEN|>",)
_COHERE_THINK = ("<|START_THINKING|>", "<|END_THINKING|>")
_DEEPSEEK = ("<｜end▁of▁sentence｜>",)

FAMILIES = (
    Family("chatml-tools", _IM, _HERMES, _THINK, reasoning="printed", strips_reasoning=newlines),
    Family("qwen2.5", _IM, _HERMES),
    Family(
        "qwen3",
        _IM,
        _HERMES,
        _THINK,
        reasoning="printed",
        strips_reasoning=newlines,
        strips_text=first_newlines,
    ),
    Family(
        "qwen3-coder", _IM, _HERMES, in_values=("</parameter>",), in_keys=(">",), strips_text_before_calls=str.strip
    ),
    Family(
        "qwen3.5",
        _IM,
        _HERMES,
        _THINK,
        in_values=("</parameter>",),
        in_keys=(">",),
        reasoning="printed",
        strips_reasoning=str.strip,
        strips_text=str.strip,
    ),
    Family("hermes-3", _IM, _HERMES, text_with_calls=False),
    Family("falcon-h1", _IM, _HERMES),
    Family("smollm3", _IM, _HERMES, _THINK),
    Family(
        "ernie-4.5",
        ("</response>", *_IM),
        _HERMES,
        (*_THINK, "<response>"),
        reasoning="printed",
        strips_reasoning=newlines,
        strips_text=newlines,
    ),
    Family("llama-3.1", ("<|eot_id|>", "<|eom_id|>"), text_with_calls=False, max_calls=1, strips_text=str.strip),
    Family("llama-3.2", ("<|eot_id|>",), text_with_calls=False, max_calls=1, strips_text=str.strip),
    Family("llama-4", ("<|eot|>",), text_with_calls=False, strips_text=str.strip),
    Family("llama-4-pythonic", ("<|eot|>",), text_with_calls=False, strips_text=str.strip, in_keys=(), names_only=True),
    Family("gemma-3", ("<end_of_turn>",), _HERMES, strips_text=str.strip, strips_text_before_calls=str.lstrip),
    Family(
        "gemma-4",
        ("<turn|>", "<|tool_response>"),
        ("<|tool_call>",),
        ("<|channel>thought", "<channel|>"),
        in_values=('<|"|>',),
        names_only=True,
        reasoning="with calls",
        strips_text=str.strip,
        header="<|turn>model\n",
    ),
    Family(
        "functiongemma",
        ("<end_of_turn>", "<start_function_response>"),
        ("<start_function_call>",),
        in_values=("<escape>",),
        names_only=True,
        strips_text=str.strip,
    ),
    Family("mistral-nemo", ("</s>",), ("[TOOL_CALLS]",), text_with_calls=False),
    Family("mistral-small-3.2", ("</s>",), ("[TOOL_CALLS]",), text_with_calls=False),
    Family("devstral", ("</s>",), ("[TOOL_CALLS]",)),
    Family("magistral", ("</s>",), ("[TOOL_CALLS]",), ("[THINK]", "[/THINK]"), reasoning="printed", parts=True),
    # Calls are told in Hermes form, because the template lists no tools; the model's own form is understood too.
    Family(
        "deepseek-r1",
        (*_DEEPSEEK, "</think>"),
        (*_HERMES, "<｜tool▁calls▁begin｜>"),
        _THINK,
        # Calls are part of the content, of which the template drops all before this.
        in_values=("</think>",),
        in_keys=("</think>",),
        header="<｜Assistant｜>",
    ),
    Family(
        "deepseek-r1-tools",
        (*_DEEPSEEK, "</think>"),
        ("<｜tool▁calls▁begin｜>",),
        _THINK,
        header="<｜Assistant｜>",
    ),
    Family("deepseek-v3.1", _DEEPSEEK, ("<｜tool▁calls▁begin｜>",), _THINK),
    Family(
        "deepseek-v3.2",
        _DEEPSEEK,
        ("<｜DSML｜function_calls>",),
        _THINK,
        in_values=("</｜DSML｜parameter>",),
        in_keys=('"',),
        reasoning="printed",
        extra={"thinking": True},
    ),
    Family(
        "glm-4.5",
        ("<|user|>", "<|observation|>"),
        _HERMES,
        _THINK,
        in_values=("</arg_value>",),
        in_keys=("</arg_key>",),
        reasoning="printed",
        strips_reasoning=str.strip,
        strips_text=str.strip,
    ),
    Family(
        "glm-4.7",
        ("<|user|>", "<|observation|>"),
        _HERMES,
        _THINK,
        in_values=("</arg_value>",),
        in_keys=("</arg_key>",),
        reasoning="printed",
        strips_reasoning=str.strip,
        strips_text=str.strip,
    ),
    Family("kimi-k2", _IM, ("<|tool_calls_section_begin|>",)),
    Family("kimi-k2-thinking", _IM, ("<|tool_calls_section_begin|>",), _THINK, reasoning="printed"),
    Family(
        "gpt-oss",
        ("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"),
        reasoning="printed",
        text_with_calls=False,
        max_calls=1,
    ),
    Family("granite-3.3", ("<|end_of_text|>",), ("<|tool_call|>",), _THINK, written=as_list),
    Family("granite-4", ("<|end_of_text|>",), _HERMES),
    Family(
        "nemotron-nano-v2",
        ("<SPECIAL_12>", "</think>"),
        ("<TOOLCALL>",),
        _THINK,
        strips_text=str.strip,
        header="<SPECIAL_11>Assistant\n",
    ),
    Family(
        "nemotron-3",
        _IM,
        _HERMES,
        _THINK,
        in_values=("</parameter>",),
        in_keys=(">",),
        reasoning="printed",
        strips_text=str.strip,
        header="<|im_start|>assistant\n",
    ),
    Family("phi-4-mini", ("<|end|>",), ("<|tool_call|>",)),
    Family(
        "command-r7b",
        ("<|END_RESPONSE|>", *_COHERE),
        ("<|START_ACTION|>",),
        (*_COHERE_THINK, "<|START_RESPONSE|>"),
        reasoning="with calls",
        text_with_calls=False,
        header="<|CHATBOT_TOKEN|>",
    ),
    Family(
        "command-a-reasoning",
        ("<|END_TEXT|>", *_COHERE),
        ("<|START_ACTION|>",),
        (*_COHERE_THINK, "<|START_TEXT|>"),
        reasoning="printed",
        text_with_calls=False,
        header="<|CHATBOT_TOKEN|>",
    ),
    Family("lfm2", _IM, ("<|tool_call_start|>",), names_only=True, written=as_python),
    Family(
        "lfm2.5",
        _IM,
        ("<|tool_call_start|>",),
        _THINK,
        # Strings are printed between quotes, but without escapes.
        in_values=("'", "\\"),
        names_only=True,
        reasoning="printed",
    ),
    Family(
        "minimax-m2",
        ("[e~[",),
        ("<minimax:tool_call>",),
        _THINK,
        in_values=("</parameter>",),
        in_keys=('">',),
        reasoning="printed",
        header="]~b]ai\n",
    ),
    Family(
        "seed-oss",
        ("<seed:eos>",),
        ("<seed:tool_call>",),
        ("<seed:think>", "</seed:think>"),
        header="<seed:bos>assistant",
        in_values=("</parameter>",),
        in_keys=(">",),
        reasoning="printed",
        strips_reasoning=str.strip,
        strips_text=str.strip,
    ),
)


@cache
def family(name: str) -> Family:
    return next(family for family in FAMILIES if family.name == name)
