"""What keeps a prompt's head from being the same in every request: found in the text, and found at run time.

`lint` reads a system prompt and its tools, and tells what in them will vary. `Guard` watches the requests themselves,
and tells what did.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from threading import Lock
from typing import Any, Literal, cast

from kvstet.canonical import canonical
from kvstet.context.arranging.lens import Body, DialectName, Lens, lens_of
from kvstet.context.equivalent.equivalence import conversation_of
from kvstet.context.memory import digest
from kvstet.context.message import num_head_messages, text_of
from kvstet.context.order import Tool, name_of
from kvstet.edits.alignment import align, gaps
from kvstet.edits.volatile import Volatile, VolatileKind, volatile_spans

FindingKind = VolatileKind | Literal["tool order", "tool spelling", "tool name"]

ADVICE: Mapping[FindingKind, str] = {
    "billing header": "Switch it off (Claude Code: CLAUDE_CODE_ATTRIBUTION_HEADER=0), or send it as an HTTP header.",
    "clock": "Leave it out, or tell it in the user's message: Context.note.",
    "counter": "Leave it out, or tell it in the user's message: Context.note.",
    "date": "Tell it in the user's message: Context.note.",
    "git status": "Tell it in the user's message: Context.note.",
    "memory file": "Tell it in the user's message: Context.note. Files are edited while one works.",
    "reminder": "Put it into the user's message: Context.note.",
    "request id": "Leave it out: the model does not need it.",
    "working directory": "Tell it in the user's message: Context.note. Other folders then share this prompt.",
    "tool order": "Sort the tools by name: kvstet.context.writing.toolset.deterministic.",
    "tool spelling": "Write the keys of schemas in one order: kvstet.context.writing.toolset.deterministic.",
    "tool name": "Give each tool a name of its own.",
}
"""What to do about each kind."""

MAX_CHARACTERS = 1 << 18
"""Of a head that the guard follows: a longer one is left alone."""

MAX_CONVERSATIONS = 64

_MAX_HEADS = 4
"""Prompts that one conversation may go back and forth between."""

_KIN_SHARE = 0.5
"""So much of the lines two versions of one prompt share."""

_QUOTED = 160
"""Characters of a line that are quoted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that will vary."""

    kind: FindingKind
    line: int | None
    """From 1; of the system prompt, or of the tool's description. None: it is not in a text."""
    tool: str | None
    """The tool in question; None: the system prompt."""
    quote: str
    """That line, or names of tools."""

    @property
    def advice(self) -> str:
        return ADVICE[self.kind]


def lint(system: str, tools: Iterable[Mapping[str, Any]] = ()) -> list[Finding]:
    """What of a system prompt, and of the tools beside it in whichever dialect, will vary."""
    listed = [cast("Tool", tool) for tool in tools]
    described = (finding for tool in listed for finding in _in_text(_description(tool), name_of(tool)))
    return [*_in_text(system, None), *described, *_in_order(listed)]


def _in_text(text: str, tool: str | None) -> Iterator[Finding]:
    """The first of each kind in each line."""
    found: set[tuple[int, str]] = set()
    for span in volatile_spans(text):
        start = span.start + len(text[span.start : span.stop]) - len(text[span.start : span.stop].lstrip())
        line = text.count("\n", 0, start) + 1
        if (line, span.kind) not in found:
            found.add((line, span.kind))
            begin = text.rfind("\n", 0, start) + 1
            yield Finding(span.kind, line, tool, _quoted(text[begin:].partition("\n")[0], start - begin))


def _in_order(tools: Sequence[Tool]) -> Iterator[Finding]:
    names = [name_of(tool) for tool in tools]
    if names != sorted(names):
        moved = next(name for name, place in zip(names, sorted(names), strict=True) if name != place)
        yield Finding("tool order", None, moved, _quoted(", ".join(names), 0))
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield Finding("tool name", None, name, f"{names.count(name)} tools have this name")
    spelt = [name for name, tool in zip(names, tools, strict=True) if json.dumps(tool) != json.dumps(canonical(tool))]
    if spelt:
        yield Finding("tool spelling", None, spelt[0], _quoted(", ".join(spelt), 0))


def _description(tool: Tool) -> str:
    function: object = tool.get("function")
    fields = cast("Mapping[str, object]", function) if isinstance(function, Mapping) else tool
    description = fields.get("description")
    return description if isinstance(description, str) else ""


def _quoted(line: str, place: int) -> str:
    """The line; of a long one, what stands around a place in it."""
    if len(line) <= _QUOTED:
        return line
    start = max(0, min(place - _QUOTED // 2, len(line) - _QUOTED))
    return f"{'…' * (start > 0)}{line[start : start + _QUOTED]}{'…' * (start + _QUOTED < len(line))}"


VariationKind = Literal[
    "line changed",
    "line added",
    "line removed",
    "tool added",
    "tool removed",
    "tool changed",
    "tool respelt",
    "tools reordered",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What was another in one call than in the conversation's call before it."""

    kind: VariationKind
    calls: tuple[int, int]
    """Numbers of the two."""
    line: int | None = None
    """From 1; of the system prompt in the later call, or in the earlier where it is gone."""
    tool: str | None = None
    before: str | None = None
    """The line, or names of tools, as it was; None: there was none."""
    after: str | None = None
    what: VolatileKind | None = None
    """What the line tells, where that is known."""

    def __str__(self) -> str:
        where = f"line {self.line} of the system prompt" if self.tool is None and self.line else self.tool or "tools"
        lines = " -> ".join(repr(text) for text in (self.before, self.after) if text is not None)
        return f"Between calls {self.calls[0]} and {self.calls[1]}: {self.kind}, {where}: {lines}"


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before a conversation."""

    call: int
    system: str
    tools: tuple[Tool, ...]


class Guard:
    """Compares each call with the one before it of the same conversation. Thread-safe; remembers the latest
    `MAX_CONVERSATIONS` conversations."""

    def __init__(self) -> None:
        self._heads: OrderedDict[bytes, tuple[_Head, ...]] = OrderedDict()
        self._num_calls = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Guard({self._num_calls} calls, {len(self._heads)} conversations)"

    def check(self, body: Body, dialect: DialectName, *, call: int | None = None) -> list[Variation]:
        """What varied, in a request as it is about to be sent. Never raises.

        Calls are numbered from 1, unless the caller numbers them himself.
        """
        try:
            lens = lens_of(body, dialect)
            key = digest(conversation_of(lens.messages), lens.tools == [])
            system, tools = system_of(lens), tuple(lens.tools)
            num_characters = len(system) + len(json.dumps(tools))
        except (RecursionError, ValueError):
            # Nested too deeply, or numbers of thousands of digits: no client writes such a head.
            return []
        if num_characters > MAX_CHARACTERS:
            return []
        before, after = self._exchanged(key, system, tools, call)
        return [] if before is None else list(_variations(before, after))

    def _exchanged(
        self, key: bytes, system: str, tools: tuple[Tool, ...], call: int | None
    ) -> tuple[_Head | None, _Head]:
        with self._lock:
            self._num_calls += 1
            after = _Head(self._num_calls if call is None else call, system, tools)
            heads = self._heads.pop(key, ())
            before = next((head for head in reversed(heads) if _is_kin(head, after)), None)
            others = (head for head in heads if head is not before)
            self._heads[key] = (*others, after)[-_MAX_HEADS:]
            if len(self._heads) > MAX_CONVERSATIONS:
                self._heads.popitem(last=False)
        return before, after


def _is_kin(one: _Head, other: _Head) -> bool:
    """Whether one prompt has become the other. Helpers that look at a conversation have prompts of their own."""
    lines = [frozenset(head.system.split("\n")) for head in (one, other)]
    return len(lines[0] & lines[1]) >= _KIN_SHARE * max(map(len, lines))


def system_of(lens: Lens) -> str:
    """The texts of the system and the developer that a request begins with."""
    head = lens.messages[: num_head_messages(lens.messages)]
    return "\n".join(text for message in head if (text := text_of(message)) is not None)


def _variations(before: _Head, after: _Head) -> Iterator[Variation]:
    calls = before.call, after.call
    if before.system != after.system:
        yield from _of_lines(before.system, after.system, calls)
    if before.tools != after.tools or json.dumps(before.tools) != json.dumps(after.tools):
        yield from _of_tools(before.tools, after.tools, calls)


def _of_lines(before: str, after: str, calls: tuple[int, int]) -> Iterator[Variation]:
    old_spans, new_spans = volatile_spans(before), volatile_spans(after)
    for old, new in _changed_lines(before, after):
        kind = "line changed" if old and new else "line added" if new else "line removed"
        line = new or old
        number = line.number if line else None
        what = (_what(new, new_spans) if new else None) or (_what(old, old_spans) if old else None)
        quoted = _both(old, new)
        yield Variation(kind=kind, calls=calls, line=number, before=quoted[0], after=quoted[1], what=what)


def _of_tools(before: Sequence[Tool], after: Sequence[Tool], calls: tuple[int, int]) -> Iterator[Variation]:
    old, new = ({name_of(tool): tool for tool in tools} for tools in (before, after))
    for name in old:
        if name not in new:
            yield Variation(kind="tool removed", calls=calls, tool=name, before=name)
    for name, tool in new.items():
        if name not in old:
            yield Variation(kind="tool added", calls=calls, tool=name, after=name)
        elif json.dumps(old[name]) != json.dumps(tool):
            kind = "tool respelt" if old[name] == tool else "tool changed"
            quoted = _both(*next(_changed_lines(_printed(old[name]), _printed(tool)), (None, None)))
            yield Variation(kind=kind, calls=calls, tool=name, before=quoted[0], after=quoted[1])
    orders = [[name for name in tools if name in old and name in new] for tools in (old, new)]
    if orders[0] != orders[1]:
        names = [_quoted(", ".join(order), 0) for order in orders]
        yield Variation(kind="tools reordered", calls=calls, before=names[0], after=names[1])


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    start: int
    """Where it begins in its text."""
    text: str


def _changed_lines(before: str, after: str) -> Iterator[tuple[_Line | None, _Line | None]]:
    """Pairs of a line before and the one in its place; None where there is no such line."""
    old, new = _lines(before), _lines(after)
    pairs = align(_as_bytes(old), _as_bytes(new))
    for gap in gaps(pairs, len(old), len(new)):
        for pair in zip_longest(old[gap.start : gap.stop], new[gap.new_start : gap.new_stop]):
            if not (pair[0] and pair[1] and pair[0].text == pair[1].text):
                yield pair


def _lines(text: str) -> list[_Line]:
    lines: list[_Line] = []
    start = 0
    for number, line in enumerate(text.split("\n"), 1):
        lines.append(_Line(number, start, line))
        start += len(line) + 1
    return lines


def _as_bytes(lines: Iterable[_Line]) -> list[bytes]:
    return [line.text.encode(errors="surrogatepass") for line in lines]


def _both(old: _Line | None, new: _Line | None) -> tuple[str | None, str | None]:
    """As they are quoted: around the first place where they differ."""
    texts = [line.text if line else "" for line in (old, new)]
    same = (index for index, (a, b) in enumerate(zip(*texts, strict=False)) if a != b)
    place = next(same, min(map(len, texts)))
    return _quoted(old.text, place) if old else None, _quoted(new.text, place) if new else None


def _what(line: _Line, spans: Sequence[Volatile]) -> VolatileKind | None:
    stop = line.start + max(1, len(line.text))
    return next((span.kind for span in spans if span.start < stop and span.stop > line.start), None)


def _printed(tool: Tool) -> str:
    """With each line of its description on a line of its own."""
    return json.dumps(tool, indent=1, ensure_ascii=False).replace("\\n", "\n")
