"""The generated text as it comes in, for code that reads it as if it were there already.

Readers are generators: they yield where they need more text, and are resumed when there is more, or none will come.
Nothing is looked at twice but what could still become a marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
"""Yields wherever more text is needed; its value is the result."""


class Source:
    """Text that was not read yet."""

    def __init__(self) -> None:
        self.text = ""
        self.ended = False
        self._raw: list[str] | None = None
        """What was read since `begin`, to give it back where it was no call after all."""

    def __repr__(self) -> str:
        return f"Source({self.text!r}{', ended' if self.ended else ''})"

    def add(self, text: str) -> None:
        self.text += text

    def take(self, num_characters: int) -> str:
        """Read so many of the characters that are there."""
        taken, self.text = self.text[:num_characters], self.text[num_characters:]
        if self._raw is not None:
            self._raw.append(taken)
        return taken

    def begin(self, already: str = "") -> None:
        """From here on, remember what is read, behind what was read already."""
        self._raw = [already]

    def forget(self) -> None:
        """Remember nothing any longer."""
        self._raw = None

    def put_back(self, num_kept: int = 0) -> str:
        """Unread what was read since `begin`, but for so many characters at its start, which are the result."""
        raw, self._raw = "".join(self._raw or ()), None
        self.text = raw[num_kept:] + self.text
        return raw[:num_kept]

    def peek(self) -> Reading[str]:
        """The next character, not read; nothing at the end."""
        while not self.text and not self.ended:
            yield
        return self.text[:1]

    def spaces(self) -> Reading[int]:
        """How many white space characters come next; they are not read."""
        count = 0
        while True:
            while count < len(self.text) and self.text[count].isspace():
                count += 1
            if count < len(self.text) or self.ended:
                return count
            yield

    def skip_spaces(self) -> Reading[str]:
        """Read white space; the next character, not read, is the result."""
        self.take((yield from self.spaces()))
        return self.text[:1]

    def sees(self, literal: str, offset: int = 0) -> Reading[bool]:
        """Whether this literal comes next, or behind so many characters; nothing is read."""
        while not self.ended and len(self.text) < offset + len(literal):
            if not literal.startswith(self.text[offset:]):
                return False
            yield
        return self.text.startswith(literal, offset)

    def match(self, literal: str) -> Reading[bool]:
        """Read the literal if it comes next, behind any white space; otherwise nothing is read."""
        offset = yield from self.spaces()
        if not (yield from self.sees(literal, offset)):
            return False
        self.take(offset + len(literal))
        return True

    def match_all(self, literals: Sequence[str]) -> Reading[bool]:
        """Read all of these, with any white space before each. Where one is missing, those before it stay read."""
        for literal in literals:
            if not (yield from self.match(literal)):
                return False
        return True

    def eat(self, spaces: str) -> Reading[None]:
        """Read this white space as far as it is there."""
        for space in spaces:
            if (yield from self.peek()) != space:
                return
            self.take(1)

    def until(self, literals: Sequence[str], emit: Callable[[str], None], spaces: Sequence[str] = ()) -> Reading[int]:
        """Emit all text before the first of these literals, and read that literal.

        ``spaces[i]`` is white space before ``literals[i]`` that belongs to it. The result is the literal's index, or
        -1 when the text ended without one.
        """
        stops = stops_of(tuple(literals), tuple(spaces))
        while True:
            found = stops.search(self.text)
            if found is not None:
                index, start, stop = found
                text = self.take(stop)[:start]
                emit_if(emit, _without(text, stops.spaces[index]))
                return index
            if self.ended:
                emit_if(emit, self.take(len(self.text)))
                return -1
            emit_if(emit, self.take(len(self.text) - stops.num_held(self.text)))
            yield


def emit_if(emit: Callable[[str], None], text: str) -> None:
    if text:
        emit(text)


def _without(text: str, spaces: str) -> str:
    """Without as much of this white space as the text ends in."""
    for count in range(len(spaces), 0, -1):
        if text.endswith(spaces[-count:]):
            return text[:-count]
    return text


class Stops:
    """Literals to look out for."""

    def __init__(self, literals: tuple[str, ...], spaces: tuple[str, ...]) -> None:
        self.spaces = spaces or ("",) * len(literals)
        self._index = {literal: index for index, literal in reversed(list(enumerate(literals)))}
        longest_first = sorted(self._index, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if literals else None
        self._heads = {literal[:size] for literal in literals for size in range(1, len(literal))}
        self._longest = max(map(len, self._heads), default=0)
        self._num_spaces = max(map(len, self.spaces), default=0)

    def search(self, text: str) -> tuple[int, int, int] | None:
        """Index, start and stop of the first literal."""
        match = self._pattern.search(text) if self._pattern else None
        return (self._index[match.group()], match.start(), match.end()) if match else None

    def num_held(self, text: str) -> int:
        """How many characters at the end could be the head of a literal, or white space before one."""
        held = next((n for n in range(min(self._longest, len(text)), 0, -1) if text[-n:] in self._heads), 0)
        limit = min(len(text), held + self._num_spaces)
        while held < limit and text[-held - 1].isspace():
            held += 1
        return held


@lru_cache(maxsize=1024)
def stops_of(literals: tuple[str, ...], spaces: tuple[str, ...]) -> Stops:
    return Stops(literals, spaces)
