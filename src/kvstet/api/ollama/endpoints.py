"""`/api/chat` and `/api/generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.answering import answer
from kvstet.api.body import decode, in_worker
from kvstet.api.envelopes import json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.job import Terms, chat_job, text_job
from kvstet.api.ollama import events
from kvstet.api.ollama.conversation import check_images, conversation_of, prompt_conversation
from kvstet.api.ollama.events import Answer, Line, chat_fields, generate_fields
from kvstet.api.ollama.requests import ChatRequest, GenerateRequest, GenerationFields, Options
from kvstet.api.openai import requests as openai
from kvstet.api.openai.sampling import sampling_of, stops_of
from kvstet.api.openai.shapes import ChatShape
from kvstet.api.ports import Served, Services
from kvstet.api.wishes import Wishes, wishes_of
from kvstet.errors import InvalidRequest

Understand = Callable[[bytes, str, Wishes, Served], Answer | Line]
"""Body, id and wishes of a request, and its model -> how to answer it, or the answer where nothing is generated.

Raises a RequestError."""

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
)


class Replies:
    """The two endpoints that generate."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def chat(self, request: Request, body: bytes, served: Served) -> Response:
        return await self._serve(request, body, served, understand_chat)

    async def generate(self, request: Request, body: bytes, served: Served) -> Response:
        return await self._serve(request, body, served, understand_prompt)

    async def _serve(self, request: Request, body: bytes, served: Served, understand: Understand) -> Response:
        understood = await in_worker(
            len(body), partial(understand, body, exchange_of(request).id, wishes_of(request), served)
        )
        if isinstance(understood, dict):
            return json_response(understood)
        return await answer(
            request,
            understood.job,
            served,
            self._services,
            stream=partial(events.stream, understood),
            whole=partial(events.whole, understood),
            encode_error=events.encode_error,
            content_type=events.LINES,
            ping=events.ping_of(understood),
        )


def understand_chat(body: bytes, id: str, wishes: Wishes, served: Served) -> Answer | Line:
    fields = decode(body, ChatRequest)
    model = fields.model or served.names[0]
    if not fields.messages:
        return events.loaded(model, chat_fields)
    terms = replace(_terms(fields, served), wishes=wishes)
    job = chat_job(served, id, conversation_of(fields), terms, prompt_field="messages")
    return Answer(model, job, chat_fields, ChatShape(served.tokenizer))


def understand_prompt(body: bytes, id: str, wishes: Wishes, served: Served) -> Answer | Line:
    fields = decode(body, GenerateRequest)
    _check(fields)
    model = fields.model or served.names[0]
    if not fields.prompt:
        return events.loaded(model, generate_fields)
    terms = replace(_terms(fields, served), wishes=wishes)
    if fields.raw:
        job = text_job(served, id, [served.renderer.raw(fields.prompt)], terms, prompt_field="prompt")
    else:
        job = chat_job(served, id, prompt_conversation(fields), terms, prompt_field="prompt")
    ignored = ("template",) if fields.template else ()
    return Answer(model, job, generate_fields, ChatShape(served.tokenizer), ignored)


def _terms(fields: GenerationFields, served: Served) -> Terms:
    options = fields.options or Options()
    given = openai.GenerationFields(
        **{name: getattr(options, name) for name in _SAMPLING_FIELDS}, response_format=_format(fields.format)
    )
    limit = options.num_predict
    return Terms(
        sampling=sampling_of(given, served.tokenizer, served.schema_to_grammar),
        stops=stops_of(given),
        max_new_tokens=limit if limit and limit > 0 else None,
        num_logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        is_streamed=fields.stream is not False,
    )


def _format(wanted: str | dict[str, object] | None) -> openai.ResponseFormat | None:
    match wanted:
        case None | "":
            return None
        case "json":
            return openai.ResponseFormat("json_object")
        case dict():
            return openai.ResponseFormat("json_schema", schema=wanted)
        case _:
            raise InvalidRequest(f"format is 'json' or a JSON schema, not {wanted!r}.", param="format")


def _check(fields: GenerateRequest) -> None:
    check_images(fields.images, "images")
    if fields.suffix:
        raise InvalidRequest("suffix is not supported: the reply always follows the prompt.", param="suffix")
    if fields.context:
        # To leave it out would be worse: the model would answer as if nothing had been said before.
        raise InvalidRequest("context is not supported: send the conversation to /api/chat.", param="context")
    if fields.raw and (fields.system or fields.template):
        raise InvalidRequest("A raw prompt takes neither system nor template: it is all that the model reads.")
