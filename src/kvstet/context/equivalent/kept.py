"""Outputs of tools that a client has cut, cleared or replaced by a note to save context."""

from __future__ import annotations

import re

_MAX_NOTE = 300
"""Characters of a note that stands for an output, or for a part of one."""

_NOTE = re.compile(
    r"clear|prun|omit|truncat|elid|remov|compact|trimm|dropp|discard|shorten|hidden|placeholder|collaps|too long"
    r"|no longer|saved? to|\.\.\.|\u2026|^$",
    re.IGNORECASE,
)
_SECRET = re.compile(r"redact|secret|confidential|sensitive|private|censor|sanitiz|mask|\*\*\*", re.IGNORECASE)
"""Who says this does not want to save context."""


def is_shortened(original: str, sent: str) -> bool:
    """Whether one text is the other cut short, or a note in its place; no other edit of it."""
    if len(sent) >= len(original):
        return False
    head, tail = _common(original, sent)
    middle = sent[head : len(sent) - tail].strip()
    if len(middle) > _MAX_NOTE or _SECRET.search(middle):
        return False
    is_cut = not middle and min(head, tail) == 0
    is_note = _NOTE.search(middle) is not None and bool(middle or not sent.strip())
    return is_note or (is_cut and len(sent) > 0)


def _common(one: str, other: str) -> tuple[int, int]:
    """Characters that two texts have in common at their beginnings and, besides, at their ends."""
    limit = min(len(one), len(other))
    head = _num_common(one, other, limit)
    return head, _num_common(one[::-1], other[::-1], limit - head)


def _num_common(one: str, other: str, limit: int) -> int:
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
