"""What a client does to older messages whenever its user speaks again, as far as it was seen to do so.

Two habits are known, both of real clients:

- *Reminders go.* A block that the client puts in front of the user's words is taken out when the next ones come.
- *Old outputs go.* Outputs of tools before the last two turns are replaced by a short note, all but the latest ones up
  to some size, and only when enough of them has come together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from kvstet.edits.snapshot import Item, Snapshot, text_of

MAX_CLIENTS = 64

STANDING_TURNS = 2
"""In so many turns of the user, the last ones, all outputs stand: opencode and Kilo have it so."""

_BLOCK = re.compile(r"\s*<([a-z][\w-]*)>.*?</\1>\s*", re.DOTALL)
"""One block at the start of a text."""

_NOTE_SHARE = 0.1
"""A note is at most this part as long as what it stands for."""

_BATCH_SHARE = 0.5
"""Of the smallest batch that was seen: the client's own limit lies somewhere below that."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Note:
    """What stands in place of old outputs, and when. Counted in characters of outputs older than `STANDING_TURNS`."""

    text: str = field(repr=False)
    least: int
    """So much of the latest of them was kept."""
    most: int
    """So much was not."""
    batch: int
    """The fewest that were replaced at once."""

    @property
    def limit(self) -> float:
        return (self.least + self.most) / 2


@dataclass(frozen=True, slots=True)
class _Seen:
    tags: frozenset[str] = frozenset()
    """Of blocks that were taken out."""
    note: _Note | None = None


class Habits:
    """Of many clients, told apart by the tools that they offer. Called from several threads."""

    def __init__(self) -> None:
        self._seen: dict[frozenset[str], _Seen] = {}

    def __repr__(self) -> str:
        return f"Habits({len(self._seen)} clients)"

    def observe(self, before: Snapshot, after: Snapshot) -> None:
        """A conversation has gone on: ``after`` follows ``before``."""
        client = after.tool_names
        seen = self._seen.pop(client, _Seen())
        tags = seen.tags | _tags_taken_out(before.items, after.items)
        # Those that were seen last stand last.
        self._seen[client] = _Seen(tags, _noted(before.items, after.items, seen.note))
        if len(self._seen) > MAX_CLIENTS:
            self._seen.pop(next(iter(self._seen)))

    def foresee(self, messages: Sequence[Message], tool_names: frozenset[str]) -> list[Message]:
        """The messages as they will be sent with the user's next words; those that stay are the same objects."""
        seen = self._seen.get(tool_names, _Seen())
        told = _without_reminder(messages, seen.tags)
        return _with_notes(told, seen.note) if seen.note else told


def _tags_taken_out(before: Sequence[Item], after: Sequence[Item]) -> frozenset[str]:
    taken: set[str] = set()
    for old, new in zip(before, after, strict=False):
        if old.role == new.role == "user" and old.exact != new.exact:
            found = _BLOCK.match(old.text)
            if found and old.text[found.end() :].strip() == new.text.strip() != "":
                taken.add(found[1])
    return frozenset(taken)


def _noted(before: Sequence[Item], after: Sequence[Item], known: _Note | None) -> _Note | None:
    """What is known of notes in place of outputs, now that this was seen too."""
    texts = {item.call_id: item.text for item in after if item.role == "tool"}
    kept = batch = 0
    note: _Note | None = None
    for item in _old_outputs(before, role=lambda item: item.role):
        text = texts.get(item.call_id, item.text)
        if len(text) < _NOTE_SHARE * len(item.text):
            note = note or _Note(text, kept, kept + len(item.text), 0)
            batch += len(item.text)
        elif note is None:
            kept += len(item.text)
    if note is None:
        return known
    if known is None or known.text != note.text:
        return replace(note, batch=batch)
    return _Note(note.text, max(note.least, known.least), min(note.most, known.most), min(batch, known.batch))


T = TypeVar("T")


def _old_outputs(messages: Sequence[T], role: Callable[[T], object]) -> Iterator[T]:
    """Outputs of tools before the last turns, the latest first."""
    num_turns = 0
    for message in reversed(messages):
        if num_turns >= STANDING_TURNS and role(message) == "tool":
            yield message
        num_turns += role(message) == "user"


def _without_reminder(messages: Sequence[Message], tags: frozenset[str]) -> list[Message]:
    told = list(messages)
    for index in reversed(range(len(told))):
        if told[index].get("role") == "user":
            told[index] = {**told[index], "content": _without_block(told[index].get("content"), tags)}
            break
    return told


def _without_block(content: object, tags: frozenset[str]) -> object:
    if isinstance(content, str):
        return _cut_text(content, tags)
    if isinstance(content, list):
        return _cut_parts(cast("list[object]", content), tags)
    return content


def _cut_text(text: str, tags: frozenset[str]) -> str:
    found = _BLOCK.match(text)
    rest = text[found.end() :] if found and found[1] in tags else ""
    return rest if rest.strip() else text


def _cut_parts(parts: list[object], tags: frozenset[str]) -> list[object]:
    if len(parts) < 2 or not isinstance(parts[0], Mapping):
        return parts
    first = cast("Mapping[str, object]", parts[0]).get("text")
    found = _BLOCK.fullmatch(first) if isinstance(first, str) else None
    return parts[1:] if found and found[1] in tags else parts


def _with_notes(messages: Sequence[Message], note: _Note) -> list[Message]:
    kept = batch = 0
    old: set[int] = set()
    for message in _old_outputs(messages, role=lambda message: message.get("role")):
        num_characters = len(text_of(message.get("content")))
        if num_characters <= len(note.text):
            continue
        kept += num_characters
        if kept > note.limit:
            old.add(id(message))
            batch += num_characters
    if batch < _BATCH_SHARE * note.batch:
        return list(messages)
    return [{**message, "content": note.text} if id(message) in old else message for message in messages]
