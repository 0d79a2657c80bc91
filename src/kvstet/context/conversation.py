"""A conversation written so that caches hit: the three rules, for anyone's agent.

::

    context = Context("You are a careful engineer.", tools)
    context.note("git status", " M inventory/stats.py")
    context.user("Fix the failing test.")
    reply = model(**context.request())         # plain JSON, OpenAI's form
    context.assistant(reply)

1. What varies never stands in the system prompt: `note` tells it in the user's next message, and only when it is new.
2. The tools stay as they were first sent (`kvstet.context.writing.toolset`).
3. What was sent is never changed, but by a compaction that pays (`kvstet.context.writing.compaction`); outputs are cut
   when they enter.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from kvstet.context.message import Message, role_of
from kvstet.context.outputs import DEFAULT_CHARACTERS, cut
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.compaction import INSTRUCTION, STRATEGIES, Compaction, Strategy, View, best
from kvstet.context.writing.history import History
from kvstet.context.writing.payback import Rates
from kvstet.context.writing.toolset import Toolset, with_announcement
from kvstet.errors import BrokenHistory

CountTokens = Callable[[str], int]

_VERSION = 1
_SUMMARY = "Summary of the conversation so far, in place of the messages that stood here:\n\n{}"
_EXPECTED_REQUESTS = 20
_MAX_SCALE = 4.0


def estimated(text: str) -> int:
    """Tokens of a text, for want of the model's own tokenizer."""
    return math.ceil(len(text.encode()) / 3.8)


class Context:
    """One conversation. Requests only ever grow at their end, until `compact` is called."""

    def __init__(
        self,
        system: str,
        tools: Iterable[Mapping[str, Any]] = (),
        *,
        budget: Budget | None = None,
        takes_late_tools: bool = False,
        max_output_characters: int = DEFAULT_CHARACTERS,
        strategies: Sequence[Strategy] = STRATEGIES,
        count: CountTokens = estimated,
    ) -> None:
        """``system`` is constant, as are ``tools``; with ``takes_late_tools`` others may come later."""
        self.budget = budget or Budget()
        self._system = system
        self._tools = Toolset.of(tools, takes_late=takes_late_tools)
        self._history = History()
        self._num_task_messages: int | None = None
        """So many messages say what the task is; known once a summary stands behind them."""
        self._max_output_characters = max_output_characters
        self._strategies = strategies
        self._count = count
        self._scale = 1.0
        """The provider's tokens for one of ours."""
        self._notes: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._news: list[str] = []
        """Of tools, to be told in the next message."""

    def __repr__(self) -> str:
        return f"Context({len(self._history)} messages, about {self.num_tokens} tokens, {len(self._tools.names)} tools)"

    @property
    def history(self) -> History:
        return self._history

    @property
    def num_tokens(self) -> int:
        """Of the next request; an estimate, which `observe` makes better."""
        return self._size(self._head()) + sum(self._sizes())

    @property
    def tool_names(self) -> frozenset[str]:
        return self._tools.names

    def note(self, name: str, text: str) -> None:
        """Something that varies: the date, the git status, open files. It is told with the user's next message, if it
        is not what the model knows already."""
        self._notes[name] = text

    def user(self, text: str) -> None:
        """What the user says."""
        new = {name: note for name, note in self._notes.items() if self._told.get(name) != note}
        self._told |= new
        self._enter({"role": "user", "content": text}, [f"{name}: {note}" for name, note in new.items()])

    def assistant(self, message: Mapping[str, Any]) -> None:
        """The model's reply, as it came: in OpenAI's form, with what its vendor wants back."""
        self._history.append(message)

    def result(self, call_id: str, name: str, text: str) -> None:
        """What a tool returned, cut to ``max_output_characters`` now, since later would cost more."""
        content = cut(text, self._max_output_characters)
        self._enter({"role": "tool", "tool_call_id": call_id, "name": name, "content": content}, ())

    def set_tools(self, tools: Iterable[Mapping[str, Any]]) -> None:
        """These can be called from now on. ValueError: one is new, and the conversation takes no late tools."""
        self._tools, news = self._tools.changed_to(tools)
        if news:
            self._news.append(news)

    def resolved(self, name: str, arguments: str) -> tuple[str, str]:
        """Which tool a call means, and its arguments: late tools are called through another one."""
        return self._tools.resolved(name, arguments)

    def request(self) -> dict[str, Any]:
        """``messages`` and ``tools`` in the form of OpenAI's Chat Completions; a copy."""
        head: list[Message] = [{"role": "system", "content": self._system}] if self._system else []
        request: dict[str, Any] = {"messages": [*head, *self._history.messages]}
        return {**request, "tools": copy.deepcopy([*self._tools.sent])} if self._tools.sent else request

    def observe(self, num_input_tokens: int | None) -> None:
        """How many tokens the provider counted in the latest `request`, before anything was added to it."""
        ours = self._size(self._head()) / self._scale + sum(self._sizes()) / self._scale
        if num_input_tokens and ours:
            self._scale = min(_MAX_SCALE, max(1 / _MAX_SCALE, num_input_tokens / ours))

    def compaction(
        self, rates: Rates | None = None, *, num_expected_requests: int = _EXPECTED_REQUESTS
    ) -> Compaction | None:
        """What should be done before the next request, if it pays or has to be."""
        return best(self._view(rates or Rates(), num_expected_requests), self._strategies)

    def summary_request(self) -> dict[str, Any]:
        """Asks for a summary: this conversation as it stands and one message more, so all before it is cached."""
        request = self.request()
        return {**request, "messages": [*request["messages"], {"role": "user", "content": INSTRUCTION}]}

    def compact(self, compaction: Compaction, summary: str = "") -> None:
        """Do it. A ``summary`` is the reply to `summary_request`; ValueError where one is needed and there is none."""
        messages = self._history.messages
        history = self._history.fork(compaction.start)
        if compaction.kind == "summary":
            if not summary.strip():
                raise ValueError("A summary is needed, and this one is empty.")
            history.append(self._summary(summary))
            self._num_task_messages = min(compaction.start, self._num_task(messages))
            self._told = {}
        else:
            for index in range(compaction.start, compaction.stop):
                history.append(compaction.replaced.get(index, messages[index]))
        for message in messages[compaction.stop :]:
            history.append(message)
        self._history = history

    def fork(self) -> Context:
        """Another conversation that begins like this one: a sub-agent that shares its prefix."""
        return Context.from_json(self.to_json(), strategies=self._strategies, count=self._count)

    def to_json(self) -> str:
        """All of it, to be stored; `from_json` gives it back byte for byte."""
        return json.dumps(
            {
                "version": _VERSION,
                "system": self._system,
                "tools": {
                    "sent": self._tools.sent,
                    "late": self._tools.late,
                    "gone": sorted(self._tools.gone),
                },
                "budget": [self.budget.context_length, self.budget.num_reserved_tokens, self.budget.keep_share],
                "max_output_characters": self._max_output_characters,
                "scale": self._scale,
                "notes": self._notes,
                "told": self._told,
                "num_task_messages": self._num_task_messages,
                "news": self._news,
                "history": self._history.to_json(),
            }
        )

    @staticmethod
    def from_json(text: str, *, strategies: Sequence[Strategy] = STRATEGIES, count: CountTokens = estimated) -> Context:
        """What `to_json` has written. Raises BrokenHistory."""
        try:
            stored = cast("dict[str, Any]", json.loads(text))
            if stored["version"] != _VERSION:
                raise BrokenHistory(f"This conversation is of version {stored['version']}, not {_VERSION}.")
            context = Context(
                str(stored["system"]),
                budget=_budget(*stored["budget"]),
                max_output_characters=int(stored["max_output_characters"]),
                strategies=strategies,
                count=count,
            )
            tools = stored["tools"]
            context._tools = Toolset(tuple(tools["sent"]), dict(tools["late"]), frozenset(tools["gone"]))
            context._history = History.from_json(stored["history"])
            context._scale = float(stored["scale"])
            context._notes, context._told = dict(stored["notes"]), dict(stored["told"])
            context._news = list(stored["news"])
            context._num_task_messages = stored["num_task_messages"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BrokenHistory("This is not a stored conversation, or was cut off.") from error
        return context

    def _enter(self, message: Message, news: Iterable[str]) -> None:
        told = [*self._news, *news]
        self._news = []
        self._history.append(with_announcement(message, "\n".join(told)) if told else message)

    def _summary(self, summary: str) -> Message:
        message = {"role": "user", "content": _SUMMARY.format(summary.strip())}
        announcement = self._tools.announcement()
        return with_announcement(message, announcement) if announcement else message

    def _head(self) -> str:
        return self._system + "".join(json.dumps(tool, ensure_ascii=False) for tool in self._tools.sent)

    def _sizes(self) -> list[int]:
        return [self._size(entry.text) for entry in self._history]

    def _size(self, text: str) -> int:
        return round(self._count(text) * self._scale)

    def _view(self, rates: Rates, num_expected_requests: int) -> View:
        messages = self._history.messages
        return View(
            messages=messages,
            num_tokens=self._sizes(),
            num_head_tokens=self._size(self._head()),
            num_task_messages=self._num_task(messages),
            budget=self.budget,
            rates=rates,
            num_expected_requests=num_expected_requests,
        )

    def _num_task(self, messages: Sequence[Message]) -> int:
        return _num_until_reply(messages) if self._num_task_messages is None else self._num_task_messages


def _num_until_reply(messages: Sequence[Message]) -> int:
    """The user's first messages, up to the first reply."""
    replies = (index for index, message in enumerate(messages) if role_of(message) == "assistant")
    return next(replies, len(messages))


def _budget(context_length: int, num_reserved_tokens: int, keep_share: float) -> Budget:
    return Budget(context_length=context_length, num_reserved_tokens=num_reserved_tokens, keep_share=keep_share)
