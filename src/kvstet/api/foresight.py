"""What the next prompt will begin with, once a reply is finished: told to the engine, which computes it while idle.

The template itself tells: the conversation is rendered as it will come back, with the reply as a message and something
new behind it, twice. What both prompts begin with will be there whatever the new text is. Where the template leaves
reasoning out of older turns, or closes a reply in other words than the model did, that is the part that no cache has.
Where the client was seen to change older messages when its user speaks (`kvstet.edits.habits`), that is foreseen too,
beside the conversation as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kvstet.cache.tree import num_equal
from kvstet.chat.deltas import ParsedReply
from kvstet.chat.saying import call_id, message_of_reply
from kvstet.edits.habits import Habits
from kvstet.edits.snapshot import Snapshot
from kvstet.engine.messages import Anticipate
from kvstet.errors import RequestError
from kvstet.types import Prompt

logger = logging.getLogger("kvstet.api")

Message = dict[str, Any]

Render = Callable[[list[Message]], Prompt]
"""Messages as the next request will be rendered. Raises a RequestError; called from a worker thread."""

PROBES = ("Aq7", "zK4")
"""New text of two kinds, which share no beginning."""


class Foresight:
    """Tells an engine what to expect, from beside the event loop."""

    def __init__(self, anticipate: Callable[[Anticipate], None]) -> None:
        self._anticipate = anticipate
        self._habits = Habits()
        self._is_closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def num_under_way(self) -> int:
        """Replies whose next prompt is just being found."""
        return len(self._tasks)

    def __repr__(self) -> str:
        return f"Foresight({self.num_under_way} under way)"

    def learn(self, before: Snapshot, after: Snapshot) -> None:
        """A conversation has gone on; ``before`` is what it goes on from."""
        self._habits.observe(before, after)

    def expect(
        self, render: Render, messages: Sequence[Message], tool_names: frozenset[str], reply: ParsedReply
    ) -> None:
        """The reply to these messages is finished. Never waits and never raises."""
        if self._is_closed:
            return
        as_they_are = list(messages)
        # The likelier one last: the engine begins with that.
        candidates = [as_they_are]
        if not reply.calls and (edited := self._habits.foresee(messages, tool_names)) != as_they_are:
            candidates.append(edited)
        task = asyncio.create_task(self._expect(render, candidates, reply))
        # The loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Nothing is rendered any more once this returns: what renders may be freed."""
        self._is_closed = True
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _expect(self, render: Render, candidates: Sequence[list[Message]], reply: ParsedReply) -> None:
        for messages in candidates:
            try:
                prompt = await asyncio.to_thread(foreseen, render, messages, reply)
            except RequestError as error:
                logger.debug("The next prompt cannot be foreseen: %s", type(error).__name__)
                continue
            self._anticipate(Anticipate(prompt.tokens, prompt.cuts, prompt.cut_kinds))


def foreseen(render: Render, messages: Sequence[Message], reply: ParsedReply) -> Prompt:
    """What the next prompt of the conversation begins with. Raises a RequestError where it cannot be rendered."""
    told = [*messages, _message_of(reply, messages)]
    one, other = (render([*told, *_news(reply, probe)]) for probe in PROBES)
    return _common(one, other)


def _message_of(reply: ParsedReply, messages: Sequence[Message]) -> Message:
    """The reply as the client will send it back."""
    dropped = replace(reply, reasoning="") if _drops_reasoning(messages) else reply
    return message_of_reply(dropped)


def _drops_reasoning(messages: Sequence[Message]) -> bool:
    """Whether the client has sent replies back, and no reasoning with any of them."""
    replies = [message for message in messages if message.get("role") == "assistant"]
    return bool(replies) and not any(message.get("reasoning_content") for message in replies)


def _news(reply: ParsedReply, text: str) -> list[Message]:
    if not reply.calls:
        return [{"role": "user", "content": text}]
    return [{"role": "tool", "tool_call_id": call_id(index), "content": text} for index in range(len(reply.calls))]


def _common(one: Prompt, other: Prompt) -> Prompt:
    """The tokens that both begin with, and the messages among them."""
    stop = num_equal(one.tokens, other.tokens)
    spans = tuple(replace(span, stop=min(span.stop, stop)) for span in one.spans if span.start < stop)
    return Prompt(one.tokens[:stop], spans, breakpoints=tuple(cut for cut in one.breakpoints if cut <= stop))
