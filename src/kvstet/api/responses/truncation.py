"""``truncation: auto``: a conversation that is too long loses its oldest part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from kvstet.api.job import Conversation, Job
from kvstet.api.ports import Message
from kvstet.errors import ContextOverflow, TemplateError
from kvstet.types import HEAD_ROLES


def job_that_fits(conversation: Conversation, new_job: Callable[[Conversation], Job]) -> Job:
    """The job of the conversation without as much of its oldest part as does not fit.

    What stands before the first other message, of the system or developer, stays; so does the end. A call goes together
    with its results. Raises what ``new_job`` raises, and ContextOverflow if even the end does not fit.
    """
    try:
        return new_job(conversation)
    except ContextOverflow as error:
        overflow = error
    shorter = list(_shortened(conversation))
    best: Job | None = None
    low, high = 0, len(shorter)
    while low < high:
        middle = (low + high) // 2
        try:
            best, high = new_job(shorter[middle]), middle
        # Some templates take no conversation that begins in the middle of a turn.
        except (ContextOverflow, TemplateError):
            low = middle + 1
    if best is None:
        raise overflow
    return best


def _shortened(conversation: Conversation) -> Iterator[Conversation]:
    """Without its first turn, its first two, ..."""
    head = list(takewhile(lambda message: message["role"] in HEAD_ROLES, conversation.messages))
    rest = conversation.messages[len(head) :]
    for start in _starts(rest):
        yield replace(conversation, messages=[*head, *rest[start:]])


def _starts(messages: Sequence[Message]) -> list[int]:
    """Where the conversation may be cut: before all but the first that are not a call's results."""
    return [place for place, message in enumerate(messages) if place > 0 and message["role"] != "tool"]
