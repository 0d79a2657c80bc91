"""`/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.answering import answer
from kvstet.api.anthropic import events
from kvstet.api.anthropic.conversation import conversation_of
from kvstet.api.anthropic.events import Answer
from kvstet.api.anthropic.requests import CountRequest, MessagesRequest
from kvstet.api.body import decode, in_worker
from kvstet.api.envelopes import json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.job import Terms, chat_job, render
from kvstet.api.ports import SchemaToGrammar, Served, Services
from kvstet.api.wishes import Wishes, wishes_of
from kvstet.errors import InvalidRequest
from kvstet.types import DEFAULT_SAMPLING, Sampling


class Messages:
    """The two endpoints of the Messages API."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def messages(self, request: Request, body: bytes, served: Served) -> Response:
        understood = await in_worker(
            len(body), partial(understand, body, exchange_of(request).id, wishes_of(request), served)
        )
        return await answer(
            request,
            understood.job,
            served,
            self._services,
            stream=partial(events.stream, understood),
            whole=partial(events.whole, understood),
            encode_error=events.encode_error,
            ping=events.PING,
        )

    async def count_tokens(self, request: Request, body: bytes, served: Served) -> Response:
        return json_response(await in_worker(len(body), partial(_count, body, served)))


def understand(body: bytes, id: str, wishes: Wishes, served: Served) -> Answer:
    fields = decode(body, MessagesRequest)
    if fields.messages[-1].role == "assistant":
        raise InvalidRequest(
            "messages must not end with an assistant message: this server cannot go on with a reply that is given.",
            param="messages",
        )
    terms = replace(_terms(fields, served.schema_to_grammar), wishes=wishes)
    job = chat_job(served, id, conversation_of(fields), terms, prompt_field="messages")
    return Answer(
        f"msg_{id}",
        fields.model or served.names[0],
        job,
        "omitted" if fields.thinking and fields.thinking.display == "omitted" else "shown",
        manages_context=fields.context_management is not None,
    )


def _count(body: bytes, served: Served) -> dict[str, Any]:
    fields = decode(body, CountRequest)
    num_tokens = len(render(served.renderer, conversation_of(fields)).tokens)
    if fields.context_management is None:
        return {"input_tokens": num_tokens}
    return {"input_tokens": num_tokens, "context_management": {"original_input_tokens": num_tokens}}


def _terms(fields: MessagesRequest, schema_to_grammar: SchemaToGrammar) -> Terms:
    stops = dict.fromkeys(stop for stop in fields.stop_sequences or () if stop)
    return Terms(
        sampling=_sampling(fields, schema_to_grammar),
        stops=tuple(stops),
        max_new_tokens=fields.max_tokens,
        is_streamed=bool(fields.stream),
    )


def _sampling(fields: MessagesRequest, schema_to_grammar: SchemaToGrammar) -> Sampling:
    named = {"temperature": fields.temperature, "top_p": fields.top_p, "top_k": fields.top_k}
    given = {name: value for name, value in named.items() if value is not None}
    return replace(DEFAULT_SAMPLING, **given, grammar=_grammar(fields, schema_to_grammar))


def _grammar(fields: MessagesRequest, schema_to_grammar: SchemaToGrammar) -> str | None:
    wanted = (fields.output_config and fields.output_config.format) or fields.output_format
    return None if wanted is None else schema_to_grammar(wanted.schema)
