"""Where two texts differ: what they begin and end with in common is found without reading them line by line."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from kvstet.edits.lines import changed_kinds

_COUNTED_CHARACTERS = 32_768
"""Of the differing part, which is read line by line; more would not change what it is called."""


class Passage:
    """The part of ``before`` that has become another part of ``after``."""

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = before, after
        self.start = _num_common(before, after)
        """Characters that both begin with."""
        limit = min(len(before), len(after)) - self.start
        self.num_tail_characters = _num_common_at_end(before, after, limit)
        """Characters that both end with, behind those that they begin with."""

    def __repr__(self) -> str:
        return f"Passage({len(self.removed)} characters at {self.start} became {len(self.inserted)})"

    @property
    def removed(self) -> str:
        return self.before[self.start : len(self.before) - self.num_tail_characters]

    @property
    def inserted(self) -> str:
        return self.after[self.start : len(self.after) - self.num_tail_characters]

    @property
    def kept_share(self) -> float:
        """The part of ``after`` that stood in ``before``, 0 to 1: its ends, and whole lines between them."""
        if not self.after:
            return 1.0
        return min(1.0, (self.start + self.num_tail_characters + self._num_between) / len(self.after))

    @property
    def is_alike(self) -> bool:
        """At least a third of the longer one stands in the other."""
        shorter, longer = sorted((len(self.before), len(self.after)))
        # Ends that are equal are found fast; lines are counted only where these do not say it.
        if 3 * (self.start + self.num_tail_characters) >= longer:
            return True
        return 3 * shorter >= longer and 3 * self.kept_share * len(self.after) >= longer

    @property
    def is_insertion(self) -> bool:
        """All of ``before`` is still there, line by line."""
        return not self.removed or _is_within(self._old_lines, self._new_lines)

    @property
    def is_removal(self) -> bool:
        """All of ``after`` was there, line by line."""
        return not self.inserted or _is_within(self._new_lines, self._old_lines)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the lines tell of that differ, as far as that is known."""
        old = changed_kinds(self.before, *self._old_place, self._new_lines)
        new = changed_kinds(self.after, *self._new_place, self._old_lines)
        return tuple(dict.fromkeys((*old, *new)))

    @cached_property
    def _num_between(self) -> int:
        removed, inserted = self.removed[:_COUNTED_CHARACTERS], self.inserted[:_COUNTED_CHARACTERS]
        if "\n" not in inserted and inserted not in removed:
            return 0
        old, new = removed.splitlines(keepends=True), inserted.splitlines(keepends=True)
        if set(old).isdisjoint(new):
            return 0
        return sum(len(line) * count for line, count in (Counter(old) & Counter(new)).items())

    @cached_property
    def _old_place(self) -> tuple[int, int]:
        return _whole_lines(self.before, self.start, len(self.before) - self.num_tail_characters)

    @cached_property
    def _new_place(self) -> tuple[int, int]:
        return _whole_lines(self.after, self.start, len(self.after) - self.num_tail_characters)

    @cached_property
    def _old_lines(self) -> list[str]:
        return _lines(self.before, *self._old_place)

    @cached_property
    def _new_lines(self) -> list[str]:
        return _lines(self.after, *self._new_place)


def _num_common(first: str, second: str) -> int:
    """Characters that both begin with, by halving: slices are compared at the speed of memory."""
    low, high = 0, min(len(first), len(second))
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _num_common_at_end(first: str, second: str, limit: int) -> int:
    """Characters that both end with, ``limit`` at most."""
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        if first[len(first) - middle : len(first) - low] == second[len(second) - middle : len(second) - low]:
            low = middle
        else:
            high = middle
    return low


def _whole_lines(text: str, start: int, stop: int) -> tuple[int, int]:
    """``[start, stop)`` grown to whole lines, without the last one's end."""
    if start == stop and (start in (0, len(text)) or text[start - 1] == "\n"):
        return start, start
    begin = text.rfind("\n", 0, start) + 1
    if stop > start and text[stop - 1] == "\n":
        return begin, stop - 1
    end = text.find("\n", stop)
    return begin, len(text) if end < 0 else end


def _lines(text: str, start: int, stop: int) -> list[str]:
    return text[start:stop].split("\n") if stop > start else []


def _is_within(few: list[str], many: list[str]) -> bool:
    """All lines, in order, though others may stand between them."""
    rest = iter(many)
    return all(line in rest for line in few)
