"""What was changed between two requests of a conversation, one finding at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

EditKind = Literal[
    "reasoning_stripped",
    "reasoning_stripped_by_template",
    "result_pruned",
    "result_truncated",
    "result_replaced",
    "block_inserted",
    "block_removed",
    "block_replaced",
    "message_edited",
    "message_inserted",
    "message_dropped",
    "messages_reordered",
    "rewound",
    "system_changed",
    "tools_added",
    "tools_removed",
    "tools_reordered",
    "tools_changed",
    "arguments_changed",
    "arguments_reserialised",
    "retokenised",
    "compaction",
    "side_request",
    "sub_agent",
    "new_conversation",
    "evicted",
    "other_model",
    "other_template",
]

RELATIONS: frozenset[EditKind] = frozenset({"compaction", "side_request", "sub_agent", "new_conversation"})
"""Kinds that say what a request is to the conversations before it, and not what was changed in one."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One finding. Holds no text of the conversation, so it may be logged and shown."""

    kind: EditKind
    message: int | None = None
    """Index of the request's message; of one that is gone, where it would stand."""
    role: str | None = None
    was: int | None = None
    """Index of the message in the earlier request, where it is not ``message``."""
    character: int | None = None
    """Where the message's text, or its reasoning, first differs."""
    what: tuple[str, ...] = ()
    """What exactly: kinds of lines, names of tools, the purpose of a side request."""
    token: int | None = None
    """Position in the prompt at which it takes effect."""
    num_tokens: int | None = None
    """Computed again because of it. Of several edits the earliest pays for all that lies behind it."""
    num_tokens_alone: int | None = None
    """What it would have cost without the others."""
    seconds: float | None = None
    """The part of the measured time that ``num_tokens`` took."""
