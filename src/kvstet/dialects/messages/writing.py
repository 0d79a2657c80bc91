"""A neutral request as a Messages request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstet.dialects.content import mark_fields, parts_of, plain_text, unsealed
from kvstet.dialects.effort import budget_of, effort_of
from kvstet.dialects.messages.blocks import Block, input_of, write_part
from kvstet.dialects.messages.models import ModelRules, rules_of
from kvstet.dialects.names import wire_id, wire_name
from kvstet.dialects.request import (
    ANTHROPIC_FORMAT,
    CACHE_MARK,
    NO_REASONING,
    Message,
    Part,
    Reasoning,
    Request,
    Terms,
    Tool,
    Written,
)
from kvstet.dialects.values import Object, obj, objects, present, text

_GO_ON = "Go on."
"""Of a user who has not said anything: at the beginning, where the API wants a user's turn, and at the end, where a
reply is asked for and newer models take no prefill."""

_MAX_TEMPERATURE = 1.0
_CHOICES = {"auto": "auto", "none": "none", "required": "any"}


@dataclass(slots=True)
class _Turn:
    role: str
    results: list[Block] = field(default_factory=list[Block])
    blocks: list[Block] = field(default_factory=list[Block])

    @property
    def content(self) -> list[Block]:
        """Results have to come first."""
        return [*self.results, *self.blocks]

    @property
    def has_called(self) -> bool:
        return any(block["type"] == "tool_use" for block in self.blocks)


def write_request(request: Request) -> Written:
    rules = rules_of(request.model)
    writer = _Writer(rules)
    system, rest = _split_head(request.messages)
    head = [block for message in system for block in writer.blocks(message.get("content"))]
    turns = writer.turns(rest)
    tools = [writer.tool(tool) for tool in request.tools]
    terms = _TermsWriter(request.terms, rules, turns)
    body = {
        "model": request.model,
        **({"system": _simplest(head)} if head else {}),
        "messages": [{"role": turn.role, "content": _simplest(turn.content)} for turn in turns],
        **({"tools": tools} if tools else {}),
        **terms.fields(has_tools=bool(tools)),
    }
    return Written(body, request.dropping([*writer.dropped, *terms.dropped]).dropped)


def _split_head(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    first = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return messages[:first], messages[first:]


def _simplest(blocks: Sequence[Block]) -> str | Sequence[Block]:
    return blocks[0]["text"] if len(blocks) == 1 and blocks[0].keys() == {"type", "text"} else blocks


class _Writer:
    """Of one request's messages and tools; notes what it leaves out."""

    def __init__(self, rules: ModelRules) -> None:
        self.dropped: list[str] = []
        self._rules = rules

    def turns(self, messages: Sequence[Message]) -> list[_Turn]:
        """Messages that follow each other in one role are one turn; so are results and what the user says to them."""
        turns: list[_Turn] = []
        for index, message in enumerate(messages):
            role = "user" if message["role"] == "tool" else str(message["role"])
            is_system = role == "system"
            if is_system and not self._stays(turns, messages[index + 1 :]):
                role = "user"
            if not turns or turns[-1].role != role:
                turns.append(_Turn(role))
            self._fill(turns[-1], message, is_reminder=is_system and role == "user")
        return self._framed([turn for turn in turns if turn.content])

    def _stays(self, turns: Sequence[_Turn], following: Sequence[Message]) -> bool:
        """A system turn has to follow a user's, and to be followed by the assistant's or nothing."""
        if not (self._rules.takes_system_turns and turns and turns[-1].role in ("user", "system")):
            return False
        role = next((message["role"] for message in following if message["role"] != "system"), "assistant")
        return role == "assistant"

    def _framed(self, turns: list[_Turn]) -> list[_Turn]:
        nudge = _Turn("user", blocks=[{"type": "text", "text": _GO_ON}])
        if not turns or turns[0].role != "user":
            turns = [nudge, *turns]
        if turns[-1].role == "assistant" and not self._rules.takes_prefill:
            turns = [*turns, nudge]
        return turns

    def _fill(self, turn: _Turn, message: Message, *, is_reminder: bool) -> None:
        if message["role"] == "tool":
            turn.results.append(self._result(message))
        elif message["role"] == "assistant":
            turn.blocks += self._assistant(message)
        elif is_reminder:
            turn.blocks.append({"type": "text", "text": _reminder(plain_text(message.get("content")))})
        else:
            turn.blocks += self.blocks(message.get("content"))

    def _result(self, message: Message) -> Block:
        blocks = self.blocks(message.get("content"))
        mark = blocks[-1].pop(CACHE_MARK, None) if blocks else None
        failed = {"is_error": True} if message.get("is_error") is True else {}
        result: Block = {"type": "tool_result", "tool_use_id": wire_id(text(message.get("tool_call_id")))}
        if blocks:
            result["content"] = _simplest(blocks)
        return {**result, **failed, **present({CACHE_MARK: mark})}

    def _assistant(self, message: Message) -> Iterator[Block]:
        yield from self._thinking(message)
        yield from self.blocks(message.get("content"))
        if refusal := text(message.get("refusal")):
            yield {"type": "text", "text": refusal}
        for call in objects(message.get("tool_calls")):
            function = obj(call.get("function"))
            block = {
                "type": "tool_use",
                "id": wire_id(text(call.get("id"))),
                "name": wire_name(text(function.get("name"))),
            }
            yield {**block, "input": input_of(text(function.get("arguments"))), **mark_fields(call)}

    def _thinking(self, message: Message) -> Iterator[Block]:
        own = [
            detail for detail in objects(message.get("reasoning_details")) if detail.get("format") == ANTHROPIC_FORMAT
        ]
        blocks = [block for detail in own if (block := _thinking_block(detail)) is not None]
        yield from blocks
        reasoning = text(message.get("reasoning_content"))
        if reasoning and not blocks and not self._rules.is_claude:
            yield {"type": "thinking", "thinking": reasoning, "signature": ""}
        elif not blocks:
            self.dropped += unsealed(message)

    def blocks(self, content: object) -> list[Block]:
        return [*self._blocks(parts_of(content))]

    def _blocks(self, parts: Iterable[Part]) -> Iterator[Block]:
        for part in parts:
            block = write_part(part)
            if block is not None:
                yield {**block, **mark_fields(part)}
            elif part["type"] != "text":
                self.dropped.append(f"messages.content.{part['type']}")

    def tool(self, tool: Tool) -> Block:
        function = obj(tool["function"])
        is_strict = function.get("strict") is True
        if is_strict and not self._rules.takes_schemas:
            self.dropped.append("tools.strict")
        return {
            "name": wire_name(text(function.get("name"))),
            **present({"description": function.get("description")}),
            "input_schema": {"type": "object", **obj(function.get("parameters"))},
            **({"strict": True} if is_strict and self._rules.takes_schemas else {}),
            **({"defer_loading": True} if tool.get("defer_loading") else {}),
            **mark_fields(tool),
        }


def _reminder(said: str) -> str:
    """As Claude Code marks what is not the user's own."""
    return f"<system-reminder>\n{said}\n</system-reminder>"


def _thinking_block(detail: Object) -> Block | None:
    if detail.get("type") == "reasoning.encrypted":
        return {"type": "redacted_thinking", "data": text(detail.get("data"))}
    signature = text(detail.get("signature"))
    return {"type": "thinking", "thinking": text(detail.get("text")), "signature": signature} if signature else None


class _TermsWriter:
    """Of one request's terms; notes what it leaves out."""

    def __init__(self, terms: Terms, rules: ModelRules, turns: Sequence[_Turn]) -> None:
        self.dropped: list[str] = []
        self._terms = terms
        self._rules = rules
        self._turns = turns
        self._max_tokens = terms.max_output_tokens or rules.default_max_tokens

    def fields(self, *, has_tools: bool) -> dict[str, Any]:
        terms = self._terms
        for name in ("verbosity", "metadata", "session"):
            if getattr(terms, name):
                self.dropped.append(name)
        choice = self._tool_choice() if has_tools else None
        thinking = self._thinking(choice)
        return present(
            {
                "max_tokens": self._max_tokens,
                "stream": True if terms.is_streamed else None,
                "stop_sequences": self._stops() or None,
                "tool_choice": choice,
                "thinking": thinking,
                "output_config": self._output_config(thinking) or None,
                "metadata": {"user_id": terms.user} if terms.user else None,
                **self._sampling(thinking),
            }
        )

    def _stops(self) -> list[str]:
        stops = [stop for stop in self._terms.stop if stop.strip()]
        if len(stops) < len(self._terms.stop):
            # The API refuses those of nothing but white space.
            self.dropped.append("stop")
        return stops

    def _tool_choice(self) -> dict[str, Any] | None:
        choice = self._terms.tool_choice
        alone = {"disable_parallel_tool_use": True} if self._terms.allows_parallel_calls is False else {}
        if choice is None:
            return {"type": "auto", **alone} if alone else None
        if choice.mode == "required" and len(choice.names) == 1:
            return {"type": "tool", "name": wire_name(choice.names[0]), **alone}
        if choice.names:
            self.dropped.append("tool_choice.allowed_tools")
        return {"type": _CHOICES[choice.mode], **(alone if choice.mode != "none" else {})}

    def _thinking(self, choice: dict[str, Any] | None) -> dict[str, Any] | None:
        reasoning = self._terms.reasoning
        if reasoning is None or self._rules.thinking == "none":
            self.dropped += ["reasoning"] if reasoning is not None else []
            return None
        if reasoning.effort == NO_REASONING:
            return {"type": "disabled"}
        if choice is not None and choice["type"] in ("any", "tool"):
            # "Thinking may not be enabled when tool_choice forces tool use."
            self.dropped.append("reasoning")
            return None
        if self._rules.thinking == "adaptive":
            # Newer models show no thinking unless they are asked to.
            return {"type": "adaptive", "display": "summarized"}
        return self._manual_thinking(reasoning)

    def _manual_thinking(self, reasoning: Reasoning) -> dict[str, Any] | None:
        budget = budget_of(reasoning, self._max_tokens)
        if budget is None or (self._rules.is_claude and self._goes_on_without_thinking()):
            self.dropped.append("reasoning")
            return None
        return {"type": "enabled", "budget_tokens": budget}

    def _goes_on_without_thinking(self) -> bool:
        """With manual thinking, a turn whose calls are being answered has to begin with thinking."""
        if not self._turns[-1].results:
            return False
        last = next((turn for turn in reversed(self._turns) if turn.role == "assistant"), None)
        return last is not None and last.has_called and "thinking" not in last.blocks[0]["type"]

    def _output_config(self, thinking: dict[str, Any] | None) -> dict[str, Any]:
        config: dict[str, Any] = {}
        reasoning = self._terms.reasoning
        if thinking is not None and thinking["type"] == "adaptive" and reasoning is not None:
            config |= present({"effort": self._effort(reasoning)})
        form = self._terms.response_format
        if form is None:
            return config
        schema = obj(form.get("json_schema")).get("schema")
        if schema is None or not self._rules.takes_schemas:
            self.dropped.append("response_format")
            return config
        return {**config, "format": {"type": "json_schema", "schema": schema}}

    def _effort(self, reasoning: Reasoning) -> str | None:
        """The API has no ``minimal``, and not every model ``xhigh``."""
        effort = effort_of(reasoning, self._max_tokens)
        if effort == "xhigh" and not self._rules.takes_xhigh:
            return "high"
        return "low" if effort == "minimal" else effort

    def _sampling(self, thinking: dict[str, Any] | None) -> dict[str, Any]:
        given = {name: getattr(self._terms, name) for name in ("temperature", "top_p", "top_k")}
        given = present(given)
        is_thinking = thinking is not None and thinking["type"] != "disabled"
        if not self._rules.takes_sampling or (self._rules.is_claude and is_thinking):
            self.dropped += given
            return {}
        if "temperature" in given and self._rules.is_claude:
            # The API ends at 1 where OpenAI's ends at 2, and newer models take one of the two only.
            given["temperature"] = min(given["temperature"], _MAX_TEMPERATURE)
            if given.pop("top_p", None) is not None:
                self.dropped.append("top_p")
        return given
