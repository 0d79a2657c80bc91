"""Asks a server, many requests at a time; what it tells of the costs is read as `kvstet.replay` reads it."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx2
import msgspec

from kvstet.bench.servers import Server
from kvstet.bench.steps import Body
from kvstet.errors import ServerGone
from kvstet.replay.asking import Account, Answer, Timings
from kvstet.replay.playing import note_costs
from kvstet.replay.results import Asked
from kvstet.types import Usage

PATHS = {"chat": "/v1/chat/completions", "text": "/v1/completions"}

STREAMED: Body = {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}

PATIENCE_SECONDS = 900.0
"""A server that has said nothing for so long says nothing any more."""

_MAX_ERROR_CHARACTERS = 300


def client_of(server: Server) -> httpx2.AsyncClient:
    """Asks a server, on a connection for each request: a server may close one that rests just when it is to be used."""
    limits = httpx2.Limits(max_keepalive_connections=0)
    return httpx2.AsyncClient(
        base_url=server.url, trust_env=False, timeout=PATIENCE_SECONDS, verify=_certificates(), limits=limits
    )


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: that takes longer than many a request."""
    return ssl.create_default_context()


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Choice(msgspec.Struct):
    delta: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    text: str | None = None
    finish_reason: str | None = None

    @property
    def says(self) -> bool:
        """Whether it brings a piece of the reply."""
        return bool(self.text) or any(value for name, value in self.delta.items() if name != "role")


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list[_Choice])
    usage: _Usage | None = None
    timings: Timings | None = None
    kvstet: Account | None = None
    error: Any = None


@dataclass(slots=True)
class Reading:
    """What a stream has told so far; times are those of `time.perf_counter`."""

    begun: float = field(default_factory=time.perf_counter)
    first_seconds: float | None = None
    """Until the first token; of a reply that shows none, until its end."""
    piece_times: list[float] = field(default_factory=list[float])
    error: str | None = None
    _usage: _Usage = field(default_factory=_Usage)
    _timings: Timings | None = None
    _account: Account | None = None

    def take(self, chunk: _Chunk) -> None:
        now = time.perf_counter()
        says, ends = any(each.says for each in chunk.choices), any(each.finish_reason for each in chunk.choices)
        if says:
            self.piece_times.append(now)
        if self.first_seconds is None and (says or ends):
            self.first_seconds = now - self.begun
        self._usage = chunk.usage or self._usage
        self._timings = chunk.timings or self._timings
        self._account = chunk.kvstet or self._account
        if chunk.error is not None:
            self.error = str(chunk.error)[:_MAX_ERROR_CHARACTERS]

    @property
    def answer(self) -> Answer:
        details = self._usage.prompt_tokens_details or _Details()
        usage = Usage(num_input_tokens=self._usage.prompt_tokens, num_cache_read_tokens=details.cached_tokens)
        seconds = time.perf_counter() - self.begun
        return Answer(seconds, self.first_seconds, usage, self._account, self._timings)


async def ask(client: httpx2.AsyncClient, path: str, body: Body, label: str, began: float) -> Asked:
    """One request, to its end. ``began``: when the run did.

    A refusal is an `Asked` with its error. ServerGone: the connection failed or broke.
    """
    reading = await stream(client, path, body)
    answer = reading.answer
    asked = Asked(label=label, at_seconds=reading.begun - began, seconds=answer.seconds, error=reading.error)
    asked.first_token_seconds = answer.first_seconds
    if reading.error is None:
        note_costs(asked, answer)
    return asked


async def stream(client: httpx2.AsyncClient, path: str, body: Body) -> Reading:
    """Read one streamed reply; see `ask`."""
    reading = Reading()
    try:
        async with client.stream("POST", path, json=STREAMED | body) as response:
            if response.is_error:
                await response.aread()
                reading.error = f"{response.status_code}: {response.text[:_MAX_ERROR_CHARACTERS]}"
                return reading
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    reading.take(msgspec.json.decode(line.removeprefix("data: "), type=_Chunk))
    except httpx2.HTTPError as error:
        raise ServerGone(f"The server answers no more: {error or type(error).__name__}.") from error
    except msgspec.MsgspecError as error:
        reading.error = f"The answer cannot be read: {error}"
    return reading
