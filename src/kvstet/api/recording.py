"""Requests for a reply, and what came of them, on their way into a trace: of a server's app, or a gateway's."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvstet.api.exchange import Exchange
from kvstet.chat.deltas import ParsedReply
from kvstet.traces.answers import HUNG_UP, Answer
from kvstet.traces.format import Call, Plan
from kvstet.traces.recorder import Recorder

MAX_COPY_BYTES = 64 * 1024**2
"""Of a request or a response; longer ones are not recorded."""

_ASKING = ("/chat/completions", "/completions", "/messages", "/responses", "/api/chat", "/api/generate")
"""Ends of the paths at which a model is asked for a reply."""


def recording(app: ASGIApp, recorder: Recorder | None) -> ASGIApp:
    """The app, with what it is asked and answers recorded, if there is a recorder; closing that is the caller's."""
    return app if recorder is None else Recording(app, recorder)


class Recording:
    """Stands around a whole app, so that it sees every answer."""

    def __init__(self, app: ASGIApp, recorder: Recorder) -> None:
        self._app = app
        self._recorder = recorder

    def __repr__(self) -> str:
        return f"Recording({self._recorder!r})"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].endswith(_ASKING):
            await self._app(scope, receive, send)
            return
        copy = _Copy(self._recorder, scope)
        try:
            await self._app(scope, copy.receiving(receive), copy.sending(send))
        finally:
            copy.end()


@dataclass(slots=True)
class _Pieces:
    """Of a body, as far as it is kept."""

    num_bytes: int = 0
    pieces: list[bytes] = field(default_factory=list[bytes], repr=False)

    def add(self, piece: bytes) -> None:
        self.num_bytes += len(piece)
        if self.is_kept:
            self.pieces.append(piece)
        else:
            self.pieces.clear()

    @property
    def is_kept(self) -> bool:
        return self.num_bytes <= MAX_COPY_BYTES

    def take(self) -> bytes:
        content = b"".join(self.pieces)
        self.pieces.clear()
        return content


@dataclass(slots=True)
class _Copy:
    """One request, and its response as far as it was sent. Is recorded from when the request has come whole."""

    recorder: Recorder = field(repr=False)
    scope: Scope = field(repr=False)
    number: int | None = None
    status: int = HUNG_UP
    fields: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    is_complete: bool = False
    first_at: float | None = None
    """When the first piece of the response was sent."""
    asked: _Pieces = field(default_factory=_Pieces)
    answered: _Pieces = field(default_factory=_Pieces)

    def receiving(self, receive: Receive) -> Receive:
        async def copied() -> Message:
            message = await receive()
            if message["type"] == "http.request" and self.number is None:
                self.asked.add(message.get("body", b""))
                if not message.get("more_body", False) and self.asked.is_kept:
                    self._begin()
            return message

        return copied

    def sending(self, send: Send) -> Send:
        async def copied(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.fields = dict(_texts(message["headers"]))
            elif message["type"] == "http.response.body":
                self.is_complete = not message.get("more_body", False)
                self._add(message.get("body", b""))

        return copied

    def end(self) -> None:
        """Nothing more comes."""
        if self.number is None:
            return
        exchange: Exchange = self.scope["state"]["exchange"]
        replied = exchange.generation if exchange.generation is not None and exchange.generation.tokens[0] else None
        answer = Answer(
            self.scope["path"],
            self.status,
            self.fields.get("content-type", ""),
            self.answered.take(),
            self.fields.get("content-encoding", ""),
            is_broken_off=not self.is_complete or exchange.outcome != "ok",
            first_seconds=self._first_seconds(exchange),
            plan=_plan_of(replied.said[0]) if replied is not None else None,
            tokens=tuple(replied.tokens[0]) if replied is not None else None,
            model=exchange.model or "",
        )
        self.recorder.end(self.number, answer)

    def _begin(self) -> None:
        query, path = self.scope["query_string"].decode("latin-1"), self.scope["path"]
        target = f"{path}?{query}" if query else path
        self.number = self.recorder.begin(
            self.scope["method"], target, _texts(self.scope["headers"]), self.asked.take()
        )

    def _add(self, piece: bytes) -> None:
        if piece and self.first_at is None:
            self.first_at = time.perf_counter()
        self.answered.add(piece)

    def _first_seconds(self, exchange: Exchange) -> float | None:
        """Until the first token, where that is known: before it, a stream may keep a client awake."""
        if exchange.generation is not None:
            return exchange.first_token_seconds
        return None if self.first_at is None else self.first_at - exchange.started_at


def _plan_of(reply: ParsedReply) -> Plan:
    calls = [Call(name=call.name, args_raw=call.arguments) for call in reply.calls]
    return Plan(reasoning=reply.reasoning, text=reply.text, calls=calls)


def _texts(fields: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in fields]
