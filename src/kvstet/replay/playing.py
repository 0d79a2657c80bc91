"""A session, sent again to a server that runs: request by request, each behind the whole reply to the one before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2

from kvstet.dialects.failures import OVERFLOW
from kvstet.dialects.tools import tool_names
from kvstet.errors import RequestError, ServerGone
from kvstet.replay.asking import Answer, ask
from kvstet.replay.bound import Bound, bound_of
from kvstet.replay.results import Asked, Run
from kvstet.replay.server import Server
from kvstet.replay.session import Body, Pace, Session, Turn
from kvstet.replay.verdicts import Verdicts

NUM_TOO_LONG = "num_too_long"
"""In a run's values: requests that did not fit the context."""
NUM_NOT_FORCED = "num_not_forced"
"""Replies that a kvstet server could not be made to say, because its model has no way to write them."""


@dataclass(slots=True)
class Player:
    """Of one server; keeps what it was sent, over all runs."""

    client: httpx2.Client
    server: Server
    on_asked: Callable[[Asked], None]
    sleep: Callable[[float], None] = time.sleep
    bound: Bound = field(init=False)

    def __post_init__(self) -> None:
        self.bound = bound_of(self.server, self.client)

    def play(self, session: Session, pace: Pace, run: Run) -> None:
        """Fill the run, request by request: it is of use if this is broken off."""
        verdicts = Verdicts()
        began = time.perf_counter()
        for index, turn in enumerate(session.turns):
            if index:
                self.sleep(pace.pause_before(turn))
            asked = Asked(label=turn.label or f"request {turn.number}", at_seconds=time.perf_counter() - began)
            try:
                self._ask(turn, asked, verdicts, run)
            except RequestError as error:
                asked.error = str(error)
            except ServerGone as error:
                run.failure = str(error)
                return
            run.asked.append(asked)
            self.on_asked(asked)

    def _ask(self, turn: Turn, asked: Asked, verdicts: Verdicts, run: Run) -> None:
        estimated = verdicts.of(turn)
        answer = self._answer(turn, run)
        asked.seconds, asked.first_token_seconds = answer.seconds, answer.first_seconds
        if answer.failure is not None:
            asked.error = f"{answer.failure.status}: {answer.failure.message}"
            if answer.failure.code == OVERFLOW:
                count(run, NUM_TOO_LONG)
            return
        note_costs(asked, answer)
        asked.verdict = asked.verdict or f"Estimated: {estimated}"
        asked.num_bound_tokens = self.bound.num_tokens(asked.num_prompt_tokens)

    def _answer(self, turn: Turn, run: Run) -> Answer:
        reply = forced_reply(turn, self.server)
        if reply is not None:
            answer = self._sent(turn, reply)
            if answer.failure is None or "kvstet_reply" not in answer.failure.message:
                return answer
            count(run, NUM_NOT_FORCED)
        return self._sent(turn, None)

    def _sent(self, turn: Turn, reply: Body | None) -> Answer:
        body = self.server.body_of(turn, reply)
        self.bound.look(turn, body)
        return ask(self.client, self.server.spoken(turn), body, turn.headers)


def forced_reply(turn: Turn, server: Server) -> Body | None:
    """What ``kvstet_reply`` says; None: one token of the model's own, since the server forces nothing or no reply is
    known."""
    if server.kind != "kvstet" or (turn.plan is None and not turn.tokens):
        return None
    if turn.tokens and turn.model == server.model:
        return {"tokens": list(turn.tokens)}
    if turn.plan is None:
        return None
    names = tool_names(turn.request.tools)
    calls = [
        {"name": known.neutral if (known := names.get(call.name)) else call.name, "args_raw": call.args_raw or "{}"}
        for call in turn.plan.calls
    ]
    return {"reasoning": turn.plan.reasoning, "text": turn.plan.text, "calls": calls}


def note_costs(asked: Asked, answer: Answer) -> None:
    """kvstet tells of all sources, llama-server of what it computed, others of what they had cached, or of nothing."""
    account, timings, usage = answer.account, answer.timings, answer.usage
    asked.num_prompt_tokens = usage.num_input_tokens
    cached = usage.num_cache_read_tokens
    if account is not None:
        asked.num_prompt_tokens = account.num_prompt_tokens
        asked.num_reused_tokens, asked.num_loaded_tokens = account.reused, account.loaded
        asked.num_shifted_tokens, asked.num_computed_tokens = account.shifted, account.computed
        asked.verdict = account.verdict or None
    elif timings is not None:
        asked.num_reused_tokens, asked.num_computed_tokens = timings.cache_n, timings.prompt_n
    elif cached is not None and usage.num_input_tokens is not None:
        asked.num_reused_tokens, asked.num_computed_tokens = cached, usage.num_input_tokens - cached


def count(run: Run, name: str) -> None:
    run.values[name] = run.values.get(name, 0) + 1
