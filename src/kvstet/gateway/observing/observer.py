"""Looks at requests that are over: in a thread of its own, on copies, so that nothing waits for it."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from kvstet.api.sessions import VERDICTS, Record, Sessions, edit_as_json
from kvstet.edits.verdict import Verdict, explained, for_log
from kvstet.errors import Unreadable
from kvstet.gateway.metrics import GatewayMetrics
from kvstet.gateway.observing.billing import Billed, Billing
from kvstet.gateway.observing.comparison import Comparison
from kvstet.gateway.observing.histories import Histories
from kvstet.gateway.observing.reading import Answered, Asked, answered_of, asked_of
from kvstet.gateway.observing.requests import Requests, Row
from kvstet.gateway.observing.reuse import Observed, observed
from kvstet.gateway.observing.telling import Told, costs_of, line_of, row_of
from kvstet.gateway.passage import Passage
from kvstet.gateway.session import begun_session
from kvstet.types import Usage

logger = logging.getLogger("kvstet.gateway")
verdicts = logging.getLogger(VERDICTS)

T = TypeVar("T")

MAX_WAITING_BYTES = 512 * 1024**2
"""Of copies that wait to be looked at; requests beyond that are passed on and not looked at."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a request belongs, and why it took what it took."""

    conversation: int
    parent: int | None
    seen: Observed = field(repr=False)
    verdict: Verdict


class Observer:
    """Takes note in the event loop, and looks in its own thread. One for each gateway."""

    def __init__(
        self,
        billing: Billing,
        *,
        logs_prompts: bool = False,
        on_reply: Callable[[str, str], None] | None = None,
        comparison: Comparison | None = None,
    ) -> None:
        """``on_reply`` is told the conversation and the id of each reply, from a thread of the observer's.
        ``comparison``: where requests are arranged, whether that saves anything."""
        self.metrics = GatewayMetrics()
        self.sessions = Sessions()
        self.requests = Requests()
        self._billing = billing
        self._logs_prompts = logs_prompts
        self._on_reply = on_reply
        self._comparison = comparison
        self._histories = Histories()
        self._worker = ThreadPoolExecutor(1, "kvstet-observer")
        self._waiting_bytes, self._num_waiting = 0, 0
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Observer({self.requests}, {self._waiting_bytes:,} bytes wait)"

    def note(self, passage: Passage) -> None:
        """A request is over; returns at once. Belongs to the event loop."""
        self.metrics.observe_bytes(passage.sent.num_bytes, passage.received.num_bytes)
        if passage.overhead_seconds is not None:
            self.metrics.observe_overhead(passage.overhead_seconds)
        for change in passage.changes:
            self.metrics.observe_change(change.name)
        if not passage.call.asks_model:
            return
        num_bytes = passage.sent.num_bytes + passage.received.num_bytes
        if passage.rearranged is not None:
            num_bytes += passage.sent.num_bytes
        if self._is_closed or self._waiting_bytes + num_bytes > MAX_WAITING_BYTES:
            self.metrics.observe_failure("observation")
            reason = "the gateway is stopping" if self._is_closed else "too many are waiting"
            logger.warning("request %s was passed on and is not looked at: %s", passage.call.id, reason)
            return
        self._waiting_bytes += num_bytes
        self._num_waiting += 1
        loop = asyncio.get_running_loop()
        looking = loop.run_in_executor(self._worker, self._look, passage, loop)
        looking.add_done_callback(lambda _: self._done(num_bytes))

    @property
    def num_waiting(self) -> int:
        """Requests that are over and not looked at yet."""
        return self._num_waiting

    async def close(self) -> None:
        """Look at what waits, and write down what is to be kept."""
        self._is_closed = True
        await asyncio.to_thread(self._worker.shutdown)
        await asyncio.to_thread(self._billing.close)

    def _done(self, num_bytes: int) -> None:
        self._waiting_bytes -= num_bytes
        self._num_waiting -= 1

    def _look(self, passage: Passage, loop: asyncio.AbstractEventLoop) -> None:
        """In the worker. What is wrong here is no request's fault, and no client's business."""
        try:
            self._observe(passage, loop)
        except Exception as error:
            self.metrics.observe_failure("observation")
            # What errors say may quote the request, and prompts do not belong into logs.
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("request %s could not be observed: %s\n%s", passage.call.id, type(error).__name__, frames)

    def _observe(self, passage: Passage, loop: asyncio.AbstractEventLoop) -> None:
        unread: list[str] = []
        asked = _read(asked_of, passage, "request", unread)
        answered = _read(answered_of, passage, "response", unread) if passage.status is not None else None
        usage = answered.reply.usage if answered is not None else Usage()
        is_answered = passage.status is not None and passage.status < 300
        if self._on_reply is not None and passage.thread is not None and answered is not None and answered.reply.id:
            self._on_reply(passage.thread, answered.reply.id)
        placed = self._placed(passage, asked, answered, usage) if asked is not None and is_answered else None
        session = (asked.snapshot.session or begun_session(asked.snapshot)) if asked is not None else None
        billed = self._bill(passage, asked, answered, placed, session) if is_answered else None
        told = Told(
            passage, asked, answered, placed and placed.seen, placed and placed.verdict, billed, session, unread
        )
        self._log(told, placed)
        loop.call_soon_threadsafe(self._remember, told, placed)
        if is_answered:
            self.metrics.observe_usage(usage)
            self.metrics.observe_cost(billed.dollars if billed is not None else None)

    def _placed(self, passage: Passage, asked: Asked, answered: Answered | None, usage: Usage) -> Placed:
        """The conversation that it goes on with, and the verdict."""
        history = self._histories.of(passage.call.owner)
        place = history.note(asked.snapshot)
        if answered is not None and answered.reply.end is not None:
            reply = answered.reply
            calls = [(call.name, call.arguments) for call in reply.calls]
            said = asked.snapshot.reply_of(reply.text or reply.refusal, reply.reasoning, calls)
            history.reply(place.branch, said)
        seen = observed(place, asked.snapshot, usage)
        return Placed(place.conversation, place.parent, seen, explained(place, seen.snapshot, seen.reuse, None))

    def _bill(
        self,
        passage: Passage,
        asked: Asked | None,
        answered: Answered | None,
        placed: Placed | None,
        session: str | None,
    ) -> Billed | None:
        unoptimised = self._unoptimised(passage, answered.reply.usage if answered is not None else Usage())
        if answered is None:
            return None
        model = answered.reply.model or (asked.request.model if asked is not None else "")
        sentence = for_log(placed.verdict) if placed is not None else ""
        try:
            return self._billing.bill(
                passage, model, answered.reply.usage, session or "", sentence, unoptimised=unoptimised
            )
        except Exception as error:
            self.metrics.observe_failure("ledger")
            logger.warning("request %s could not be written into the ledger: %s", passage.call.id, type(error).__name__)
            return None

    def _unoptimised(self, passage: Passage, usage: Usage) -> Usage | None:
        """What it would have taken as the client wrote it; None: nobody knows."""
        try:
            return self._comparison.unoptimised(passage, usage) if self._comparison is not None else None
        except Exception as error:
            self.metrics.observe_failure("comparison")
            logger.warning("what request %s saved is not known: %s", passage.call.id, type(error).__name__)
            return None

    def _log(self, told: Told, placed: Placed | None) -> None:
        short = told.passage.call.id[-6:]
        verdicts.info("%s %s", short, line_of(told, placed.conversation if placed else None))
        if self._logs_prompts and told.asked is not None:
            verdicts.info("%s prompt: %s", short, told.asked.body)

    def _remember(self, told: Told, placed: Placed | None) -> None:
        """In the event loop."""
        call = told.passage.call
        row = row_of(told, placed.conversation if placed else None, placed.parent if placed else None)
        self.requests.add(Row(call.owner, row))
        if placed is not None and told.asked is not None:
            self.sessions.add(_record(told, placed, told.asked))


def _record(told: Told, placed: Placed, asked: Asked) -> Record:
    call = told.passage.call
    return Record(
        call.id,
        call.owner,
        call.began_at,
        asked.request.model,
        told.session,
        placed.conversation,
        placed.parent,
        len(asked.snapshot.items),
        costs_of(told),
        placed.verdict.sentence,
        [edit_as_json(edit) for edit in placed.verdict.edits],
    )


def _read(reader: Callable[[Passage], T], passage: Passage, what: str, unread: list[str]) -> T | None:
    """None where it cannot be read; ``unread`` then says why."""
    try:
        return reader(passage)
    except Unreadable as error:
        unread.append(f"{what}: {error}")
        return None
