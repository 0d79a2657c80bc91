"""How a job's reply becomes an HTTP response: piece by piece, or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.body import in_worker
from kvstet.api.envelopes import ErrorAnswer, json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.generation import Generation
from kvstet.api.hangup import until_hangup
from kvstet.api.job import Job
from kvstet.api.ports import Served, Services
from kvstet.api.sessions import Visit, sent_by
from kvstet.api.sse import COMMENT, EVENTS, EventStream


async def answer(
    request: Request,
    job: Job,
    served: Served,
    services: Services,
    *,
    stream: Callable[[Generation], AsyncGenerator[bytes, None]],
    whole: Callable[[Generation], Coroutine[Any, Any, object]],
    encode_error: Callable[[ErrorAnswer], bytes],
    content_type: str = EVENTS,
    ping: bytes = COMMENT,
) -> Response:
    """Start the job, and answer in the dialect of ``stream`` or ``whole``, whichever the client wants.

    ``encode_error``, ``content_type`` and ``ping`` are the stream's, see `EventStream`.
    """
    exchange = exchange_of(request)
    services.metrics.observe_substitutions(each.name for prompt in job.prompts for each in prompt.substitutions)
    visit = await _visit(request, job, services)
    if served.foresight is not None and visit is not None and visit.place.before is not None:
        served.foresight.learn(visit.place.before, visit.snapshot)
    generation = job.start(
        served, on_first_token=lambda: services.metrics.observe_first_token(exchange.note_first_token()), visit=visit
    )
    exchange.reply(served.names[0], generation)
    if job.terms.is_streamed:
        return EventStream(
            stream(generation),
            encode_error=lambda error: encode_error(exchange.fail(error)),
            content_type=content_type,
            ping=ping,
        )
    return json_response(await until_hangup(request.receive, whole(generation)))


async def _visit(request: Request, job: Job, services: Services) -> Visit | None:
    """Which conversation it is of; None where it is of none."""
    if job.snapshot is None:
        return None
    snapshot = sent_by(request, job.snapshot)
    num_bytes = sum(prompt.tokens.nbytes for prompt in job.prompts)
    return await in_worker(
        num_bytes, partial(services.sessions.visit, exchange_of(request).id, snapshot, job.terms.wishes)
    )
