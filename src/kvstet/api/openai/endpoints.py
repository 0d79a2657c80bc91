"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.answering import answer
from kvstet.api.body import decode, in_worker
from kvstet.api.exchange import exchange_of
from kvstet.api.job import Terms, chat_job, text_job
from kvstet.api.openai import answers
from kvstet.api.openai.answers import Answer, head_of
from kvstet.api.openai.prompts import conversation_of, prompts_of
from kvstet.api.openai.requests import ChatRequest, CompletionRequest, GenerationFields
from kvstet.api.openai.sampling import sampling_of, stops_of, token_limit
from kvstet.api.openai.shapes import ChatShape, TextShape
from kvstet.api.ports import Served, Services
from kvstet.api.wishes import Wishes, wishes_of
from kvstet.errors import InvalidRequest

Understand = Callable[[bytes, str, Wishes, Served], Answer]
"""Body, id and wishes of a request, and its model -> how to answer it. Raises a RequestError."""


class Completions:
    """The two endpoints that generate text."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def chat(self, request: Request, body: bytes, served: Served) -> Response:
        return await self._serve(request, body, served, understand_chat)

    async def text(self, request: Request, body: bytes, served: Served) -> Response:
        return await self._serve(request, body, served, understand_text)

    async def _serve(self, request: Request, body: bytes, served: Served, understand: Understand) -> Response:
        understood = await in_worker(
            len(body), partial(understand, body, exchange_of(request).id, wishes_of(request), served)
        )
        return await answer(
            request,
            understood.job,
            served,
            self._services,
            stream=partial(answers.stream, understood),
            whole=partial(answers.whole, understood),
            encode_error=answers.encode_error,
        )


def understand_chat(body: bytes, id: str, wishes: Wishes, served: Served) -> Answer:
    fields = decode(body, ChatRequest)
    if fields.top_logprobs and not fields.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    terms = _terms(
        fields,
        served,
        max_new_tokens=token_limit(fields.max_completion_tokens, fields.max_tokens, fields.n_predict),
        num_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
    )
    job = chat_job(served, id, conversation_of(fields), replace(terms, wishes=wishes), prompt_field="messages")
    return Answer(head_of(f"chatcmpl-{id}", fields, served), job, ChatShape(served.tokenizer), _includes_usage(fields))


def understand_text(body: bytes, id: str, wishes: Wishes, served: Served) -> Answer:
    fields = decode(body, CompletionRequest)
    _check_text_fields(fields)
    terms = _terms(
        fields,
        served,
        max_new_tokens=token_limit(fields.max_tokens, fields.n_predict),
        num_logprobs=fields.logprobs,
    )
    prompts = prompts_of(fields.prompt, served)
    job = text_job(served, id, prompts, replace(terms, wishes=wishes), prompt_field="prompt")
    echoes = [prompt.text for prompt in prompts for _ in range(terms.num_choices)] if fields.echo else None
    head = head_of(f"cmpl-{id}", fields, served)
    return Answer(head, job, TextShape(served.tokenizer), _includes_usage(fields), echoes)


def _terms(fields: GenerationFields, served: Served, *, max_new_tokens: int | None, num_logprobs: int | None) -> Terms:
    return Terms(
        sampling=sampling_of(fields, served.tokenizer, served.schema_to_grammar),
        stops=stops_of(fields),
        max_new_tokens=max_new_tokens,
        num_choices=fields.n or 1,
        num_logprobs=num_logprobs,
        ignores_eos=bool(fields.ignore_eos),
        uses_cache=fields.cache_prompt is not False,
        is_streamed=bool(fields.stream),
    )


def _includes_usage(fields: GenerationFields) -> bool:
    return bool(fields.stream_options and fields.stream_options.include_usage)


def _check_text_fields(fields: CompletionRequest) -> None:
    if fields.suffix:
        raise InvalidRequest("suffix is not supported: the reply always follows the prompt.", param="suffix")
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise InvalidRequest("best_of is not supported, unless it equals n.", param="best_of")
    if fields.echo and fields.logprobs is not None:
        raise InvalidRequest("echo with logprobs is not supported: the prompt's are not computed.", param="echo")
