"""One request to a server, streamed, in any dialect, and what the server tells of its costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec

from kvstet.dialects.dialect import Dialect
from kvstet.dialects.failures import failure_in_body
from kvstet.dialects.reply import (
    ArgumentsDelta,
    CallBegin,
    Delta,
    Failure,
    ReasoningDelta,
    RefusalDelta,
    ReplyEnd,
    TextDelta,
)
from kvstet.dialects.sse import SseDecoder, SseEvent
from kvstet.dialects.whole import reply_of
from kvstet.errors import ServerGone
from kvstet.replay.session import Body
from kvstet.types import Usage

_SAYS = (ReasoningDelta, TextDelta, RefusalDelta, CallBegin, ArgumentsDelta, ReplyEnd)
"""Show that the first token is out; the end, where a reply shows none."""

_COSTS = ('"kvstet"', '"timings"')


class Account(msgspec.Struct):
    """kvstet's own words."""

    reused: int
    loaded: int
    shifted: int
    computed: int
    verdict: str = ""

    @property
    def num_prompt_tokens(self) -> int:
        return self.reused + self.loaded + self.shifted + self.computed


class Timings(msgspec.Struct):
    """llama-server's: ``prompt_n`` were computed, ``cache_n`` were not."""

    prompt_n: int
    cache_n: int | None = None


class _Costs(msgspec.Struct):
    timings: Timings | None = None
    kvstet: Account | None = None


class _Event(_Costs):
    response: _Costs | None = None
    """Where the Responses API puts them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request."""

    seconds: float
    first_seconds: float | None = None
    """Until the first token; None: there was none."""
    usage: Usage = field(default_factory=Usage)
    account: Account | None = None
    timings: Timings | None = None
    failure: Failure | None = None


def ask(client: httpx2.Client, dialect: Dialect, body: Body, headers: Mapping[str, str]) -> Answer:
    """To its end. A refusal is an answer with its failure. ServerGone: the connection failed or broke."""
    begun = time.perf_counter()
    try:
        with client.stream("POST", dialect.path, json=body, headers=dict(headers)) as response:
            if response.is_error:
                failure = failure_in_body(response.status_code, response.read())
                return Answer(time.perf_counter() - begun, failure=failure)
            return _read(response, dialect, begun)
    except httpx2.HTTPError as error:
        raise ServerGone(f"The server answers no more: {error or type(error).__name__}.") from error


def _read(response: httpx2.Response, dialect: Dialect, begun: float) -> Answer:
    decoder, reader = SseDecoder(), dialect.reply_reader()
    deltas: list[Delta] = []
    costs: list[_Costs] = []
    first_seconds: float | None = None
    for data in response.iter_bytes():
        events = decoder.feed(data)
        news = [delta for event in events for delta in reader.feed(event)]
        if first_seconds is None and any(isinstance(delta, _SAYS) for delta in news):
            first_seconds = time.perf_counter() - begun
        deltas += news
        costs += _costs_in(events)
    last = decoder.finish()
    deltas += [delta for event in last for delta in reader.feed(event)] + reader.finish()
    reply = reply_of(deltas)
    told = [*costs, *_costs_in(last)]
    return Answer(
        time.perf_counter() - begun,
        first_seconds,
        reply.usage,
        next((each.kvstet for each in reversed(told) if each.kvstet), None),
        next((each.timings for each in reversed(told) if each.timings), None),
        reply.failure,
    )


def _costs_in(events: Sequence[SseEvent]) -> list[_Costs]:
    """What kvstet and llama-server add to their last events."""
    found: list[_Costs] = []
    for event in events:
        if any(name in event.data for name in _COSTS):
            try:
                told = msgspec.json.decode(event.data, type=_Event)
            except msgspec.MsgspecError:
                # The model may say such words, and other servers may mean something else by them.
                continue
            found += [told.response or told]
    return found


def get(client: httpx2.Client, path: str) -> Any:
    """The JSON there; None: there is none. ServerGone: no connection."""
    try:
        answer = client.get(path)
        return answer.json() if answer.is_success else None
    except httpx2.HTTPError as error:
        raise ServerGone(f"No server answers at {client.base_url}: {error or type(error).__name__}.") from error
    except ValueError:
        return None


def post(client: httpx2.Client, path: str, body: Body) -> tuple[int, Any]:
    """Status and JSON, None where it is none. ServerGone: no connection."""
    try:
        answer = client.post(path, json=body)
    except httpx2.HTTPError as error:
        raise ServerGone(f"The server answers no more: {error or type(error).__name__}.") from error
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, None
