"""What clients put into the system prompt that tells the model nothing, and changes from request to request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kvstet.chat.messages import Message
from kvstet.types import HEAD_ROLES

BILLING_HEADER = "x-anthropic-billing-header"

_BILLING_LINE = re.compile(rf"^{BILLING_HEADER}:[^\n]*(?:\n|\Z)", re.MULTILINE)
"""Claude Code writes one into the system prompt; its end follows the first user message of the conversation."""


def mask(messages: Sequence[Message]) -> tuple[str, ...]:
    """Take it out of normalised messages, in place; the names of what was there."""
    was_there = False
    for message in messages:
        text = str(message["content"])
        if message["role"] in HEAD_ROLES and BILLING_HEADER in text:
            message["content"] = _BILLING_LINE.sub("", text)
            was_there |= message["content"] != text
    return (BILLING_HEADER,) if was_there else ()
