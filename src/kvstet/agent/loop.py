"""The agent's loop, and the reference for the three rules of a context that caches hit.

1. The system prompt is constant; what varies is noted, and told in the turn's own message (`_hear`).
2. The tools stay as they were sent; one that comes or goes is announced in the next message (`_carry_out`).
3. What was sent is never changed. Outputs are cut when they enter (`Context.result`), and when a compaction pays, its
   request for a summary rides the live prefix (`_compact`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvstet.agent.asking import Answer, Asker
from kvstet.agent.calls import identified, unanswered
from kvstet.agent.events import Answered, Called, Compacted, Stepped, Watch, unwatched
from kvstet.agent.journal import Journal, NoJournal
from kvstet.agent.meter import Meter
from kvstet.agent.model import ModelClient
from kvstet.agent.surroundings import Surroundings, nothing
from kvstet.agent.toolbox import Toolbox
from kvstet.context.conversation import Context
from kvstet.context.writing.payback import Rates
from kvstet.dialects.request import Request, Terms
from kvstet.dialects.whole import Call, Reply

INTERRUPTED = "Interrupted: the agent was stopped before this call was over. It may have been carried out in part."


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended, and the model's last words."""

    reason: Literal["done", "length", "filtered", "max_steps"]
    text: str


class Agent:
    """One conversation, in which `run` is one turn."""

    def __init__(
        self,
        model: ModelClient | Asker,
        context: Context,
        toolbox: Toolbox,
        *,
        model_name: str = "",
        terms: Terms | None = None,
        rates: Rates | None = None,
        surroundings: Surroundings = nothing,
        journal: Journal | None = None,
        meter: Meter | None = None,
        watch: Watch = unwatched,
        max_steps: int = 100,
        step: int = 0,
    ) -> None:
        """``rates`` decide when a compaction pays; ``step`` is how many replies the conversation has already."""
        self._asker = model if isinstance(model, Asker) else Asker(model)
        self._context, self._toolbox = context, toolbox
        self._model_name, self._terms, self._rates = model_name, terms or Terms(is_streamed=True), rates
        self._surroundings, self._journal = surroundings, journal or NoJournal()
        self._meter, self._watch = meter or Meter(), watch
        self._max_steps, self._step = max_steps, step
        self._summarises = True

    def __repr__(self) -> str:
        return f"Agent({self._model_name!r}, step {self._step}, {self._context!r})"

    async def run(self, task: str) -> Outcome:
        """Work on what the user says until the model is done. ModelFailed: it did not answer; what was said stays.

        Cancelled, it leaves a conversation that can go on.
        """
        try:
            await self._hear(task)
            reply = Reply()
            for _ in range(self._max_steps):
                await self._compact()
                reply = await self._ask()
                if not reply.calls:
                    return _outcome(reply)
                for call in reply.calls:
                    await self._carry_out(call)
            return Outcome("max_steps", reply.text)
        finally:
            self._answer_what_is_left()

    async def _hear(self, task: str) -> None:
        self._answer_what_is_left()
        self._context.set_tools(await self._toolbox.refresh())
        for name, text in (await self._surroundings()).items():
            self._context.note(name, text)
        self._context.user(task)
        self._save()

    async def _ask(self) -> Reply:
        answer = await self._asker.ask(self._request(self._context.request()), self._watch)
        self._step += 1
        self._count(answer, is_summary=False)
        self._context.observe(answer.reply.usage.num_input_tokens)
        reply = identified(answer.reply, self._step)
        self._context.assistant(reply.message)
        self._save()
        return reply

    async def _carry_out(self, call: Call) -> None:
        name, arguments = self._context.resolved(call.name, call.arguments)
        self._watch(Called(name, arguments))
        text = await self._toolbox.call(name, arguments)
        self._context.set_tools(await self._toolbox.refresh())
        self._context.result(call.id, call.name, text)
        self._save()
        self._watch(Answered(call, text))

    async def _compact(self) -> None:
        compaction = self._context.compaction(self._rates)
        if compaction is None or not (self._summarises or compaction.is_needed):
            return
        summary = ""
        if compaction.kind == "summary":
            answer = await self._asker.ask(self._request(self._context.summary_request()), self._watch, is_summary=True)
            self._count(answer, is_summary=True)
            summary = answer.reply.text
            self._summarises = bool(summary.strip())
            if not self._summarises:
                self._watch(Compacted(compaction, "the model wrote no summary"))
                return
        self._context.compact(compaction, summary)
        self._save()
        self._watch(Compacted(compaction))

    def _answer_what_is_left(self) -> None:
        """Calls that were stopped, now or when the agent was killed: no model takes a call without its result."""
        for call in unanswered(self._context.history.messages):
            self._context.result(call.id, call.name, INTERRUPTED)
            self._save()

    def _request(self, body: dict[str, list[dict[str, object]]]) -> Request:
        tools = tuple(body.get("tools", ()))
        return Request(model=self._model_name, messages=tuple(body["messages"]), tools=tools, terms=self._terms)

    def _count(self, answer: Answer, *, is_summary: bool) -> None:
        usage, first = answer.reply.usage, answer.first_token_seconds
        self._watch(Stepped(self._meter.count(self._step, usage, answer.seconds, first, is_summary=is_summary)))

    def _save(self) -> None:
        self._journal.save(self._context, self._step)


def _outcome(reply: Reply) -> Outcome:
    match reply.end.reason if reply.end else "stop":
        case "length":
            return Outcome("length", reply.text)
        case "content_filter":
            return Outcome("filtered", reply.refusal or reply.text)
        case _:
            return Outcome("done", reply.text or reply.refusal)
