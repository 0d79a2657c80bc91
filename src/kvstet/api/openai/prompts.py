"""The prompt that a request's messages, texts or tokens make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvstet.api.openai.requests import ChatRequest, TemplateRequest
from kvstet.api.ports import Renderer, Services
from kvstet.errors import InvalidRequest, TemplateError
from kvstet.types import MessageSpan, Prompt, Tokenizer


def render(renderer: Renderer, fields: ChatRequest | TemplateRequest) -> Prompt:
    """The conversation in the model's template."""
    extra: dict[str, Any] = {}
    if fields.reasoning_effort is not None:
        extra["reasoning_effort"] = fields.reasoning_effort
    extra |= fields.chat_template_kwargs or {}
    try:
        return renderer.render(
            fields.messages,
            tools=fields.tools,
            add_generation_prompt=fields.add_generation_prompt is not False,
            extra=extra,
        )
    except RecursionError:
        raise TemplateError("The messages or tools are nested too deeply.", param="messages") from None


def prompts_of(prompt: str | Sequence[str | int | list[int]], services: Services) -> list[Prompt]:
    """A completion's prompts: a text, a list of token ids, or a list of either."""
    if isinstance(prompt, str):
        return [services.renderer.raw(prompt)]
    if not prompt:
        raise InvalidRequest("The prompt is empty.", param="prompt")
    tokens = [part for part in prompt if isinstance(part, int)]
    if len(tokens) == len(prompt):
        return [token_prompt(tokens, services.tokenizer)]
    return [_listed_prompt(part, services) for part in prompt]


def _listed_prompt(part: str | int | list[int], services: Services) -> Prompt:
    match part:
        case str():
            return services.renderer.raw(part)
        case list():
            return token_prompt(part, services.tokenizer)
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
