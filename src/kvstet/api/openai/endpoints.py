"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.body import decode, in_worker, read_body
from kvstet.api.errors import json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.generation import Generation
from kvstet.api.hangup import until_hangup
from kvstet.api.openai import answers
from kvstet.api.openai.job import Job, make_job
from kvstet.api.openai.prompts import prompts_of, render
from kvstet.api.openai.requests import ChatRequest, CompletionRequest
from kvstet.api.openai.sampling import token_limit
from kvstet.api.openai.shapes import ChatShape, Shape, TextShape
from kvstet.api.ports import Services
from kvstet.api.sse import EventStream
from kvstet.errors import InvalidRequest


class Completions:
    """The two endpoints that generate text."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._chat_shape = ChatShape(services.tokenizer)
        self._text_shape = TextShape(services.tokenizer)

    async def chat(self, request: Request) -> Response:
        return await self._serve(request, self._understand_chat, self._chat_shape)

    async def text(self, request: Request) -> Response:
        return await self._serve(request, self._understand_text, self._text_shape)

    async def _serve(self, request: Request, understand: Callable[[bytes], Job], shape: Shape) -> Response:
        body = await read_body(request, self._services.options.max_body_bytes)
        job = await in_worker(len(body), partial(understand, body))
        exchange = exchange_of(request)
        generation = Generation(
            self._services.engine,
            self._services.tokenizer,
            job.requests,
            job.stops,
            on_first_token=lambda: self._services.metrics.observe_first_token(exchange.seconds),
        )
        if job.is_streamed:
            return EventStream(
                answers.stream(job, generation, shape),
                encode_error=lambda error: answers.encode_error(exchange.fail(error)),
            )
        return json_response(await until_hangup(request.receive, answers.whole(job, generation, shape)))

    def _understand_chat(self, body: bytes) -> Job:
        fields = decode(body, ChatRequest)
        if fields.top_logprobs and not fields.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
        return make_job(
            self._services,
            fields,
            [render(self._services.renderer, fields)],
            id_prefix="chatcmpl-",
            prompt_field="messages",
            max_new_tokens=token_limit(fields.max_completion_tokens, fields.max_tokens, fields.n_predict),
            num_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        )

    def _understand_text(self, body: bytes) -> Job:
        fields = decode(body, CompletionRequest)
        _check_text_fields(fields)
        return make_job(
            self._services,
            fields,
            prompts_of(fields.prompt, self._services),
            id_prefix="cmpl-",
            prompt_field="prompt",
            max_new_tokens=token_limit(fields.max_tokens, fields.n_predict),
            num_logprobs=fields.logprobs,
            echoes=bool(fields.echo),
        )


def _check_text_fields(fields: CompletionRequest) -> None:
    if fields.suffix:
        raise InvalidRequest("suffix is not supported: the reply always follows the prompt.", param="suffix")
    if fields.best_of is not None and fields.best_of != (fields.n or 1):
        raise InvalidRequest("best_of is not supported, unless it equals n.", param="best_of")
    if fields.echo and fields.logprobs is not None:
        raise InvalidRequest("echo with logprobs is not supported: the prompt's are not computed.", param="echo")
