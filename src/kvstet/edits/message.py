"""What was done to one message."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kvstet.edits.edit import EditKind
from kvstet.edits.passage import Passage
from kvstet.edits.snapshot import Item

_STUB_CHARACTERS = 400
"""A text that is put in the place of a result is no longer than this, and a fourth of it at most."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that was done to a message."""

    kind: EditKind
    character: int | None = None
    what: tuple[str, ...] = ()


def changes_of(old: Item, new: Item, passage: Passage, *, is_system: bool) -> tuple[Change, ...]:
    """What makes ``new`` of ``old``, whose texts differ in the passage."""
    changes = [*_reasoning(old, new), *_text(old, new, passage, is_system=is_system), *_calls(old, new)]
    return tuple(changes) if changes or old.meaning == new.meaning else (Change("message_edited"),)


def _reasoning(old: Item, new: Item) -> Iterator[Change]:
    before, after = old.reasoning.strip(), new.reasoning.strip()
    if before == after:
        return
    passage = Passage(before, after)
    yield Change("message_edited" if passage.inserted else "reasoning_stripped", passage.start)


def _text(old: Item, new: Item, passage: Passage, *, is_system: bool) -> Iterator[Change]:
    if old.text == new.text or (old.role == "assistant" and old.text.strip() == new.text.strip()):
        return
    if is_system:
        yield Change("system_changed", passage.start, passage.kinds)
    elif old.role == "tool":
        yield Change(_kind_of_result(passage), passage.start)
    else:
        yield Change(_kind_of_block(passage), passage.start, passage.kinds if old.role == "user" else ())


def _kind_of_result(passage: Passage) -> EditKind:
    before, after = passage.before, passage.after
    if not after.strip():
        return "result_pruned"
    if len(after) >= len(before):
        return _kind_of_block(passage)
    num_kept = passage.start + passage.num_tail_characters
    if 2 * num_kept >= len(after) and num_kept > 0:
        return "result_truncated"
    if len(after) <= _STUB_CHARACTERS or 4 * len(after) <= len(before):
        return "result_replaced"
    return _kind_of_block(passage)


def _kind_of_block(passage: Passage) -> EditKind:
    if not passage.before.strip() or not passage.after.strip():
        return "message_edited"
    if passage.is_insertion:
        return "block_inserted"
    if passage.is_removal:
        return "block_removed"
    return "block_replaced" if passage.is_alike else "message_edited"


def _calls(old: Item, new: Item) -> Iterator[Change]:
    if old.calls == new.calls:
        return
    if [call.name for call in old.calls] != [call.name for call in new.calls]:
        yield Change("message_edited")
        return
    pairs = zip(old.calls, new.calls, strict=True)
    yield Change("arguments_changed", what=tuple(call.name for call, now in pairs if call != now))
