"""The seam to a model: a request goes out, its reply comes back piece by piece."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Protocol

import httpx2

from kvstet.addresses import is_loopback
from kvstet.context.arranging.breakpoints import Marking, marked
from kvstet.dialects.dialect import DialectName, StreamReader, dialect_named
from kvstet.dialects.failures import failure_in_body
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    CallEnd,
    Delta,
    Failure,
    ReplyBegin,
    ReplyEnd,
    TextDelta,
    UsageNews,
)
from kvstet.dialects.request import Request
from kvstet.dialects.values import body_of, to_json
from kvstet.errors import InvalidRequest, ModelFailed
from kvstet.types import Usage

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0
"""A server that says nothing for so long is given up. Models think for minutes."""

_MAX_ERROR_BYTES = 1_000_000


class ModelClient(Protocol):
    """A model that can be asked."""

    def complete(self, request: Request) -> AsyncGenerator[Delta, None]:
        """The reply, up to its end. Raises ModelFailed where it does not come to one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is asked."""

    title: str
    """In words for the user."""
    url: str
    """To post to: ``https://.../v1/chat/completions``."""
    dialect: DialectName
    headers: Mapping[str, str] = field(repr=False, default_factory=dict[str, str])
    """With the key."""
    marking: Marking = field(default_factory=Marking)
    """What its cache has to be told."""


class HttpModel:
    """A model behind an HTTP API, asked once for each `complete`: `kvstet.agent.asking` asks again."""

    def __init__(self, endpoint: Endpoint, *, cache_key: str = "") -> None:
        """``cache_key`` keeps the requests of one conversation on one machine of the provider; empty: none is sent."""
        self._endpoint = endpoint
        self._cache_key = cache_key
        self._dialect = dialect_named(endpoint.dialect)
        self._client = httpx2.AsyncClient(
            timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
            # A proxy cannot reach this machine's loopback address.
            trust_env=not is_loopback(httpx2.URL(endpoint.url).host),
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"HttpModel({self._endpoint.title}, {self._endpoint.dialect})"

    async def close(self) -> None:
        await self._client.aclose()

    async def complete(self, request: Request) -> AsyncGenerator[Delta, None]:
        content, headers = self._written(request)
        with self._translated():
            async with self._client.stream("POST", self._endpoint.url, content=content, headers=headers) as response:
                if not response.is_success:
                    raise self._refusal(response, await _beginning(response))
                async for delta in self._deltas(response):
                    if isinstance(delta, Failure):
                        raise ModelFailed(f"{self._endpoint.title}: {delta.message}", status=delta.status)
                    yield delta

    def _written(self, request: Request) -> tuple[bytes, dict[str, str]]:
        body = self._dialect.write_request(request).body
        names = {"breakpoints", "cache-key"} if self._cache_key else {"breakpoints"}
        body, _, headers = marked(
            body, self._endpoint.dialect, self._endpoint.marking, key=self._cache_key, names=names
        )
        told = {"content-type": "application/json", "accept": "text/event-stream", **self._endpoint.headers}
        return to_json(body).encode(errors="surrogatepass"), {**told, **dict(headers)}

    async def _deltas(self, response: httpx2.Response) -> AsyncGenerator[Delta, None]:
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            for delta in self._whole(await response.aread()):
                yield delta
            return
        reader = StreamReader(self._dialect)
        async for data in response.aiter_bytes():
            for delta in reader.feed(data):
                yield delta
        for delta in reader.finish():
            yield delta

    def _whole(self, data: bytes) -> Sequence[Delta]:
        """Of a server that does not stream."""
        try:
            return self._dialect.reply_reader().whole(body_of(data))
        except InvalidRequest as error:
            raise ModelFailed(f"{self._endpoint.title} did not answer as an API does: {error}", status=502) from None

    def _refusal(self, response: httpx2.Response, data: bytes) -> ModelFailed:
        failure = failure_in_body(response.status_code, data)
        return ModelFailed(
            f"{self._endpoint.title} answered {response.status_code}: {failure.message}",
            status=response.status_code,
            retry_after_seconds=_seconds(response.headers.get("retry-after")),
        )

    @contextmanager
    def _translated(self) -> Generator[None]:
        """Errors of the protocol quote a field, which may be the key, so they are not quoted."""
        title = self._endpoint.title
        try:
            yield
        except httpx2.TimeoutException as error:
            what = "accept a connection" if isinstance(error, httpx2.ConnectTimeout) else "answer"
            raise ModelFailed(f"{title} did not {what} in time.") from None
        except httpx2.ConnectError as error:
            raise ModelFailed(f"{title} cannot be reached: {error}.") from None
        except (httpx2.LocalProtocolError, httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeEncodeError):
            raise ModelFailed(f"{title} cannot be asked: its address or key is not valid.", status=400) from None
        except httpx2.HTTPError as error:
            raise ModelFailed(f"{title} broke the connection off ({type(error).__name__}).") from None


async def _beginning(response: httpx2.Response) -> bytes:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > _MAX_ERROR_BYTES:
            break
    return data


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After field: seconds, or the date when it is worth trying again (RFC 9110, 10.2.3)."""
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = _seconds_until(value or "")
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, OverflowError):
        return math.nan


Reply = Sequence[Delta] | Exception | Callable[[Request], "Reply"]


class ScriptedModel:
    """The fake: gives these replies one after the other, and keeps what it was asked. An exception is raised."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self._replies = iter(replies)
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> AsyncGenerator[Delta, None]:
        self.requests.append(request)
        reply = next(self._replies, None)
        if callable(reply):
            reply = reply(request)
        if reply is None or callable(reply):
            raise ModelFailed("The script has come to its end.", status=400)
        if isinstance(reply, Exception):
            raise reply
        for delta in reply:
            if isinstance(delta, Failure):
                raise ModelFailed(delta.message, status=delta.status)
            yield delta


def saying(text: str = "", *calls: tuple[str, str, str], usage: Usage | None = None) -> list[Delta]:
    """A whole reply for a script; calls are (id, name, arguments)."""
    deltas: list[Delta] = [ReplyBegin("scripted")]
    if text:
        deltas.append(TextDelta(text))
    for index, (id, name, arguments) in enumerate(calls):
        deltas += [CallBegin(index, id, name), ArgumentsDelta(index, arguments), CallEnd(index)]
    if usage is not None:
        deltas.append(UsageNews(usage))
    return [*deltas, ReplyEnd("tool_calls" if calls else "stop")]
