"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.body import decode, in_worker, read_body
from kvstet.api.envelopes import json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.hangup import until_hangup
from kvstet.api.job import Terms, chat_job, text_job
from kvstet.api.openai import answers
from kvstet.api.openai.answers import Answer, head_of
from kvstet.api.openai.prompts import conversation_of, prompts_of
from kvstet.api.openai.requests import ChatRequest, CompletionRequest, GenerationFields
from kvstet.api.openai.sampling import sampling_of, stops_of, token_limit
from kvstet.api.openai.shapes import ChatShape, TextShape
from kvstet.api.ports import Services
from kvstet.api.sse import EventStream
from kvstet.errors import InvalidRequest

Understand = Callable[[bytes, str], Answer]
"""Body and id of a request -> how to answer it. Raises a RequestError."""


class Completions:
    """The two endpoints that generate text."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._chat_shape = ChatShape(services.tokenizer)
        self._text_shape = TextShape(services.tokenizer)

    async def chat(self, request: Request) -> Response:
        return await self._serve(request, self._understand_chat)

    async def text(self, request: Request) -> Response:
        return await self._serve(request, self._understand_text)

    async def _serve(self, request: Request, understand: Understand) -> Response:
        body = await read_body(request, self._services.options.max_body_bytes)
        exchange = exchange_of(request)
        answer = await in_worker(len(body), partial(understand, body, exchange.id))
        generation = answer.job.start(
            self._services, on_first_token=lambda: self._services.metrics.observe_first_token(exchange.seconds)
        )
        if answer.job.terms.is_streamed:
            return EventStream(
                answers.stream(answer, generation),
                encode_error=lambda error: answers.encode_error(exchange.fail(error)),
            )
        return json_response(await until_hangup(request.receive, answers.whole(answer, generation)))

    def _understand_chat(self, body: bytes, id: str) -> Answer:
        fields = decode(body, ChatRequest)
        if fields.top_logprobs and not fields.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        terms = self._terms(
            fields,
            max_new_tokens=token_limit(fields.max_completion_tokens, fields.max_tokens, fields.n_predict),
            num_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        )
        job = chat_job(self._services, id, conversation_of(fields), terms, prompt_field="messages")
        return Answer(head_of(f"chatcmpl-{id}", fields, self._services), job, self._chat_shape, _includes_usage(fields))

    def _understand_text(self, body: bytes, id: str) -> Answer:
        fields = decode(body, CompletionRequest)
        _check_text_fields(fields)
        terms = self._terms(
            fields,
            max_new_tokens=token_limit(fields.max_tokens, fields.n_predict),
            num_logprobs=fields.logprobs,
        )
        prompts = prompts_of(fields.prompt, self._services)
        job = text_job(self._services, id, prompts, terms, prompt_field="prompt")
        echoes = [prompt.text for prompt in prompts for _ in range(terms.num_choices)] if fields.echo else None
        head = head_of(f"cmpl-{id}", fields, self._services)
        return Answer(head, job, self._text_shape, _includes_usage(fields), echoes)

    def _terms(self, fields: GenerationFields, *, max_new_tokens: int | None, num_logprobs: int | None) -> Terms:
        return Terms(
            sampling=sampling_of(fields, self._services.tokenizer, self._services.schema_to_grammar),
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
