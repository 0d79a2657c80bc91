"""The HTTP server's routing table, and what stands around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvstet import __version__
from kvstet.api.access import Access
from kvstet.api.anthropic.endpoints import Messages
from kvstet.api.envelopes import ErrorAnswer, json_response
from kvstet.api.exchange import ExchangeMiddleware, answer_error
from kvstet.api.guards import HostGuard, KeyGuard, PageGuard, cors
from kvstet.api.metrics import Metrics
from kvstet.api.openai.endpoints import Completions
from kvstet.api.openai.inspection import Inspection
from kvstet.api.ports import Renderer, SchemaToGrammar, Services
from kvstet.api.responses.endpoints import Responses
from kvstet.chat.reply.grammar import SchemaRules
from kvstet.config import ServerOptions
from kvstet.engine.client import EngineClient
from kvstet.errors import KvstetError
from kvstet.types import Tokenizer

_LOADING = ErrorAnswer(
    503,
    "The engine is not ready: it loads the model, or starts again after a crash.",
    "server_error",
    "engine_not_ready",
    retry_after_seconds=1.0,
)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    engine: EngineClient,
    renderer: Renderer,
    tokenizer: Tokenizer,
    options: ServerOptions,
    *,
    schema_to_grammar: SchemaToGrammar,
    schema_rules: SchemaRules,
) -> Starlette:
    """The server of one model. Asks nothing of the engine until the first request; closing it is the caller's."""
    metrics = Metrics(engine)
    services = Services(engine, renderer, tokenizer, schema_to_grammar, schema_rules, options, metrics)
    app = Starlette(
        routes=_routes(services),
        middleware=[
            *cors(options.cors_origins),
            Middleware(ExchangeMiddleware, metrics),
            Middleware(HostGuard, options.host, options.allowed_hosts),
            Middleware(PageGuard, options.cors_origins),
            Middleware(KeyGuard, Access(options.api_keys), metrics),
        ],
        exception_handlers={KvstetError: answer_error, HTTPException: answer_error},
    )
    app.router.redirect_slashes = False
    return app


def _routes(services: Services) -> list[Route]:
    completions, inspection, status = Completions(services), Inspection(services), Status(services)
    messages, responses = Messages(services), Responses(services)
    return [
        Route("/", status.index),
        *_both("/health", "GET", status.health),
        Route("/metrics", status.metrics),
        *_both("/models", "GET", inspection.models),
        *_both("/models/{name:path}", "GET", inspection.model),
        *_both("/chat/completions", "POST", completions.chat),
        *_both("/completions", "POST", completions.text),
        *_both("/responses", "POST", responses.create),
        *_both("/responses/{id}", "GET", responses.retrieve),
        *_both("/responses/{id}", "DELETE", responses.delete),
        *_both("/responses/{id}/input_items", "GET", responses.input_items),
        Route("/v1/messages", messages.messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", messages.count_tokens, methods=["POST"]),
        Route("/props", inspection.props),
        Route("/slots", inspection.slots),
        Route("/tokenize", inspection.tokenize, methods=["POST"]),
        Route("/detokenize", inspection.detokenize, methods=["POST"]),
        Route("/apply-template", inspection.apply_template, methods=["POST"]),
    ]


def _both(path: str, method: str, endpoint: Endpoint) -> list[Route]:
    """The path with and without /v1, as llama-server has them."""
    return [Route(prefix + path, endpoint, methods=[method]) for prefix in ("/v1", "")]


class Status:
    """How the server is."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def index(self, request: Request) -> Response:
        routes = {route.path for route in request.app.routes}
        return json_response(
            {
                "name": "kvstet",
                "version": __version__,
                "about": "An inference server in which an edit to the conversation costs only the tokens it changed.",
                "models": self._services.model_names,
                "paths": sorted(routes),
            }
        )

    async def health(self, request: Request) -> Response:
        return (
            json_response({"status": "ok"}) if self._services.engine.is_ready else _LOADING.response(request.url.path)
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._services.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
