"""What in a prompt is of the moment: clocks, dates, git status, ids and counters that clients write into their prompts.

Patterns come from the prompts of real clients (Claude Code, Qwen Code, opencode, Codex, Cline, Continue, pi, aider).
A pattern never decides alone that something has changed: it says what a place *is*, where two prompts differ.

Time is linear in the text: words are found with ``str.find``, and patterns see one line at a time, at most its first
`_LINE` characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

VolatileKind = Literal[
    "billing header",
    "clock",
    "counter",
    "date",
    "git status",
    "memory file",
    "reminder",
    "request id",
    "working directory",
]


@dataclass(frozen=True, slots=True)
class Volatile:
    """Characters ``[start, stop)`` of a text, and what they tell. ``reminder`` and ``memory file`` are what is left of
    such a block beside what is known more precisely."""

    start: int
    stop: int
    kind: VolatileKind


_LINE = 2000
"""Characters of a line that are looked at."""

_NEAR = 60
"""Characters between a date and the word that calls it one."""

_BLOCK_LINES = 400
"""Lines of a git status that are looked at."""

_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DAY = r"(?:(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6}\.?,? )?"
_ZONE = r"(?: ?(?:Z|UTC|GMT|[A-Z]{3,4}|\(?(?:UTC|GMT)?[+-]\d\d?(?::?\d\d)?\)?)(?![A-Za-z\d]))?"
_TIME = rf"\d\d?:\d\d(?::\d\d(?:[.,]\d{{1,9}})?)?(?: ?(?:[AaPp]\.[Mm]\.|[AaPp][Mm]))?{_ZONE}"
_DATE = (
    rf"{_DAY}(?:\d{{4}}[-/.]\d\d?[-/.]\d\d?|\d\d?[-/.]\d\d?[-/.]\d{{4}}"
    rf"|{_MONTH} \d\d?(?:st|nd|rd|th)?,? \d{{4}}|\d\d?(?:st|nd|rd|th)?\.? {_MONTH},? \d{{4}})"
)
_WHEN = re.compile(
    rf"(?<![\w.])(?:(?P<ctime>{_DAY}{_MONTH} +\d\d?,? {_TIME} \d{{4}})"
    rf"|(?P<date>{_DATE})(?P<at>(?:T|,? (?:at )?){_TIME})?"
    rf"|(?P<time>{_TIME})|(?P<hour>\d\d? ?[AaPp]\.?[Mm]\b)|(?P<epoch>1\d{{9}}(?:\d{{3}})?(?:\.\d{{1,9}})?))(?![\w])"
)
_WHEN_LABEL = re.compile(
    r"(?<![a-z])(?:current)?(?:date(?:time)?|today|time(?:stamp)?|clock|now|as of|epoch)(?![a-z])", re.I
)
_EPOCH_LABEL = re.compile(r"timestamp|epoch|unix", re.I)
_ID = re.compile(
    r"(?:request|req|trace|span|correlation|invocation|message|turn)[-_ ]?(?:id|uuid)[\"'*`]{0,2}"
    r"(?:\s?[:=]\s?|\sis\s|>)"
    r"[\"'`]?([\w.:-]{6,200})|nonce[\"']?\s?[:=]\s?[\"']?([\w.:+/=-]{6,200})",
    re.I,
)
_NUMBER = r"\d[\d,.]{0,15}[km]?%?"
_COUNTED = r"(?:tokens?|turns?|steps?|messages?|requests?|iterations?|attempts?|credits?|context|budget|usage|quota)"
_LEFT = r"(?:used|remaining|left|so far)"
_COUNTER = re.compile(
    rf"(?<![a-z_]){_COUNTED}(?:[ _](?:{_LEFT}|usage|budget|window|count|number)){{0,3}}(?:\s?[:=#>]\s?#?)"
    rf"({_NUMBER}(?:\s?(?:/|of|out of)\s?{_NUMBER})?)"
    rf"|(?<![a-z_])(?:turn|step|iteration|attempt|request|message)\s#?({_NUMBER}\s?(?:/|of|out of)\s?{_NUMBER})"
    rf"|(?<![\w.])({_NUMBER}(?:\s?/\s?{_NUMBER})?)\s{_COUNTED}?\s?{_LEFT}(?![a-z])"
    rf"|<{_LEFT}(?:_tokens)?>({_NUMBER})<",
    re.I,
)
_DIRECTORY = re.compile(
    r"(?:working dir(?:ectory)?|(?<![a-z])cwd|working in the directory)[*\"'`]{0,2}"
    r"(?:\s?[:=>]\s?|\sis\s)[\"'`]?([^<\"'`\n]+)",
    re.I,
)
_BILLING = re.compile(r"x-anthropic-billing-header:(.+)")
_GIT_HEADING = re.compile(r"\W{0,4}git ?status\W{0,4}", re.I)
_GIT_LINE = re.compile(
    r"(?:git: |(?:current|main|git|default) branch\b|git (?:user|branch|head)\b|status:|recent commits\b"
    r"|this is the git status|working tree clean|\(clean\)|on branch |your branch )",
    re.I,
)
_GIT_ALONE = re.compile(r"[\s*-]{0,4}((?:current |git )branch[^:\n]{0,60}: ?[^\n]*|git: [^\n]*)", re.I)
_END_OF_BLOCK = re.compile(r"</|#{1,6} |---|<")

_DIGITS = re.compile(r"\d[^\n]*")
_NUMBERED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("when", ("date", "today", "time", "clock", "now", "as of", "epoch")),
    ("id", ("request", "req", "trace", "span", "correlation", "invocation", "message", "turn", "nonce")),
    (
        "counter",
        (
            *("token", "turn", "step", "message", "request", "iteration", "attempt", "credit", "used", "remaining"),
            *("left", "so far", "context", "budget", "usage", "quota"),
        ),
    ),
)
"""Of lines that hold a digit: what they may tell, and words of which one has to be there."""

_NAMED: tuple[tuple[str, str], ...] = (
    ("working dir", "directory"),
    ("cwd", "directory"),
    ("working in the directory", "directory"),
    ("x-anthropic-billing-header", "billing"),
    ("git", "git"),
    ("branch", "git"),
)
"""Of any line: a word, and what it may tell."""

_BLOCKS: tuple[tuple[str, str, VolatileKind], ...] = (
    ('<context name="gitstatus">', "</context>", "git status"),
    ("<git_status>", "</git_status>", "git status"),
    ("<gitstatus>", "</gitstatus>", "git status"),
    ("<git-status>", "</git-status>", "git status"),
    ("<cwd>", "</cwd>", "working directory"),
    ("<system-reminder>", "</system-reminder>", "reminder"),
    ("<system_reminder>", "</system_reminder>", "reminder"),
    ("<environment_context>", "</environment_context>", "reminder"),
    ("<environment_details>", "</environment_details>", "reminder"),
    ("<instructions>", "</instructions>", "memory file"),
    ("<project_instructions", "</project_instructions>", "memory file"),
    ("--- context from:", "--- end of context from:", "memory file"),
    ("instructions from: ", "\ninstructions from: ", "memory file"),
)
_WHOLE: frozenset[VolatileKind] = frozenset({"reminder", "memory file"})


def volatile_spans(text: str) -> tuple[Volatile, ...]:
    """What is of the moment in a text, in order, without overlap."""
    lower = _lower(text)
    blocks = list(_blocks(lower))
    precise = _apart(sorted([*(b for b in blocks if b.kind not in _WHOLE), *_in_lines(text, lower)], key=_place))
    rest = _apart(sorted((block for block in blocks if block.kind in _WHOLE), key=_place))
    left = (gap for block in rest for gap in _gaps(block, precise, text))
    return tuple(sorted([*precise, *left], key=_place))


def reminders(text: str) -> tuple[Volatile, ...]:
    """Whole blocks in which a client speaks for itself within a user's message, their tags included."""
    lower = _lower(text)
    found: list[Volatile] = []
    for opening, closing, kind in _BLOCKS:
        if kind == "reminder":
            outer = (len(opening), len(closing))
            found += [
                Volatile(b.start - outer[0], b.stop + outer[1], b.kind)
                for b in _of_block(lower, opening, closing, kind)
            ]
    return tuple(_apart(sorted(found, key=_place)))


def _lower(text: str) -> str:
    lower = text.lower()
    return lower if len(lower) == len(text) else text  # a few letters become two, and places would move


def _place(span: Volatile) -> tuple[int, int]:
    return span.start, -span.stop


def _apart(spans: Iterable[Volatile]) -> list[Volatile]:
    """Of those that overlap, the first. They come in order."""
    apart: list[Volatile] = []
    for span in spans:
        if span.start < span.stop and (not apart or apart[-1].stop <= span.start):
            apart.append(span)
    return apart


def _gaps(block: Volatile, taken: list[Volatile], text: str) -> Iterator[Volatile]:
    """What of a block is not taken, and not blank."""
    start = block.start
    for span in (span for span in taken if span.stop > block.start and span.start < block.stop):
        if text[start : span.start].strip():
            yield Volatile(start, span.start, block.kind)
        start = max(start, span.stop)
    if text[start : block.stop].strip():
        yield Volatile(start, block.stop, block.kind)


def _blocks(lower: str) -> Iterator[Volatile]:
    for opening, closing, kind in _BLOCKS:
        yield from _of_block(lower, opening, closing, kind)


def _of_block(lower: str, opening: str, closing: str, kind: VolatileKind) -> Iterator[Volatile]:
    """The insides of blocks."""
    place = lower.find(opening)
    while place >= 0:
        start = place + len(opening)
        stop = lower.find(closing, start)
        if stop < 0 and closing.startswith("\n"):
            stop = len(lower)
        if stop < 0:
            return  # nor will there be one behind a later opening
        yield Volatile(start, stop, kind)
        place = lower.find(opening, stop)


def _in_lines(text: str, lower: str) -> Iterator[Volatile]:
    for start in _lines_with_digits(lower):
        yield from _in_numbered(_line_at(text, start), _line_at(lower, start), start)
    git_stop = 0
    for word, group in _NAMED:
        for start in _lines_with(word, lower):
            line = _line_at(text, start)
            match group:
                case "directory":
                    yield from _of_pattern(_DIRECTORY, "working directory", line, start)
                case "billing":
                    yield from _of_pattern(_BILLING, "billing header", line, start)
                case _ if start >= git_stop or word == "branch":
                    for span in _git(text, line, start):
                        git_stop = span.stop
                        yield span
                case _:
                    pass


def _lines_with_digits(lower: str) -> Iterator[int]:
    for match in _DIGITS.finditer(lower):
        yield lower.rfind("\n", 0, match.start()) + 1


def _lines_with(word: str, lower: str) -> Iterator[int]:
    """Where lines begin that hold the word."""
    place = lower.find(word)
    while place >= 0:
        yield lower.rfind("\n", 0, place) + 1
        stop = lower.find("\n", place)
        if stop < 0:
            return
        place = lower.find(word, stop)


def _line_at(text: str, start: int) -> str:
    stop = text.find("\n", start, start + _LINE)
    return text[start:stop] if stop >= 0 else text[start : start + _LINE]


def _in_numbered(line: str, lower: str, start: int) -> Iterator[Volatile]:
    for group, words in _NUMBERED:
        if not any(word in lower for word in words):
            continue
        match group:
            case "when":
                yield from _when(line, start)
            case "id":
                yield from _of_pattern(_ID, "request id", line, start)
            case _:
                yield from _of_pattern(_COUNTER, "counter", line, start)


def _when(line: str, start: int) -> Iterator[Volatile]:
    if not _WHEN_LABEL.search(line):
        return
    for match in _WHEN.finditer(line):
        # Dates far from any word that says so are content.
        near = line[max(0, match.start() - _NEAR) : match.end() + _NEAR]
        if (_EPOCH_LABEL if match["epoch"] else _WHEN_LABEL).search(near):
            is_date = match["date"] and not match["at"]
            yield Volatile(start + match.start(), start + match.end(), "date" if is_date else "clock")


def _of_pattern(pattern: re.Pattern[str], kind: VolatileKind, line: str, start: int) -> Iterator[Volatile]:
    for match in pattern.finditer(line):
        group = match.lastindex
        value = match[group].rstrip(" .,;") if group else ""
        if group and (kind != "request id" or any(map(str.isdigit, value))):
            yield Volatile(start + match.start(group), start + match.start(group) + len(value), kind)


def _git(text: str, line: str, start: int) -> Iterator[Volatile]:
    """What git says: a block under a heading, or lines that begin like git's."""
    if _GIT_HEADING.fullmatch(line.rstrip()):
        begin = start + len(line) + 1
        stop = _end_of_git(text, begin)
    elif match := _GIT_ALONE.match(line):
        begin, stop = start + match.start(1), _end_of_paragraph(text, start)
    else:
        return
    body = text[begin:stop].rstrip()
    if body:
        yield Volatile(begin, begin + len(body), "git status")


def _end_of_git(text: str, place: int) -> int:
    """Paragraphs that begin as git's do, and the one right under the heading."""
    stop = _end_of_paragraph(text, place)
    for _ in range(_BLOCK_LINES):
        begin = stop
        while text.startswith("\n", begin):
            begin += 1
        if not _GIT_LINE.match(text, begin):
            return stop
        stop = _end_of_paragraph(text, begin)
    return stop


def _end_of_paragraph(text: str, place: int) -> int:
    """Before the next empty line, or a line that closes or begins something else; that of a row of ``git:`` lines."""
    is_prefixed = text.startswith("git: ", place)
    for _ in range(_BLOCK_LINES):
        stop = text.find("\n", place)
        if stop < 0:
            return len(text)
        place = stop + 1
        others = not text.startswith("git: ", place) if is_prefixed else False
        if others or text.startswith("\n", place) or _END_OF_BLOCK.match(text, place):
            return stop
    return place
