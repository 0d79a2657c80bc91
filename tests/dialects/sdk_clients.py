"""The official clients, wired to a function in place of a server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anthropic
import httpx2
import openai

Serve = Callable[[str, dict[str, Any]], tuple[int, bytes]]
"""Path and body of a request -> status and body of its response."""

_CUT_BYTES = 7


class _Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes in small pieces."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data[start : start + _CUT_BYTES] for start in range(0, len(data), _CUT_BYTES)]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def _transport(serve: Serve) -> httpx2.MockTransport:
    def respond(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        status, data = serve(request.url.path, body)
        is_stream = body.get("stream") and status == 200
        kind = "text/event-stream" if is_stream else "application/json"
        return httpx2.Response(status, headers={"content-type": kind}, stream=_Pieces(data))

    return httpx2.MockTransport(respond)


def openai_client(serve: Serve) -> openai.OpenAI:
    http = httpx2.Client(transport=_transport(serve))
    return openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)


def async_openai_client(serve: Serve) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(transport=_transport(serve))
    return openai.AsyncOpenAI(api_key="k", base_url="http://test/v1", http_client=http, max_retries=0)


def anthropic_client(serve: Serve) -> anthropic.Anthropic:
    http = httpx2.Client(transport=_transport(serve))
    return anthropic.Anthropic(api_key="k", base_url="http://test", http_client=http, max_retries=0)


def async_anthropic_client(serve: Serve) -> anthropic.AsyncAnthropic:
    http = httpx2.AsyncClient(transport=_transport(serve))
    return anthropic.AsyncAnthropic(api_key="k", base_url="http://test", http_client=http, max_retries=0)
