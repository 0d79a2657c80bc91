"""How a job's reply becomes an HTTP response: piece by piece, or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.envelopes import ErrorAnswer, json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.generation import Generation
from kvstet.api.hangup import until_hangup
from kvstet.api.job import Job
from kvstet.api.metrics import Metrics
from kvstet.api.ports import Served
from kvstet.api.sse import COMMENT, EVENTS, EventStream


async def answer(
    request: Request,
    job: Job,
    served: Served,
    metrics: Metrics,
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
    generation = job.start(served, on_first_token=lambda: metrics.observe_first_token(exchange.seconds))
    if job.terms.is_streamed:
        return EventStream(
            stream(generation),
            encode_error=lambda error: encode_error(exchange.fail(error)),
            content_type=content_type,
            ping=ping,
        )
    return json_response(await until_hangup(request.receive, whole(generation)))
