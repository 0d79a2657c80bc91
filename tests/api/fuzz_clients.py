"""Clients that send damaged requests in the three main dialects, several at a time, and some of which hang up."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from random import Random
from typing import Any

import httpx2
from starlette.types import ASGIApp
from tests.api.mutations import Sample, mutant
from tests.api.samples import HANDWRITTEN, recorded
from tests.api.test_fuzz import judge

MAIN_DIALECTS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
HANG_SECONDS = 120.0

STREAM_ENDS = (
    b"data: [DONE]",
    b'"type":"message_stop"',
    b'"type":"response.completed"',
    b'"type":"response.incomplete"',
)

Pause = Callable[[int], Awaitable[None]]
"""Lets the engine do about so many steps."""

Stage = Callable[[str], str]
"""How far a request has come whose engine requests are called this and a number."""


@dataclass(frozen=True)
class Sizes:
    """What requests are cut to, so that most of them fit a small context."""

    max_text: int
    """Characters in any string."""
    max_tools: int
    max_messages: int

    def lean(self, body: dict[str, Any]) -> dict[str, Any]:
        """A copy that is no larger."""
        most = {"tools": self.max_tools, "messages": self.max_messages, "input": self.max_messages}
        cut = {
            key: value[: most[key]] if isinstance(value, list) and key in most else value for key, value in body.items()
        }
        return {key: self._shortened(value) for key, value in cut.items()}

    def _shortened(self, value: Any) -> Any:
        match value:
            case str():
                half = self.max_text // 2
                return value if len(value) <= self.max_text else value[:half] + value[-half:]
            case list():
                return [self._shortened(item) for item in value]
            case dict():
                return {key: self._shortened(item) for key, item in value.items()}
            case _:
                return value


@cache
def samples(sizes: Sizes) -> list[Sample]:
    """Real requests in the main dialects. They take a second to read."""
    found = [Sample(sample.path, sizes.lean(sample.body)) for sample in (*recorded(), *HANDWRITTEN, *HANDWRITTEN)]
    return [sample for sample in found if sample.path.startswith(MAIN_DIALECTS)]


@dataclass(frozen=True)
class Shot:
    """A request, and how its client behaves."""

    number: int
    path: str
    body: bytes
    is_damaged: bool
    delay: int
    """Steps until it is sent."""
    hang_up_step: int | None
    """Steps after which the client is gone."""
    hang_up_stage: str | None
    """Where in the engine the request is when the client goes."""
    hang_up_piece: int | None
    """Pieces of the answer after which the client is gone."""
    is_cut: bool
    """The client is gone in the middle of the body."""
    slowness: int
    """Steps that the client takes to read a piece."""

    @property
    def label(self) -> str:
        return f"shot {self.number} at {self.path}"

    @property
    def dialect(self) -> str:
        return next(path for path in MAIN_DIALECTS if self.path.startswith(path))


class Magazine:
    """Makes the shots of one run; the same for a seed, as long as the answers are the same."""

    def __init__(self, seed: int, samples: list[Sample], reply_lengths: Sequence[int | None]) -> None:
        """``reply_lengths``: what clients ask for; None: they ask for what the sample does."""
        self._random = Random(seed)
        self._samples = {path: [s for s in samples if s.path.startswith(path)] for path in MAIN_DIALECTS}
        self._grown: dict[str, deque[Sample]] = {path: deque(maxlen=6) for path in MAIN_DIALECTS}
        """Conversations that go on from an answer."""
        self._reply_lengths = reply_lengths
        self._number = 0

    def next(self) -> Shot:
        """Most are damaged; the others keep the engine busy meanwhile."""
        random = self._random
        dialect = random.choice(MAIN_DIALECTS)
        grown = self._grown[dialect]
        goes_on = bool(grown) and random.random() < 0.4
        sample = random.choice([*grown, grown[-1], grown[-1]] if goes_on else self._samples[dialect])
        sample = self._with_options(sample)
        sound = json.dumps(sample.body).encode()
        body = mutant(sample, random) if random.random() < (0.5 if goes_on else 0.8) else sound
        self._number += 1
        gone = random.choice(("step", "stage", "stage", "piece", "body")) if random.random() < 0.4 else None
        return Shot(
            self._number,
            sample.path,
            body,
            is_damaged=body != sound,
            delay=random.choice((0, 0, 1, 3, 10, 40)),
            hang_up_step=random.choice((0, 1, 2, 3, 5, 8, 15, 30, 60)) if gone == "step" else None,
            hang_up_stage=random.choice(("queue", "prompt", "prompt", "prompt", "reply")) if gone == "stage" else None,
            hang_up_piece=random.choice((1, 2, 3, 5, 12)) if gone == "piece" else None,
            is_cut=gone == "body" and random.random() < 0.2,
            slowness=random.choice((0, 0, 0, 1, 10)),
        )

    def _with_options(self, sample: Sample) -> Sample:
        random, body = self._random, dict(sample.body)
        if random.random() < 0.6:
            body["stream"] = random.random() < 0.5
        if random.random() < 0.05:
            body["cache_prompt"] = False
        length = random.choice(self._reply_lengths)
        if length is not None and not sample.path.endswith("count_tokens"):
            body["max_output_tokens" if sample.path.startswith("/v1/responses") else "max_tokens"] = length
        return Sample(sample.path, body)

    def learn(self, shot: Shot, response: httpx2.Response) -> None:
        """Let the conversation go on from the answer, if it can be read."""
        try:
            body, answer = json.loads(shot.body), response.json()
            grown = _grown(shot.path, body, answer)
        except (ValueError, LookupError, TypeError):
            return  # A stream, or a body that only the server's own decoder understands.
        if grown is not None:
            self._grown[shot.dialect].append(Sample(shot.path, grown))


def _grown(path: str, body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any] | None:
    user = {"role": "user", "content": "Go on."}
    if path.startswith("/v1/responses"):
        return {**body, "previous_response_id": answer["id"], "input": [user]}
    if path.startswith("/v1/chat"):
        return {**body, "messages": [*body["messages"], answer["choices"][0]["message"], user]}
    if "content" not in answer:
        return None
    reply = {"role": "assistant", "content": answer["content"]}
    results = [
        {"type": "tool_result", "tool_use_id": block["id"], "content": "done"}
        for block in answer["content"]
        if block["type"] == "tool_use"
    ]
    return {**body, "messages": [*body["messages"], reply, {"role": "user", "content": results or "Go on."}]}


@dataclass
class Call:
    """One exchange with the server, as the server sees it."""

    shot: Shot
    pause: Pause
    stage: Stage
    hung_up_in: str | None = None
    """The stage; None: the client has stayed."""
    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    pieces: list[bytes] = field(default_factory=list[bytes])
    is_complete: bool = False
    error: str | None = None
    scope: dict[str, Any] = field(default_factory=dict[str, Any])
    _is_over: asyncio.Event = field(default_factory=asyncio.Event)
    _is_sent: bool = False

    async def run(self, app: ASGIApp) -> None:
        """Returns when the server is done with it."""
        await self.pause(self.shot.delay)
        path, _, query = self.shot.path.partition("?")
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(self.shot.body)),
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        leaving = asyncio.create_task(self._leave())
        try:
            await asyncio.wait_for(app(self.scope, self._receive, self._send), HANG_SECONDS)
        except TimeoutError:
            self.error = "it hangs"
        except Exception as error:
            self.error = f"the application raised {error!r}"
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    @property
    def id(self) -> str:
        """What the engine's requests for it begin with; more than any, before it has one."""
        state = self.scope.get("state", {})
        return f"{state['exchange'].id}:" if "exchange" in state else "none"

    def response(self) -> httpx2.Response:
        assert self.status is not None
        return httpx2.Response(self.status, headers=self.headers, content=b"".join(self.pieces))

    def faults(self) -> list[str]:
        """What is wrong with how it was answered."""
        if self.error is not None:
            return [self.error]
        if self.hung_up_in is not None:
            return []
        if self.status is None or not self.is_complete:
            return [f"no whole answer: status {self.status}, {len(self.pieces)} pieces"]
        response = self.response()
        faults = judge(self.shot.path, response)
        if not faults and response.headers["content-type"].startswith("text/event-stream"):
            is_ended = any(end in response.content for end in STREAM_ENDS)
            return [] if is_ended else [f"a stream without an end: {response.text[-300:]}"]
        return [fault for fault in faults if not _is_refusal(fault)]

    async def _leave(self) -> None:
        if self.shot.hang_up_step is not None:
            await self.pause(self.shot.hang_up_step)
            self._hang_up()
        elif self.shot.hang_up_stage is not None:
            while self.stage(self.id) != self.shot.hang_up_stage:
                await self.pause(1)
            self._hang_up()

    def _hang_up(self) -> None:
        if not self._is_over.is_set():
            self.hung_up_in = self.stage(self.id)
            self._is_over.set()

    async def _receive(self) -> MutableMapping[str, Any]:
        if self.shot.is_cut:
            if not self._is_sent:
                self._is_sent = True
                half = self.shot.body[: len(self.shot.body) // 2]
                return {"type": "http.request", "body": half, "more_body": True}
            self._hang_up()
        elif not self._is_sent:
            self._is_sent = True
            return {"type": "http.request", "body": self.shot.body, "more_body": False}
        await self._is_over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._is_over.is_set():
            return  # As uvicorn does: what is sent to nobody is lost.
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            return
        self.pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            self.is_complete = True
            self._is_over.set()
        elif len(self.pieces) == self.shot.hang_up_piece:
            self._hang_up()
        await self.pause(self.shot.slowness)


def _is_refusal(fault: str) -> bool:
    """A stream ended with an error that is the request's own: what the grammar does not allow, or no room for it."""
    return fault.startswith("an error within the stream") and any(
        code in fault for code in ("invalid_", "rate_limit", "queue_full")
    )
