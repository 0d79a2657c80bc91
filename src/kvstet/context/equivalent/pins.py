"""Texts that stay as they were first sent, and updates that tell at the end what has changed in them since."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from kvstet.context.equivalent.changes import MAX_CHARACTERS, Change, applied, are_few, changes
from kvstet.types import SubstitutionName

Names = Set[SubstitutionName]

_UPDATE = "<system-reminder>\n[Update] This has changed since it was told above:\n{}\n</system-reminder>"


@dataclass(frozen=True, slots=True)
class Pin:
    """A text that was put in place of the one that was sent."""

    index: int
    """Of the message."""
    other: SubstitutionName
    """What changes that no pattern recognises are called."""
    text: str
    """What stands there."""
    told: str
    """The same as the model knows it by updates."""
    sent: str
    """As it reads now."""


@dataclass(frozen=True, slots=True)
class Update:
    """What was told at one place."""

    text: str
    told: tuple[tuple[int, str], ...]
    """Message -> how it reads, as far as the model knows from here on."""
    names: frozenset[SubstitutionName]

    @property
    def num_characters(self) -> int:
        return len(self.text) + sum(len(text) for _, text in self.told)


def pin(index: int, first: str, sent: str, other: SubstitutionName, names: Names) -> tuple[Pin, Sequence[Change]]:
    """The first text, but for what may not be substituted; and the changes that do not stand in it."""
    found = changes(first, sent, other)
    shown = {place for place, change in enumerate(found) if not change.names <= names}
    hidden = [change for place, change in enumerate(found) if place not in shown]
    text = applied(first, found, shown) if hidden else sent
    return Pin(index, other, text, text, sent), hidden


def is_of_the_moment(first: str, sent: str, other: SubstitutionName, *, is_announced: bool) -> bool:
    """Whether two texts are one at two moments; ``is_announced``: they differ in what patterns recognise only."""
    found = changes(first, sent, other)
    if is_announced:
        return sum(change.num_characters for change in found) <= MAX_CHARACTERS
    return are_few(found, max(len(first), len(sent)))


def update_of(pins: Iterable[Pin], names: Names, *, is_turn_of_user: bool) -> Update | None:
    """What is to be told by now, if anything is."""
    lines: dict[str, None] = {}
    told: list[tuple[int, str]] = []
    named: set[SubstitutionName] = set()
    for each in pins:
        found = changes(each.told, each.sent, each.other)
        worth = dict(_worth_telling(each, found, names, is_turn_of_user=is_turn_of_user))
        if worth:
            lines |= dict.fromkeys(change.told() for change in worth.values())
            named |= {name for change in worth.values() for name in change.names}
            told.append((each.index, applied(each.told, found, worth.keys())))
    return Update(_UPDATE.format("\n".join(lines)), tuple(told), frozenset(named)) if lines else None


def _worth_telling(
    each: Pin, found: Sequence[Change], names: Names, *, is_turn_of_user: bool
) -> Iterator[tuple[int, Change]]:
    for place, change in enumerate(found):
        # A reminder that is gone was not taken back: it has been said, and clients show the latest only.
        is_dropped = each.other == "reminder" and change.is_loss
        if change.names <= names and not is_dropped and change.is_worth_telling(is_turn_of_user=is_turn_of_user):
            yield place, change
