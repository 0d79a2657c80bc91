"""What may be substituted in a conversation at fidelity ``equivalent``, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import get_args

from kvstet.edits.volatile import VolatileKind
from kvstet.errors import InvalidRequest
from kvstet.types import SubstitutionName

SENTENCES: Mapping[SubstitutionName, str] = {
    "clock": "A time of day stays as it was first sent; a new one is told once per turn of the user.",
    "date": "A date stays as it was first sent; the new one is told at the end.",
    "git-status": "What git said stays as it was first sent; what has changed is told at the end.",
    "request-id": "An id of a request stays as it was first sent; new ones are not told.",
    "billing-header": "Claude Code's billing header stays as it was first sent; new ones are not told.",
    "counter": "A count of tokens or turns stays as it was first sent; a new one is told once per turn of the user.",
    "system-lines": "A few changed lines of the system prompt stay as they were; the new ones are told at the end.",
    "reminder": "A reminder within a message stays as it was first sent; what has changed is told at the end.",
    "tool-order": "Tools stay in the order in which they were first sent; new ones come last.",
    "arguments": "Arguments of a call stay as they were first written, where they mean the same.",
    "reasoning": "Reasoning of the model that the client or the template left out stays, while it fits.",
    "tool-output": "A tool's output that was cut or replaced by a note stays as it was first sent, while it fits.",
}
"""Each with what it does."""

NAMES: frozenset[SubstitutionName] = frozenset(get_args(SubstitutionName))

OF_KIND: Mapping[VolatileKind, SubstitutionName] = {
    "clock": "clock",
    "date": "date",
    "git status": "git-status",
    "request id": "request-id",
    "billing header": "billing-header",
    "counter": "counter",
}
"""Kinds that are recognised by how they look. The others are pinned only where they were seen to change."""


def names_of(words: Iterable[str], *, param: str) -> Set[SubstitutionName]:
    """The names that a user gave. InvalidRequest where there is no such substitution."""
    wanted = {word.strip().lower() for word in words} - {""}
    if unknown := sorted(wanted - NAMES):
        known = ", ".join(sorted(NAMES))
        raise InvalidRequest(f"There is no substitution named {unknown[0]!r}; there are {known}.", param=param)
    return frozenset(name for name in NAMES if name in wanted)
