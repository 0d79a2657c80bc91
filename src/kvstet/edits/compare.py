"""What has changed from one request to the next of the same conversation.

Digests are compared first; texts are looked at only where these differ. So the time is that of reading the requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kvstet.edits.alignment import Gap, align, gaps
from kvstet.edits.edit import Edit
from kvstet.edits.message import changes_of
from kvstet.edits.passage import Passage
from kvstet.edits.snapshot import Digest, Item, Snapshot, Tool

_MAX_PAIRED = 4096
"""Messages of one gap; those of a larger one count as dropped and inserted."""

_WINDOW = 4
"""New messages that are looked at for what has become of one old message."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The edits, and how much of the request is not new."""

    edits: tuple[Edit, ...]
    """In the order of the prompt."""
    shares: tuple[float, ...] = field(repr=False, default=())
    """For each message of the request the part of its text that the conversation had before, 0 to 1."""


def compare(before: Snapshot, after: Snapshot) -> tuple[Edit, ...]:
    """What was done to ``before``, the earlier request and its reply, other than to append to it. In the order of the
    prompt: tools, then messages. Deterministic; never raises."""
    return comparison(before, after).edits


def comparison(before: Snapshot, after: Snapshot) -> Comparison:
    """As `compare`, with what is known of every message."""
    return _Comparer(before, after).result()


def compare_heads(before: Snapshot, after: Snapshot) -> tuple[Edit, ...]:
    """Only what differs in system prompts and tools: all that two conversations can share."""
    heads = [replace(each, items=each.items[: each.num_head_items], reply=None) for each in (before, after)]
    return compare(*heads)


def compare_tools(before: Sequence[Tool], after: Sequence[Tool]) -> tuple[Edit, ...]:
    """What has changed in the tools; the order of keys within one does not count."""
    if before == after:
        return ()
    old, new = {tool.name: tool for tool in before}, {tool.name: tool for tool in after}
    added = tuple(name for name in new if name not in old)
    removed = tuple(name for name in old if name not in new)
    changed = tuple(name for name, tool in new.items() if name in old and old[name] != tool)
    is_reordered = [name for name in old if name in new] != [name for name in new if name in old]
    edits: list[Edit] = []
    if added:
        edits.append(Edit("tools_added", what=added))
    if removed:
        edits.append(Edit("tools_removed", what=removed))
    if is_reordered:
        edits.append(Edit("tools_reordered"))
    if changed:
        edits.append(Edit("tools_changed", what=changed))
    # Names that stand twice, and nothing else is different.
    return tuple(edits) or (Edit("tools_changed", what=_repeated(after)),)


def _repeated(tools: Sequence[Tool]) -> tuple[str, ...]:
    return tuple(name for name, count in Counter(tool.name for tool in tools).items() if count > 1)


class _Comparer:
    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self._before, self._after = before, after
        self._old, self._new = before.told, after.items
        self._shares = [0.0] * len(self._new)
        self._edits: list[Edit] = []

    def result(self) -> Comparison:
        old, new = _digests(self._old), _digests(self._new)
        pairs = align(old, new)
        for _, index in pairs:
            self._shares[index] = 1.0
        moved = self._moved(old, new, pairs)
        for gap in gaps(pairs, len(old), len(new)):
            self._explain(gap, moved)
        edits = [*self._head_edits(), *sorted(self._edits, key=_place)]
        return Comparison(tuple(edits), tuple(self._shares))

    def _head_edits(self) -> Iterator[Edit]:
        if self._before.model and self._after.model and self._before.model != self._after.model:
            yield Edit("other_model")
        elif self._before.settings != self._after.settings:
            yield Edit("other_template")
        yield from compare_tools(self._before.tools, self._after.tools)

    def _moved(self, old: Sequence[Digest], new: Sequence[Digest], pairs: Sequence[tuple[int, int]]) -> set[Digest]:
        """Digests of messages that stand on both sides in another order."""
        paired, new_paired = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
        left = {digest for index, digest in enumerate(old) if index not in paired}
        moved = [index for index, digest in enumerate(new) if index not in new_paired and digest in left]
        for index in moved:
            self._shares[index] = 1.0
        return {new[index] for index in moved}

    def _explain(self, gap: Gap, moved: set[Digest]) -> None:
        """One gap's edits."""
        old = [index for index in range(gap.start, gap.stop) if self._old[index].meaning not in moved]
        new = [index for index in range(gap.new_start, gap.new_stop) if self._new[index].meaning not in moved]
        self._note_moved(gap, moved)
        pairs = _paired(self._old, self._new, old, new)
        for index, new_index in pairs:
            self._change(index, new_index)
        paired, new_paired = {pair[0] for pair in pairs}, {pair[1] for pair in pairs}
        gone = [index for index in old if index not in paired]
        come = [index for index in new if index not in new_paired]
        if gap.new_stop == len(self._new):
            # What follows the last message that was there before is appended.
            come = [index for index in come if index < max(new_paired, default=-1)]
            if gone and gone[-1] == len(self._old) - 1 and gone[0] > max(paired, default=-1):
                self._rewind(gone, gap)
                gone = []
        self._drop(gone, gap)
        self._edits += [Edit("message_inserted", index, self._new[index].role) for index in come]

    def _change(self, index: int, new_index: int) -> None:
        old, new = self._old[index], self._new[new_index]
        is_system = old.is_head and new_index < max(1, self._after.num_head_items)
        was = index if index != new_index else None
        passage = Passage(old.text, new.text)
        self._edits += [
            Edit(change.kind, new_index, new.role, was, change.character, change.what)
            for change in changes_of(old, new, passage, is_system=is_system)
        ]
        self._shares[new_index] = passage.kept_share

    def _note_moved(self, gap: Gap, moved: set[Digest]) -> None:
        first = next((i for i in range(gap.new_start, gap.new_stop) if self._new[i].meaning in moved), None)
        if first is not None and all(edit.kind != "messages_reordered" for edit in self._edits):
            self._edits.append(Edit("messages_reordered", first, self._new[first].role))

    def _rewind(self, gone: Sequence[int], gap: Gap) -> None:
        """The conversation goes on from an earlier point. A reply alone may never have reached the client."""
        if self._before.reply is not None and len(gone) == 1:
            return
        place = min(gap.new_start, len(self._new))
        role = self._new[place].role if place < len(self._new) else None
        self._edits.append(Edit("rewound", place if role else None, role, gone[0] if gone[0] != place else None))

    def _drop(self, gone: Sequence[int], gap: Gap) -> None:
        for index in gone:
            place = min(gap.new_start, max(0, len(self._new) - 1))
            self._edits.append(Edit("message_dropped", place, self._old[index].role, index))


def _digests(items: Sequence[Item]) -> list[Digest]:
    return [item.meaning for item in items]


def _place(edit: Edit) -> tuple[int, bool]:
    """What was dropped stood before the message at its place."""
    return -1 if edit.message is None else edit.message, edit.kind != "message_dropped"


def _paired(
    before: Sequence[Item], after: Sequence[Item], old: Sequence[int], new: Sequence[int]
) -> list[tuple[int, int]]:
    """Messages of a gap that are the same ones, changed: answers to the same call, or alike and in the same order."""
    if not old or not new or len(old) + len(new) > _MAX_PAIRED:
        return []
    pairs: list[tuple[int, int]] = []
    rest = list(new)
    for index in old:
        found = next(
            (place for place, other in enumerate(rest[:_WINDOW]) if _is_same(before[index], after[other])), None
        )
        if found is None:
            continue
        pairs.append((index, rest[found]))
        del rest[: found + 1]
        if not rest:
            break
    has_same_roles = [before[index].role for index in old] == [after[index].role for index in new]
    return list(zip(old, new, strict=True)) if has_same_roles and not pairs else pairs


def _is_same(old: Item, new: Item) -> bool:
    """Whether one message may have become the other."""
    if old.role != new.role and not (old.is_head and new.is_head):
        return False
    if old.role == "tool" and old.call_id is not None and new.call_id is not None:
        return old.call_id == new.call_id
    if old.is_head or not (old.text or new.text):
        return True
    if old.calls and [call.name for call in old.calls] == [call.name for call in new.calls]:
        return True
    return Passage(old.text, new.text).is_alike
