"""Signs by which requests beside a conversation's main line are known: what they ask for, and what they quote."""

from __future__ import annotations

import re
from collections.abc import Iterable

from kvstet.edits.snapshot import Item, Snapshot

_OPENING_CHARACTERS = 600
"""In which a system prompt says what it is for."""

_PURPOSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("memory", re.compile(r"memory extraction|extract\w* [^.\n]{0,60}\bmemor(y|ies)\b", re.I)),
    ("title", re.compile(r"\btitle generator\b|\b(generate|write|create)\w* [^.\n]{0,60}\b(title|topic)\b", re.I)),
    ("commit message", re.compile(r"\bgenerat\w+ [^.\n]{0,60}\bcommit messages?\b", re.I)),
    ("summary", re.compile(r"\bsummari[sz](e|er|ation|ing)\b", re.I)),
    ("suggestion", re.compile(r"\b(suggest|predict)\w* [^.\n]{0,60}\b(next|follow-?up|prompts?|input)\b", re.I)),
)

_WITH_TOOLS = frozenset({"memory"})
"""Purposes of requests that have tools; main agents, which have some too, may well mention the others."""

_SUMMARY_BEGINS = re.compile(
    r"\b(was|been|were) compacted\b|continued from a previous|summary of (the|our|this)|^<summary>|conversation so far",
    re.I,
)

_MIN_TASK_CHARACTERS, _MIN_TASK_WORDS = 20, 4
_MIN_QUOTED_CHARACTERS = 100
_INNER_SUMMARY = re.compile(r"<summary>(.*?)(</summary>|$)", re.S)


def purpose_of(snapshot: Snapshot) -> str | None:
    """What a side request is for, by what its system prompt says at its beginning."""
    opening = snapshot.system_text[:_OPENING_CHARACTERS]
    found = (name for name, pattern in _PURPOSES if pattern.search(opening))
    return next((name for name in found if not snapshot.tools or name in _WITH_TOOLS), None)


def tasks_in(item: Item) -> tuple[str, ...]:
    """Texts in a reply's calls that may be the task of a sub-agent."""
    texts = (text.strip() for call in item.calls for text in call.texts)
    return tuple(text for text in texts if len(text) >= _MIN_TASK_CHARACTERS and text.count(" ") >= _MIN_TASK_WORDS - 1)


def states_task(items: Iterable[Item], tasks: Iterable[str]) -> bool:
    """Whether a user's message is one of the tasks, or begins or ends with it."""
    texts = [item.text.strip() for item in items if item.role == "user"]
    return any(text.startswith(task) or text.endswith(task) for task in tasks for text in texts)


def quotes(items: Iterable[Item], reply: Item) -> bool:
    """Whether messages hold what a reply says, or its summary."""
    wanted = reply.text.strip()
    inner = _INNER_SUMMARY.search(wanted)
    texts = [text for text in (wanted, inner[1].strip() if inner else "") if len(text) >= _MIN_QUOTED_CHARACTERS]
    return any(text in item.text for item in items for text in texts)


def tells_summary(items: Iterable[Item]) -> bool:
    """Whether one of the messages says that it stands for earlier ones."""
    return any(_SUMMARY_BEGINS.search(item.text[:_OPENING_CHARACTERS]) for item in items)
