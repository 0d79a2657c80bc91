"""The prompt that a request's messages, texts or tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstet.api.job import Conversation
from kvstet.api.openai.requests import AllowedTools, ChatRequest, ChosenTools, NamedFunction, TemplateRequest
from kvstet.api.ports import Served
from kvstet.chat.reply.grammar import CallDemand
from kvstet.errors import InvalidRequest
from kvstet.types import MessageSpan, Prompt, Tokenizer

NO_REASONING = "none"
"""The ``reasoning_effort`` that asks the model not to think."""


def conversation_of(fields: ChatRequest | TemplateRequest) -> Conversation:
    """A chat's messages, and what goes with them into the prompt."""
    variables: dict[str, Any] = {}
    if fields.reasoning_effort is not None:
        variables["reasoning_effort"] = fields.reasoning_effort
        if fields.reasoning_effort == NO_REASONING:
            variables["enable_thinking"] = False
    return Conversation(
        messages=fields.messages,
        tools=fields.tools or [],
        calls_tools=fields.tool_choice != "none",
        demand=_demand_of(fields),
        adds_generation_prompt=fields.add_generation_prompt is not False,
        variables=variables | (fields.chat_template_kwargs or {}),
    )


def _demand_of(fields: ChatRequest | TemplateRequest) -> CallDemand:
    is_parallel = fields.parallel_tool_calls is not False
    match fields.tool_choice:
        case ChosenTools(type="function", function=NamedFunction(name=name)):
            return CallDemand(is_required=True, is_parallel=False, names=(name,))
        case ChosenTools(type="allowed_tools", allowed_tools=AllowedTools(tools=tools, mode=mode)):
            names = tuple(tool.function.name for tool in tools)
            return CallDemand(is_required=mode == "required", is_parallel=is_parallel, names=names)
        case ChosenTools(type=kind):
            raise InvalidRequest(f"A tool_choice of type {kind!r} needs the field of that name.", param="tool_choice")
        case choice:
            return CallDemand(is_required=choice == "required", is_parallel=is_parallel)


def prompts_of(prompt: str | Sequence[str | int | list[int]], served: Served) -> list[Prompt]:
    """A completion's prompts: a text, a list of token ids, or a list of either."""
    if isinstance(prompt, str):
        return [served.renderer.raw(prompt)]
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    tokens = [part for part in prompt if isinstance(part, int)]
    if len(tokens) == len(prompt):
        return [token_prompt(tokens, served.tokenizer)]
    return [_listed_prompt(part, served) for part in prompt]


def _listed_prompt(part: str | int | list[int], served: Served) -> Prompt:
    match part:
        case str():
            return served.renderer.raw(part)
        case list():
            return token_prompt(part, served.tokenizer)
        case _:
            raise InvalidRequest("A list of prompts holds texts or lists of tokens, not single tokens.", param="prompt")


def token_prompt(tokens: Sequence[int], tokenizer: Tokenizer) -> Prompt:
    """A prompt that was tokenised by the client."""
    text = detokenize(tokens, tokenizer, param="prompt")
    return Prompt(np.array(tokens, dtype=np.int32), (MessageSpan(0, len(tokens), None, "prompt"),), text)


def detokenize(tokens: Sequence[int], tokenizer: Tokenizer, *, param: str) -> str:
    """The text of the tokens, special tokens included. InvalidRequest for ids that the model does not have."""
    unknown = next((token for token in tokens if not 0 <= token < tokenizer.num_tokens), None)
    if unknown is not None:
        raise InvalidRequest(f"The model has no token {unknown}.", param=param)
    return b"".join(tokenizer.piece(token) for token in tokens).decode(errors="replace")
