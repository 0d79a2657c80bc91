"""The forms in which replies are written: values that say which markers stand where.

A marker is matched with any white space between its parts and around it, because models are not exact about that. The
white space that the template itself prints is taken away with the marker, and no more than that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Marker:
    """Text around values. ``parts`` have no white space at their ends; an empty marker has none."""

    parts: tuple[str, ...] = ()
    before: str = ""
    """White space that the template prints before it."""
    after: str = ""
    """White space that the template prints behind it."""

    @staticmethod
    def of(text: str) -> Marker:
        """The marker that the template prints as this text."""
        core = text.strip()
        if not core:
            return Marker(after=text)
        start = text.index(core)
        return Marker(_split(core), text[:start], text[start + len(core) :])

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __repr__(self) -> str:
        return f"Marker({self.before + ' '.join(self.parts) + self.after!r})"

    @property
    def head(self) -> str:
        """What must be seen for the marker to have begun; nothing for the empty one."""
        return self.parts[0] if self.parts else ""


_SPACE_OUTSIDE_TAGS = re.compile(r"(?:(?<=[>\]])\s+)|(?:\s+(?=[<\[`]))")


def _split(core: str) -> tuple[str, ...]:
    """At white space next to a tag; that within a tag is part of it."""
    return tuple(part for part in _SPACE_OUTSIDE_TAGS.split(core) if part)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Where reasoning sits."""

    open: Marker
    close: Marker
    source: Literal["rendered", "named"] = "rendered"
    """Found in what the template prints, or known by its name because the template never prints reasoning."""


@dataclass(frozen=True, slots=True)
class ObjectCalls:
    """Each call is a JSON object; they follow each other, alone or in a list."""

    name_key: str = "name"
    arguments_key: str = "arguments"


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """Each call is written as in Python, ``name(key=value)``."""


@dataclass(frozen=True, slots=True)
class ListedCalls:
    """Calls whose name is part of an expression.

    Without an opening marker they are told from text by standing at the start of the reply and naming a known tool.
    """

    items: ObjectCalls | PythonCalls
    opens: tuple[Marker, ...]
    """Any one of these begins one call, or a list."""
    close: Marker


@dataclass(frozen=True, slots=True)
class JsonArguments:
    """One JSON value."""


@dataclass(frozen=True, slots=True)
class TagArguments:
    """Each argument between tags. Strings stand as they are, so that types come from the tool's schema."""

    key_open: Marker
    string_key_close: Marker
    """Between key and value, where the value is a string."""
    other_key_close: Marker
    """The same for other values; where the two differ, they tell the type."""
    value_close: Marker


@dataclass(frozen=True, slots=True)
class KeyedArguments:
    """``{key:value,...}`` with bare keys, and strings between quotes that need no escapes."""

    quote: str


Arguments = JsonArguments | TagArguments | KeyedArguments


@dataclass(frozen=True, slots=True)
class MarkedCalls:
    """Calls with markers around their names."""

    section_open: Marker
    call_open: Marker
    """Before each call's name, or before its id."""
    id_before: str
    """Ends an id that stands before the name; nothing if there is none."""
    name_prefix: str
    """Stands at the head of each name and is not part of it."""
    id_after: str
    """Begins an id that stands behind the name; nothing if there is none."""
    name_close: Marker
    arguments: Arguments
    call_close: Marker
    section_close: Marker

    @property
    def open(self) -> Marker:
        """What begins the first call."""
        first, second = self.section_open, self.call_open
        return Marker(first.parts + second.parts, first.before if first else second.before, second.after)


CallSyntax = ListedCalls | MarkedCalls
