"""One HTTP request's replies: engine events go in, pieces of text and an account of the costs come out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal, Protocol

from kvstet.api.decoding import TextStream, TokenText
from kvstet.api.feed import Arrival, Feed
from kvstet.api.ports import ReplyParser
from kvstet.api.sessions import Visit
from kvstet.chat.deltas import Delta, ParsedReply, message_of
from kvstet.engine.client import EngineClient
from kvstet.engine.messages import Event, Finished, Generate, Started, Token
from kvstet.errors import EngineCrashed, ShuttingDown
from kvstet.types import Reuse

EndReason = Literal["stop", "length"]


class OnEnd(Protocol):
    def __call__(self, tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """What one choice says next; ``end`` is set on its last piece."""

    choice: int
    deltas: tuple[Delta, ...] = ()
    tokens: tuple[TokenText, ...] = ()
    end: EndReason | None = None
    stop_string: str | None = None
    """The stop string that ended it."""
    is_anew: bool = False
    """The choice begins again with it: what came of it before is void. Only where the reply is not streamed."""


@dataclass(frozen=True, slots=True)
class Account:
    """What one reply cost."""

    reuse: Reuse
    queue_seconds: float
    load_seconds: float
    compute_seconds: float
    decode_seconds: float
    num_new_tokens: int
    exact_because: str | None = None
    """Why nothing was approximated though it was allowed and would have helped."""


class Reply:
    """The state of one choice."""

    def __init__(
        self,
        choice: int,
        new_text: Callable[[], TextStream],
        new_parser: Callable[[], ReplyParser],
        on_ends: Sequence[OnEnd] = (),
    ) -> None:
        self.end: EndReason | None = None
        self.tokens: list[int] = []
        """All that was generated, also what a stop string cut off."""
        self._choice = choice
        self._new_text = new_text
        self._text = new_text()
        self._new_parser = new_parser
        self._parser = new_parser()
        self._on_ends = on_ends
        self._deltas: list[Delta] = []
        """All of them."""
        self._is_anew = False
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._started_at = 0.0
        self._first_at = 0.0
        self._last_at = 0.0

    def __repr__(self) -> str:
        return f"Reply({self._choice}, {len(self.tokens)} tokens, end={self.end}, {self._text!r})"

    def accept(self, event: Event) -> None:
        """Take in the engine's next event; nothing is taken in any more after a stop string was found."""
        if self.end is not None:
            return
        match event:
            case Token(token=token, logprobs=logprobs):
                self._note_token(token)
                self._text.push(token, logprobs)
                if self._text.stop_string is not None:
                    self.end = "stop"
            case Started():
                self._begin_anew()
                self._started = event
                self._started_at = time.perf_counter()
            case Finished(reason="cancelled"):
                raise ShuttingDown("The server ended this reply early.")
            case Finished(reason="stop" | "length" as reason):
                self._finished = event
                self._text.finish()
                self.end = reason
            case _:
                return

    def take(self) -> Piece:
        """What is new since the last call."""
        news = self._text.take()
        deltas = self._parser.feed(news.text) if news.text else []
        if self.end is not None:
            deltas += self._parser.flush()
        self._deltas += deltas
        if self._on_ends and self._finished is not None:
            self._note_end(has_ended=self._finished.reason == "stop")
        is_anew, self._is_anew = self._is_anew, False
        return Piece(self._choice, tuple(deltas), news.tokens, self.end, self._text.stop_string, is_anew)

    @property
    def said(self) -> ParsedReply:
        """What was taken so far."""
        return message_of(self._deltas)

    @property
    def account(self) -> Account:
        """What it cost. The engine's times; where a stop string cut it short, those seen from here."""
        if self._started is None:
            raise EngineCrashed("The engine ended a reply that it had not begun.")
        started, finished = self._started, self._finished
        return Account(
            started.reuse,
            started.queue_seconds,
            started.load_seconds,
            finished.compute_seconds if finished else self._first_at - self._started_at,
            finished.decode_seconds if finished else self._last_at - self._first_at,
            finished.num_new_tokens if finished else len(self.tokens),
            started.exact_because,
        )

    def _note_end(self, *, has_ended: bool) -> None:
        reply = message_of(self._deltas)
        for on_end in self._on_ends:
            on_end(self.tokens, reply, has_ended=has_ended)

    def _begin_anew(self) -> None:
        """The engine runs the request again, after a crash."""
        if self.tokens:
            self.tokens = []
            self._text = self._new_text()
            self._parser = self._new_parser()
            self._deltas = []
            self._is_anew = True

    def _note_token(self, token: int) -> None:
        self.tokens.append(token)
        self._last_at = time.perf_counter()
        if len(self.tokens) == 1:
            self._first_at = self._last_at


class Generation:
    """All choices of one HTTP request, run together."""

    def __init__(
        self,
        engine: EngineClient,
        requests: Sequence[Generate],
        new_text: Callable[[], TextStream],
        new_parser: Callable[[], ReplyParser],
        *,
        on_first_token: Callable[[], None],
        on_end: OnEnd | None = None,
        visit: Visit | None = None,
    ) -> None:
        """``on_end`` gets each reply that came to its end, unless a stop string cut it short."""
        self.visit = visit
        """None for bare text."""
        self._engine = engine
        self._requests = requests
        on_ends = [each for each in (on_end, visit and visit.reply) if each is not None]
        self._replies = [Reply(choice, new_text, new_parser, on_ends) for choice in range(len(requests))]
        self._on_first_token = on_first_token
        self._has_tokens = False

    @property
    def accounts(self) -> list[Account]:
        """One for each choice; complete once `pieces` is over."""
        return [reply.account for reply in self._replies]

    @property
    def tokens(self) -> list[list[int]]:
        """What each choice generated so far."""
        return [reply.tokens for reply in self._replies]

    @property
    def said(self) -> list[ParsedReply]:
        """What each choice has said so far."""
        return [reply.said for reply in self._replies]

    async def pieces(self) -> AsyncGenerator[list[Piece], None]:
        """New text, as soon as it is certain: a list holds at most one piece of each choice.

        Closing this generator cancels what still runs. Raises what the engine raises.
        """
        sources = [self._engine.generate(request) for request in self._requests]
        async with Feed(sources) as feed, aclosing(feed.batches()) as batches:
            async for arrivals in batches:
                if news := self._accept(arrivals, feed):
                    yield news
        if any(reply.end is None for reply in self._replies):
            raise EngineCrashed("The engine broke off the reply.")

    def _accept(self, arrivals: list[Arrival], feed: Feed) -> list[Piece]:
        open_replies = {choice: self._replies[choice] for choice, _ in arrivals if self._replies[choice].end is None}
        for choice, event in arrivals:
            self._replies[choice].accept(event)
        self._note_first_token()
        pieces = [reply.take() for reply in open_replies.values()]
        for piece in pieces:
            if piece.stop_string is not None:
                feed.stop(piece.choice)
        return [piece for piece in pieces if piece.deltas or piece.tokens or piece.end or piece.is_anew]

    def _note_first_token(self) -> None:
        if not self._has_tokens and any(reply.tokens for reply in self._replies):
            self._has_tokens = True
            self._on_first_token()
