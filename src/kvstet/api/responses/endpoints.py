"""`/v1/responses` and what lies under it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.answering import answer
from kvstet.api.body import decode, in_worker
from kvstet.api.envelopes import ErrorAnswer, json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.job import Conversation, Job, Terms, chat_job
from kvstet.api.openai.requests import GenerationFields
from kvstet.api.openai.sampling import sampling_of, stops_of
from kvstet.api.ports import Served, Services
from kvstet.api.responses import events
from kvstet.api.responses.conversation import conversation_of, found_tools, items_of, resolved
from kvstet.api.responses.events import Body, Head, Stream
from kvstet.api.responses.requests import Item, ResponsesRequest
from kvstet.api.responses.store import KeptItem, ResponseStore, StoredResponse, kept_inputs, page_of
from kvstet.api.responses.tools import Toolbox, toolbox_of
from kvstet.api.responses.truncation import job_that_fits
from kvstet.api.wishes import Wishes, wishes_of
from kvstet.errors import InvalidRequest, RequestError
from kvstet.types import Sampling

_SEALED_REASONING = "reasoning.encrypted_content"
_DEFAULT_PAGE, _MAX_PAGE = 20, 100
_SAMPLING_FIELDS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "frequency_penalty",
    "presence_penalty",
    "dry_multiplier",
    "dry_allowed_length",
    "seed",
    "stop",
)


@dataclass(frozen=True, slots=True)
class Understood:
    """A request, and how it is answered."""

    head: Head
    job: Job
    history: tuple[KeptItem, ...]
    new_items: list[Item]
    is_stored: bool


class Responses:
    """The endpoints. Stored responses are kept in memory, and lost when the server restarts."""

    def __init__(self, services: Services, store: ResponseStore | None = None) -> None:
        self._services = services
        self._store = store or ResponseStore()

    async def create(self, request: Request, body: bytes, served: Served) -> Response:
        understood = await in_worker(
            len(body), partial(self.understand, body, exchange_of(request).id, wishes_of(request), served)
        )
        head, job, keep = understood.head, understood.job, partial(self._keep, understood)
        stream = Stream(head)
        return await answer(
            request,
            job,
            served,
            self._services,
            stream=lambda generation: events.stream(stream, job, generation, keep),
            whole=lambda generation: events.whole(head, job, generation, keep),
            encode_error=stream.failure,
        )

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise InvalidRequest("A response is streamed only while it is created.", param="stream")
        stored = self._store.get(request.path_params["id"])
        return _not_found(request) if stored is None else Response(stored.body, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self._store.delete(id):
            return _not_found(request)
        return json_response({"id": id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        stored = self._store.get(request.path_params["id"])
        if stored is None:
            return _not_found(request)
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("order is asc or desc.", param="order")
        after = request.query_params.get("after")
        return json_response(page_of(stored, order=order, limit=_page_limit(request), after=after))

    def understand(self, body: bytes, id: str, wishes: Wishes, served: Served) -> Understood:
        fields = decode(body, ResponsesRequest)
        _check(fields)
        history = self._store.history(fields.previous_response_id)
        old_items = [kept.data for kept in history]
        new_items = resolved(items_of(fields.input), self._store.find_item)
        tools = toolbox_of(fields.tools or (), found_tools([*old_items, *new_items]))
        conversation = conversation_of(fields, old_items, new_items, tools)
        terms = replace(_terms(fields, served), wishes=wishes)
        return Understood(
            head=_head(fields, id, terms.sampling, tools, served),
            job=_job(fields, id, conversation, terms, served),
            history=history,
            new_items=new_items,
            is_stored=fields.store is not False,
        )

    def _keep(self, understood: Understood, body: Body) -> None:
        if not understood.is_stored:
            return
        new = kept_inputs(understood.new_items, understood.head.number)
        output = tuple(KeptItem(item, has_own_id=True) for item in body["output"])
        encoded = msgspec.json.encode(body)
        self._store.keep(StoredResponse(body["id"], encoded, (*understood.history, *new), output))


def _terms(fields: ResponsesRequest, served: Served) -> Terms:
    given = GenerationFields(**{name: getattr(fields, name) for name in _SAMPLING_FIELDS})
    sampling = sampling_of(given, served.tokenizer, served.schema_to_grammar)
    return Terms(
        sampling=replace(sampling, grammar=_grammar(fields, served)),
        stops=stops_of(given),
        max_new_tokens=fields.max_output_tokens,
        uses_cache=fields.cache_prompt is not False,
        is_streamed=bool(fields.stream),
    )


def _grammar(fields: ResponsesRequest, served: Served) -> str | None:
    wanted = fields.text.format if fields.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_schema" and wanted.schema is None:
        raise InvalidRequest("A format of type json_schema needs an object as its schema.", param="text.format.schema")
    return served.schema_to_grammar(wanted.schema or {"type": "object"})


def _job(fields: ResponsesRequest, number: str, conversation: Conversation, terms: Terms, served: Served) -> Job:
    def new_job(conversation: Conversation) -> Job:
        return chat_job(served, number, conversation, terms, prompt_field="input")

    try:
        return job_that_fits(conversation, new_job) if fields.truncation == "auto" else new_job(conversation)
    except RequestError as error:
        if error.param is not None and error.param.startswith("messages"):
            error.param = "input"
        raise


def _head(fields: ResponsesRequest, number: str, sampling: Sampling, tools: Toolbox, served: Served) -> Head:
    frame: Body = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "model": fields.model or served.names[0],
        "output": [],
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": fields.previous_response_id,
        "prompt_cache_key": fields.prompt_cache_key,
        "reasoning": fields.reasoning or {"effort": None, "summary": None},
        "safety_identifier": fields.safety_identifier,
        "service_tier": "default",
        "store": fields.store is not False,
        "temperature": sampling.temperature,
        "text": _text_config(fields),
        "tool_choice": _without_nulls(fields.tool_choice or "auto"),
        "tools": fields.tools or [],
        "top_logprobs": 0,
        "top_p": sampling.top_p,
        "truncation": fields.truncation or "disabled",
        "usage": None,
        "user": fields.user,
        "metadata": fields.metadata or {},
    }
    seals = _SEALED_REASONING in (fields.include or ())
    return Head(number, frame, tools, seals, served.tokenizer)


def _check(fields: ResponsesRequest) -> None:
    """InvalidRequest for what would need OpenAI's own server."""
    if fields.background:
        raise InvalidRequest("background is not supported: a response ends with its request.", param="background")
    for name, value in (("conversation", fields.conversation), ("prompt", fields.prompt)):
        if value is not None:
            raise InvalidRequest(f"{name} is not supported: it names what this server does not have.", param=name)


def _text_config(fields: ResponsesRequest) -> dict[str, Any]:
    wanted = fields.text.format if fields.text else None
    verbosity = fields.text.verbosity if fields.text else None
    return {"format": _without_nulls(wanted or {"type": "text"}), "verbosity": verbosity or "medium"}


def _without_nulls(value: object) -> object:
    plain: object = msgspec.to_builtins(value)
    if not isinstance(plain, dict):
        return plain
    return {key: part for key, part in cast("dict[str, object]", plain).items() if part is not None}


def _page_limit(request: Request) -> int:
    text = request.query_params.get("limit", str(_DEFAULT_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 1 <= int(text) <= _MAX_PAGE):
        raise InvalidRequest(f"limit is a number from 1 to {_MAX_PAGE}.", param="limit")
    return int(text)


def _not_found(request: Request) -> Response:
    message = f"Response with id {request.path_params['id']!r} not found: it was not stored, or is not kept any more."
    return ErrorAnswer(404, message, "invalid_request_error", "response_not_found").response(request.url.path)
