"""The HTTP server's routing table, and what stands around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kvstet import __version__
from kvstet.api import ports
from kvstet.api.access import Access
from kvstet.api.anthropic import endpoints as anthropic
from kvstet.api.anthropic.endpoints import Messages
from kvstet.api.envelopes import ErrorAnswer, json_response
from kvstet.api.exchange import ExchangeMiddleware, answer_error
from kvstet.api.guards import HostGuard, KeyGuard, PageGuard, cors
from kvstet.api.metrics import Metrics
from kvstet.api.models import ModelEndpoint
from kvstet.api.ollama import endpoints as ollama
from kvstet.api.ollama.endpoints import Replies
from kvstet.api.ollama.models import REFUSED, ModelLibrary
from kvstet.api.openai import endpoints as openai
from kvstet.api.openai.endpoints import Completions
from kvstet.api.openai.inspection import Inspection
from kvstet.api.planning import Planning, Understand
from kvstet.api.ports import Services
from kvstet.api.responses.endpoints import Responses
from kvstet.api.substitutions import Substitutions
from kvstet.config import ServerOptions
from kvstet.errors import KvstetError

_LOADING = ErrorAnswer(
    503,
    "No model is ready: it is being loaded, could not be loaded, or starts again after a crash.",
    "server_error",
    "engine_not_ready",
    retry_after_seconds=1.0,
)

_DIALECTS: dict[str, Understand] = {
    "chat": openai.understand_chat,
    "completions": openai.understand_text,
    "messages": anthropic.understand,
    "ollama": ollama.understand_chat,
}

Endpoint = Callable[[Request], Awaitable[Response]] | ModelEndpoint


def create_app(models: ports.Models, options: ServerOptions) -> Starlette:
    """The server of these models. Asks nothing of them until the first request; closing them is the caller's."""
    metrics = Metrics(lambda: {status.names[0]: status.engine for status in models.statuses()})
    services = Services(models, options, metrics)
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
    of_model = partial(ModelEndpoint, services)
    replies, library = Replies(services), ModelLibrary(services)
    planning = Planning(services, {**_DIALECTS, "responses": responses.understand})
    return [
        Route("/", status.index),
        *_both("/health", "GET", status.health),
        Route("/metrics", status.metrics),
        *_both("/models", "GET", inspection.models),
        *_both("/models/{name:path}", "GET", inspection.model),
        *_both("/chat/completions", "POST", of_model(completions.chat)),
        *_both("/completions", "POST", of_model(completions.text)),
        *_both("/responses", "POST", of_model(responses.create)),
        *_both("/responses/{id}", "GET", responses.retrieve),
        *_both("/responses/{id}", "DELETE", responses.delete),
        *_both("/responses/{id}/input_items", "GET", responses.input_items),
        Route("/v1/messages", of_model(messages.messages), methods=["POST"]),
        Route("/v1/messages/count_tokens", of_model(messages.count_tokens), methods=["POST"]),
        Route("/api/chat", of_model(replies.chat), methods=["POST"]),
        Route("/api/generate", of_model(replies.generate), methods=["POST"]),
        Route("/api/tags", library.tags),
        Route("/api/ps", library.running),
        Route("/api/show", library.show, methods=["POST"]),
        Route("/api/version", library.version),
        *(Route(path, library.refuse, methods=["POST", "DELETE"]) for path in REFUSED),
        Route("/v1/kvstet/plan", of_model(planning.plan), methods=["POST"]),
        Route("/v1/kvstet/sessions", services.sessions.list),
        Route("/v1/kvstet/substitutions", Substitutions(services).list),
        Route("/props", inspection.props),
        Route("/slots", inspection.slots),
        Route("/tokenize", of_model(inspection.tokenize), methods=["POST"]),
        Route("/detokenize", of_model(inspection.detokenize), methods=["POST"]),
        Route("/apply-template", of_model(inspection.apply_template), methods=["POST"]),
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
            json_response({"status": "ok"}) if self._services.models.is_ready else _LOADING.response(request.url.path)
        )

    async def metrics(self, request: Request) -> Response:
        return Response(self._services.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
