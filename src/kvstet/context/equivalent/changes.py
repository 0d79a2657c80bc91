"""Which lines of a text have changed, what of it is of the moment, and how to say so in a few words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import accumulate

from kvstet.context.equivalent.catalogue import OF_KIND
from kvstet.edits.volatile import Volatile, reminders, volatile_spans
from kvstet.types import SubstitutionName

MAX_CHARACTERS = 8_000
"""Of the lines that have changed: beyond it, a text is another text."""

MAX_UNANNOUNCED_LINES = 24
MAX_UNANNOUNCED_CHARACTERS = 2_000
"""The same where nothing but observation says that the lines are of the moment."""

UNANNOUNCED_SHARE = 0.2
"""Most of a text that may change unannounced."""

_MAX_COMPARED_LINES = 500
"""Beyond it, all between the first and the last line that differ counts as one change."""

_WHOLE_SPAN = 250
"""A longer span is told by its changed lines alone."""

_LONG_LINE = 300
_AROUND = 80
"""Of a long line, what differs is told with so much around it."""

_MINUTES_BETWEEN_TURNS = 5
_MINUTES_WITHIN_TURN = 60
"""Clocks that are less far apart are not told: at a turn of the user, and while tools run."""

_NEVER_TOLD: frozenset[SubstitutionName] = frozenset({"request-id", "billing-header"})
_TOLD_AT_TURNS: frozenset[SubstitutionName] = frozenset({"clock", "counter"})
_NOT_OF_CLOCK: frozenset[SubstitutionName] = _NEVER_TOLD | frozenset[SubstitutionName]({"counter"})
_TIME = re.compile(r"(\d\d?):(\d\d)(?::\d\d(?:[.,]\d+)?)?(?: ?([AaPp])\.?[Mm]\b)?")
_TELLING: frozenset[SubstitutionName] = frozenset({"clock", "date", "git-status", "counter"})
"""New lines of these say what they are; of others one has to know what stood there."""


def skeleton(text: str) -> str:
    """The text without what is of the moment: equal for two texts that differ in nothing else."""
    return _blanked(text, (span for span in volatile_spans(text) if span.kind in OF_KIND))


def without_reminders(text: str) -> str:
    """What a user, or a tool, has said itself."""
    return _blanked(text, reminders(text), "").strip()


def _blanked(text: str, spans: Iterable[Volatile], blank: str = "\0") -> str:
    parts: list[str] = []
    place = 0
    for span in spans:
        parts += [text[place : span.start], blank]
        place = span.stop
    return "".join([*parts, text[place:]])


@dataclass(frozen=True, slots=True)
class Change:
    """Lines of one text that stand otherwise in another, line ends included."""

    old: str
    new: str
    start: int
    """Character of the old text at which ``old`` stands."""
    names: frozenset[SubstitutionName]
    around: str
    """The git status that the new lines are a part of, where they are."""

    @property
    def num_lines(self) -> int:
        return self.old.count("\n") + self.new.count("\n") + 2

    @property
    def num_characters(self) -> int:
        return len(self.old) + len(self.new)

    @property
    def is_loss(self) -> bool:
        """Lines are gone, and none came in their place."""
        return not self.new.strip()

    def is_worth_telling(self, *, is_turn_of_user: bool) -> bool:
        told = self.names - _NEVER_TOLD
        if not told or self._matters_only(_NEVER_TOLD):
            return False
        if told <= _TOLD_AT_TURNS or self._matters_only(_NEVER_TOLD | _TOLD_AT_TURNS):
            return self._is_late(is_turn_of_user=is_turn_of_user)
        return True

    def _matters_only(self, names: Set[SubstitutionName]) -> bool:
        """Whether nothing differs but this."""
        return _lean(self.old, names) == _lean(self.new, names)

    def _is_late(self, *, is_turn_of_user: bool) -> bool:
        if "clock" not in self.names:
            return is_turn_of_user
        old, new = (_lean(text, _NOT_OF_CLOCK) for text in (self.old, self.new))
        times = list(zip(_TIME.findall(old), _TIME.findall(new), strict=False))
        if times and _TIME.sub("", old) != _TIME.sub("", new):
            return True  # another day
        apart = max((_minutes_apart(*pair) for pair in times), default=_MINUTES_BETWEEN_TURNS)
        return apart >= (_MINUTES_BETWEEN_TURNS if is_turn_of_user else _MINUTES_WITHIN_TURN)

    def told(self) -> str:
        """What now stands there; where that says nothing by itself, what has gone and what has come."""
        if self.around:
            return _of_git(self.around)
        if self.is_loss or not self.names & _TELLING:
            return "\n".join(
                [*_marked("-", self._part(self.old, self.new)), *_marked("+", self._part(self.new, self.old))]
            )
        new = self._part(self.new, self.old)
        return _of_git(new) if "git-status" in self.names else new

    def _part(self, lines: str, others: str) -> str:
        """The lines, or what differs of a long one."""
        lines, others = lines.strip("\n"), others.strip("\n")
        if len(lines) <= _LONG_LINE or "\n" in lines or "\n" in others:
            return lines
        head = _num_common(lines, others)
        tail = min(_num_common(lines[::-1], others[::-1]), len(lines) - head)
        start, stop = max(0, head - _AROUND), min(len(lines), len(lines) - tail + _AROUND)
        return f"{'... ' if start else ''}{lines[start:stop]}{' ...' if stop < len(lines) else ''}"


def _of_git(lines: str) -> str:
    lines = lines.strip("\n")
    return lines if "git" in lines.lower() else f"git status: {lines}"


def _marked(mark: str, lines: str) -> list[str]:
    return [f"{mark} {line.rstrip()}" for line in lines.splitlines() if line.strip()]


def _lean(text: str, names: Set[SubstitutionName]) -> str:
    return _blanked(text, (span for span in volatile_spans(text) if OF_KIND.get(span.kind) in names))


def _minutes_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> int:
    apart = abs(_minutes(*one) - _minutes(*other)) % 1440
    return min(apart, 1440 - apart)


def _minutes(hours: str, minutes: str, half: str) -> int:
    shown = int(hours) % 12 + (12 if half.lower() == "p" else 0) if half else int(hours)
    return 60 * shown + int(minutes)


def changes(old: str, new: str, other: SubstitutionName) -> list[Change]:
    """What is to be done to one text to get the other, in order; ``other`` names what no pattern recognises."""
    if old == new:
        return []
    old_lines, new_lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    old_starts, new_starts = _starts(old_lines), _starts(new_lines)
    old_spans, new_spans = volatile_spans(old), volatile_spans(new)
    unknown: frozenset[SubstitutionName] = frozenset((other,))
    found: list[Change] = []
    # How a line ends says nothing: the last one has no line end.
    for i, j, k, m in _differing(list(map(str.rstrip, old_lines)), list(map(str.rstrip, new_lines))):
        gone, come = slice(old_starts[i], old_starts[j]), slice(new_starts[k], new_starts[m])
        spans = _within(new_spans, come)
        kinds = {span.kind for span in (*spans, *_within(old_spans, gone))}
        names: frozenset[SubstitutionName] = frozenset(OF_KIND[kind] for kind in OF_KIND if kind in kinds)
        git = [new[span.start : span.stop] for span in spans if span.kind == "git status"]
        around = git[0] if git and len(git[0]) <= _WHOLE_SPAN else ""
        found.append(Change(old[gone], new[come], gone.start, names or unknown, around))
    return found


def _starts(lines: Sequence[str]) -> list[int]:
    return list(accumulate(map(len, lines), initial=0))


def _within(spans: Sequence[Volatile], part: slice) -> list[Volatile]:
    return [span for span in spans if span.start < part.stop and span.stop > part.start]


def _differing(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of lines, ``old[i:j]`` and ``new[k:m]``."""
    head = _num_common(old, new)
    tail = min(_num_common(old[::-1], new[::-1]), len(old) - head, len(new) - head)
    before, after = old[head : len(old) - tail], new[head : len(new) - tail]
    if not before and not after:
        return
    if max(len(before), len(after)) > _MAX_COMPARED_LINES:
        yield head, head + len(before), head, head + len(after)
        return
    for tag, i, j, k, m in SequenceMatcher(None, before, after).get_opcodes():
        if tag != "equal":
            yield head + i, head + j, head + k, head + m


def _num_common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def applied(old: str, found: Sequence[Change], wanted: Set[int]) -> str:
    """The old text with those of its changes, by their place among all."""
    parts: list[str] = []
    place = 0
    for index, change in enumerate(found):
        parts += [old[place : change.start], change.new if index in wanted else change.old]
        place = change.start + len(change.old)
    return "".join([*parts, old[place:]])


def are_few(found: Sequence[Change], size: int) -> bool:
    """Whether so little of a text of this size has changed that it is the same text at another moment."""
    return sum(change.num_lines for change in found) <= MAX_UNANNOUNCED_LINES and sum(
        change.num_characters for change in found
    ) <= min(MAX_UNANNOUNCED_CHARACTERS, UNANNOUNCED_SHARE * size)
