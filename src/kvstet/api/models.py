"""How a request finds its model, and holds it until the answer is sent."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kvstet.api.body import decode, in_worker, read_body
from kvstet.api.forcing import ForcedReply
from kvstet.api.hangup import until_hangup
from kvstet.api.ports import ModelStatus, Served, Services
from kvstet.api.sessions import Sender
from kvstet.api.wishes import read_wishes
from kvstet.config import ApiKey

Answering = Callable[[Request, bytes, Served], Awaitable[Response]]
"""A request, its body and its model -> the answer."""


class Named(Sender):
    """What is read of a body before it is known who understands it."""

    model: str | None = None
    kvstet_reply: ForcedReply | None = None


class ModelEndpoint:
    """An endpoint whose requests name a model in their bodies. An ASGI application.

    The model is held until the whole answer was sent, however that ends, and so cannot be unloaded under a stream.
    """

    def __init__(self, services: Services, answer: Answering) -> None:
        self._services = services
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        body = await read_body(request, self._services.options.max_body_bytes)
        named = await in_worker(len(body), partial(decode, body, Named))
        request.state.sender = named
        key = cast("ApiKey | None", getattr(request.state, "api_key", None))
        request.state.wishes = read_wishes(request.headers, key, self._services.options, named.kvstet_reply)
        async with AsyncExitStack() as stack:
            # It may have to be loaded first.
            using = stack.enter_async_context(self._services.models.use(named.model))
            served = await until_hangup(receive, using)
            response = await self._answer(request, body, served)
            await response(scope, receive, send)


class OneModel:
    """A model that is loaded; any name is its own. Implements `kvstet.api.ports.Models`."""

    def __init__(self, served: Served) -> None:
        self.served = served

    @property
    def is_ready(self) -> bool:
        return self.served.engine.is_ready

    def statuses(self) -> Sequence[ModelStatus]:
        return (self.status(None),)

    def status(self, name: str | None) -> ModelStatus:
        return ModelStatus(self.served.names, self.served.engine.info, self.served.engine)

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncGenerator[Served, None]:
        yield self.served

    async def close(self) -> None:
        await self.served.engine.close()
