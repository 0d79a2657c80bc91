"""One HTTP exchange: its id, how it ended, and the last place where an error may be met."""

from __future__ import annotations

import logging
import time
import traceback
import uuid

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstet.api.envelopes import ErrorAnswer
from kvstet.api.errors import ClientGone, answer_for, is_unforeseen
from kvstet.api.generation import Generation
from kvstet.api.metrics import Metrics, Outcome
from kvstet.errors import KvstetError

logger = logging.getLogger("kvstet.api")


class Exchange:
    """What is known of one request while it is served; found in `request.state.exchange`."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex
        self.started_at = time.perf_counter()
        self.status: int | None = None
        """Set once the response has begun."""
        self.model: str | None = None
        """The name of the model that replies, where one does."""
        self.generation: Generation | None = None
        """Its reply, as it grows."""
        self.first_token_seconds: float | None = None
        self._outcome: Outcome | None = None

    def __repr__(self) -> str:
        return f"Exchange({self.id}, status={self.status}, outcome={self.outcome})"

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    @property
    def outcome(self) -> Outcome:
        """How it ended; a stream that broke off is an error whatever its status said."""
        return self._outcome or _outcome_of(self.status)

    def fail(self, error: Exception) -> ErrorAnswer:
        """What to tell the client; what was not foreseen is logged here, once."""
        answer = answer_for(error, self.id)
        self._outcome = _outcome_of(answer.status)
        if is_unforeseen(error):
            # What others' errors say may quote the request, and prompts do not belong into logs.
            reason = str(error) if isinstance(error, KvstetError) else type(error).__name__
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("request %s failed: %s\n%s", self.id, reason, frames)
        return answer

    def reply(self, model: str, generation: Generation) -> None:
        """A model is about to reply."""
        self.model, self.generation = model, generation

    def note_first_token(self) -> float:
        """The seconds until now."""
        self.first_token_seconds = self.seconds
        return self.first_token_seconds

    def hang_up(self) -> None:
        self._outcome = "disconnected"


class ExchangeMiddleware:
    """Gives every request an `Exchange`, counts it, and answers what nobody else has."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange()
        scope.setdefault("state", {})["exchange"] = exchange
        try:
            await self._serve(exchange, scope, receive, _noting(exchange, send))
        finally:
            self._metrics.observe_request(_route(scope), exchange.outcome, exchange.seconds)

    async def _serve(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientGone:
            exchange.hang_up()
        except Exception as error:
            answer = exchange.fail(error)
            if exchange.status is None:
                await answer.response(scope["path"])(scope, receive, send)


def exchange_of(request: Request) -> Exchange:
    return request.state.exchange


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette's handler for all errors raised on purpose."""
    if isinstance(error, HTTPException):
        answer = exchange_of(request).fail(_in_our_words(error, request))
        return answer.response(request.url.path, dict(error.headers or {}))
    return exchange_of(request).fail(error).response(request.url.path)


def _in_our_words(error: HTTPException, request: Request) -> HTTPException:
    place = f"{request.method} {request.url.path}"
    match error.status_code:
        case 404:
            return HTTPException(404, f"There is nothing at {place}.")
        case 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            return HTTPException(405, f"{place} is not possible; use {allowed}.")
        case _:
            return error


def _noting(exchange: Exchange, send: Send) -> Send:
    async def note_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            id = exchange.id.encode()
            # The second is how Anthropic's SDK wants it.
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", id), (b"request-id", id)]
        await send(message)

    return note_and_send


def _outcome_of(status: int | None) -> Outcome:
    if status is None or status >= 500:
        return "server_error"
    return "client_error" if status >= 400 else "ok"


def _route(scope: Scope) -> str:
    """The path as it stands in the routing table, so that clients cannot invent label values."""
    return getattr(scope.get("route"), "path", "unknown")
