"""What the lines tell of that were changed in a system prompt or a reminder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from kvstet.edits.volatile import Volatile, volatile_spans

MAX_CHARACTERS = 65_536
"""Longer texts are no prompts that a client writes, but files and outputs."""

_LISTING = re.compile(r"[\s│|]*[├└][─-]{2}|\s*│")
_BLOCKS = frozenset({"reminder", "memory file"})
"""Said of a line only where nothing more precise is known of it."""


def changed_kinds(text: str, start: int, stop: int, others: Sequence[str]) -> list[str]:
    """Kinds of those lines of ``text[start:stop]`` that are not among the ``others``; each once, in order.

    ``start`` and ``stop`` are where lines begin and end.
    """
    if len(text) > MAX_CHARACTERS:
        return []
    spans = volatile_spans(text)
    known = Counter(others)
    kinds: dict[str, None] = {}
    for begin, line in _lines(text, start, stop):
        if known[line] > 0:
            known[line] -= 1
        else:
            kinds |= dict.fromkeys(_kinds(begin, line, spans))
    return list(kinds)


def _kinds(begin: int, line: str, spans: Sequence[Volatile]) -> list[str]:
    if _LISTING.match(line):
        return ["directory listing"]
    end = begin + max(1, len(line))
    found = [span.kind for span in spans if span.start < end and span.stop > begin]
    return [kind for kind in found if kind not in _BLOCKS] or [*found]


def _lines(text: str, start: int, stop: int) -> Iterator[tuple[int, str]]:
    for line in text[start:stop].split("\n") if stop > start else ():
        yield start, line
        start += len(line) + 1
