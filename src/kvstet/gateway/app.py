"""The gateway's ASGI app: its own few paths, and behind all others the upstream."""

from __future__ import annotations

import asyncio
import secrets

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kvstet import __version__
from kvstet.api.access import Access
from kvstet.api.envelopes import json_response
from kvstet.api.exchange import answer_error
from kvstet.api.guards import HostGuard, KeyGuard, PageGuard
from kvstet.config import ServerOptions
from kvstet.gateway.exchange import GatewayExchange
from kvstet.gateway.forwarder import Forwarder, Preparing
from kvstet.gateway.line import Line
from kvstet.gateway.observing.observer import Observer
from kvstet.gateway.owners import Owners
from kvstet.gateway.upstream import Upstream


class Gateway:
    """An ASGI app, ready to serve; whoever makes it closes it."""

    def __init__(
        self, upstream: Upstream, options: ServerOptions, observer: Observer, preparing: Preparing | None = None
    ) -> None:
        self.upstream = upstream
        self.observer = observer
        self._forwarder = Forwarder(upstream, Line(upstream), observer, preparing)
        self._closing: asyncio.Task[None] | None = None
        routes, layers = self._routes(), self._layers(options)
        self._own_paths = sorted(route.path for route in routes)
        self._own = Starlette(routes=routes, middleware=layers, exception_handlers={HTTPException: answer_error})
        self._own.router.redirect_slashes = False
        self._passing: ASGIApp = self._forwarder
        for layer in reversed(layers):
            self._passing = layer.cls(self._passing, *layer.args, **layer.kwargs)

    def __repr__(self) -> str:
        return f"Gateway({self.upstream.title})"

    async def close(self) -> None:
        """Break off what is under way, and write down what was observed. May be called more than once."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        # A server that is done gives up whoever waits here, and connections would be lost halfway.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._forwarder.close()
        await self.observer.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What passes does not go through Starlette, whose layers take their time."""
        app = self._own if scope["path"] in self._own_paths else self._passing
        await app(scope, receive, send)

    def _layers(self, options: ServerOptions) -> list[Middleware]:
        metrics = self.observer.metrics
        return [
            Middleware(GatewayExchange, metrics),
            Middleware(HostGuard, options.host, options.allowed_hosts),
            Middleware(PageGuard, options.cors_origins),
            Middleware(KeyGuard, Access(options.api_keys), metrics),
            Middleware(Owners, secrets.token_bytes(32)),
        ]

    def _routes(self) -> list[Route]:
        return [
            Route("/", self._index),
            Route("/health", self._health),
            Route("/v1/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/kvstet/sessions", self.observer.sessions.list),
            Route("/v1/kvstet/requests", self.observer.requests.list),
        ]

    async def _index(self, request: Request) -> Response:
        about = "A gateway to hosted models: it observes what their caches do, and passes all else through."
        content = {"name": "kvstet gateway", "version": __version__, "about": about, "paths": self._own_paths}
        return json_response({**content, "upstream": self.upstream.title})

    async def _health(self, request: Request) -> Response:
        """Of the gateway itself: what the upstream does is seen in its answers."""
        return json_response({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        return Response(self.observer.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
