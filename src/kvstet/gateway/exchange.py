"""The outermost layer: gives each request an id, counts it, and answers what nobody else has.

As `kvstet.api.exchange.ExchangeMiddleware`, but for responses that are others': to these it adds nothing.
"""

from __future__ import annotations

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstet.api.envelopes import ErrorAnswer, anthropic_envelope, json_response
from kvstet.api.errors import ClientGone
from kvstet.api.exchange import Exchange
from kvstet.dialects.dialect import dialect_of_path
from kvstet.errors import UpstreamUnreachable
from kvstet.gateway.line import UpstreamBroke
from kvstet.gateway.metrics import GatewayMetrics

logger = logging.getLogger("kvstet.gateway")

OWN, PASSED = "own", "passed"


class GatewayExchange:
    """Middleware."""

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
            answer = _failed(exchange, error)
            if exchange.status is None:
                await answered(scope["path"], answer)(scope, receive, send)
            # Else the response is left without its end, and the server breaks the connection: no client takes what it
            # has for the whole.


def answered(path: str, answer: ErrorAnswer) -> ASGIApp:
    """In the words of the dialect that lives at the path, with whatever prefix."""
    dialect = dialect_of_path(path)
    if dialect is not None and dialect.name == "messages":
        headers = {"retry-after": "1"} if answer.retry_after_seconds else {}
        return json_response(anthropic_envelope(answer), status=answer.status, headers=headers)
    return answer.response(path)


def _failed(exchange: Exchange, error: Exception) -> ErrorAnswer:
    match error:
        case UpstreamBroke():
            logger.warning("request %s: the upstream broke its response off (%s)", exchange.id, error)
            return exchange.fail(UpstreamUnreachable("The upstream broke its response off."))
        case UpstreamUnreachable():
            logger.warning("request %s: %s", exchange.id, error)
            exchange.fail(error)
            return ErrorAnswer(502, str(error), "server_error", error.code, retry_after_seconds=1.0)
        case _:
            return exchange.fail(error)


def _noting(exchange: Exchange, send: Send) -> Send:
    async def note_and_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
        await send(message)

    return note_and_send


def _route(scope: Scope) -> str:
    """The dialect, or whose path it is: clients cannot invent label values."""
    dialect = dialect_of_path(scope["path"])
    if dialect is not None:
        return dialect.name
    return OWN if getattr(scope.get("route"), "path", None) else PASSED
