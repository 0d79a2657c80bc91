"""A server for tests of the Messages API: its template prints all that a message holds, and its replies are marked up
so that a parser can play them."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from anthropic import Anthropic, AsyncAnthropic
from tests.api import harness
from tests.api.harness import TOKENIZER, Site, running

from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta
from kvstet.chat.renderer import Renderer
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.types import Prompt

TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}{{ '\n' }}"
    "{%- if message.tool_call_id -%}({{ message.name }} {{ message.tool_call_id }}){%- endif -%}"
    "{%- if message.reasoning_content -%}<think>{{ message.reasoning_content }}</think>{%- endif -%}"
    "{{ message.content }}"
    "{%- for call in message.tool_calls or [] -%}"
    "<call {{ call.id }}>{{ call.function.name }} {{ call.function.arguments | tojson }}</call>"
    "{%- endfor -%}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- for tool in tools or [] -%}[{{ tool | tojson }}]{%- endfor -%}"
    "{%- if reasoning_effort is defined -%}[effort {{ reasoning_effort }}]{%- endif -%}"
    "{%- if enable_thinking is defined -%}[thinking {{ enable_thinking }}]{%- endif -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\n' }}{%- endif -%}"
)

_MARK = re.compile("([\x01-\x05])")


def thinking(text: str) -> str:
    """Reasoning, as the replies of these tests have it."""
    return f"\x01{text}\x02"


def calling(name: str, arguments: object) -> str:
    """A call; ``arguments`` that are a string are sent as they are."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return f"\x03{name}\x04{written}\x05"


class PlayedParser:
    """Reads the marks of `thinking` and `calling`, character by character."""

    def __init__(self) -> None:
        self._mode = "\x02"
        self._num_calls = 0
        self._name = ""

    def feed(self, text: str) -> list[Delta]:
        return [delta for part in _MARK.split(text) if part for delta in self._accept(part)]

    def flush(self) -> list[Delta]:
        return []

    def _accept(self, part: str) -> list[Delta]:
        if _MARK.match(part):
            self._mode = part
            return self._turn()
        match self._mode:
            case "\x01":
                return [ReasoningDelta(part)]
            case "\x03":
                self._name += part
                return []
            case "\x04":
                return [ArgumentsDelta(self._num_calls - 1, part)]
            case _:
                return [TextDelta(part)]

    def _turn(self) -> list[Delta]:
        match self._mode:
            case "\x04":
                name, self._name = self._name, ""
                self._num_calls += 1
                return [CallBegin(self._num_calls - 1, name)]
            case "\x05":
                return [CallEnd(self._num_calls - 1)]
            case _:
                return []


@dataclass
class PlayedRenderer(Renderer):
    """A renderer whose parser knows the marks, and which remembers the tools that parsers were given."""

    parser_tools: list[list[str]] = field(default_factory=list[list[str]])

    def __post_init__(self) -> None:
        super().__init__(TEMPLATE, TOKENIZER)

    def parser(self, prompt: Prompt, tools: Sequence[Mapping[str, Any]]) -> PlayedParser:
        self.parser_tools.append([tool["function"]["name"] for tool in tools])
        return PlayedParser()


@dataclass(frozen=True)
class MessagesSite(Site):
    """A running server, asked in Anthropic's dialect."""

    renderer: PlayedRenderer = field(default_factory=PlayedRenderer)

    @contextmanager
    def anthropic(self, **options: Any) -> Iterator[Anthropic]:
        with Anthropic(base_url=self.url, max_retries=0, **({"api_key": "none"} | options)) as client:
            yield client

    def async_anthropic(self) -> AsyncAnthropic:
        return AsyncAnthropic(base_url=self.url, api_key="none", max_retries=0)

    def ask(self, **fields: Any) -> dict[str, Any]:
        """The JSON answer to a request that must succeed."""
        response = self.post("/v1/messages", {"max_tokens": 1000, "messages": USER, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def events(self, **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed request, each of which must bear its own name."""
        response = self.post("/v1/messages", {"max_tokens": 1000, "messages": USER, "stream": True, **fields})
        assert response.status_code == 200, response.text
        return events_in(response.text)


USER = [{"role": "user", "content": "Hi"}]


def events_in(body: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@contextmanager
def running_messages(engine: ScriptedEngine, **options: Any) -> Generator[MessagesSite, None, None]:
    renderer = PlayedRenderer()
    with patch.object(harness, "Renderer", lambda *_: renderer), running(engine, **options) as site:
        yield MessagesSite(site.engine, site.url, renderer)
