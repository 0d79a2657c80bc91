"""Where a provider is told to cache, written into a request's own JSON.

Rules (docs/providers.md has their sources). Anthropic caches up to a marked block, at most four of them, and finds an
earlier entry only within 20 blocks before a mark; so the last block is marked, and as many before it as are left, each
within reach of the next. OpenAI marks the newest message itself and looks back without a limit; there only the end of
the instructions is marked, for conversations that share nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal, cast

from kvstet.context.arranging.lens import Body, DialectName, Path, replaced
from kvstet.providers.provider import CacheRule
from kvstet.untrusted import list_of, mapping_of

Style = Literal["cache_control", "prompt_cache_breakpoint"]

_REACH_MARGIN = 2
"""Blocks that a client may add between two of our marks without our knowing."""

_UNMARKABLE = frozenset({"thinking", "redacted_thinking", "reasoning"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """What a provider takes."""

    style: Style | None = None
    """How a block is marked; None: there are no marks."""
    max_breakpoints: int = 4
    lookback_blocks: int | None = 20
    """An entry is found so many blocks before a mark; None: at any."""
    key_field: str | None = None
    """A field of the request that keeps a conversation on one machine."""
    key_header: str | None = None
    """A header that does."""

    @staticmethod
    def by(rule: CacheRule) -> Marking:
        """What a provider of this rule takes."""
        style = None if rule.breakpoint_style == "cachePoint" else rule.breakpoint_style
        return Marking(
            style=style,
            max_breakpoints=rule.max_breakpoints or 1,
            lookback_blocks=rule.lookback_blocks,
            key_field=rule.cache_key_field,
            key_header=rule.affinity_header,
        )


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a request, as providers count them."""

    path: Path
    """Of the block; of a text that is not in a block, of the text."""
    value: object
    """None where the dialect has no place for a mark."""
    role: str


def marked(
    body: Body, dialect: DialectName, marking: Marking, *, key: str, names: Set[str]
) -> tuple[Body, list[tuple[str, str]], list[tuple[str, str]]]:
    """The body with marks and key, what was added (name, in words), and headers to send. Where the client marks blocks
    of its own, or has a key, they stay."""
    added: list[tuple[str, str]] = []
    headers: list[tuple[str, str]] = []
    if "breakpoints" in names and marking.style is not None and not _has_marks(body, marking.style):
        places = list(_places(body, dialect, marking))
        for block in places:
            body = _with_mark(body, block, dialect, marking.style)
        if places:
            added.append(("breakpoints", f"blocks marked: {len(places)}"))
    if "cache-key" in names and marking.key_field and marking.key_field not in body:
        body = {**body, marking.key_field: key}
        added.append(("cache-key", f"{marking.key_field} is set"))
    if "cache-key" in names and marking.key_header:
        headers.append((marking.key_header, key))
    return body, added, headers


def _places(body: Body, dialect: DialectName, marking: Marking) -> Iterator[Block]:
    head = [block for block in _head(body, dialect) if _is_markable(block, marking)]
    history = list(_history(body, dialect))
    num_left = marking.max_breakpoints - bool(head)
    yield from head[-1:]
    if marking.lookback_blocks is None:
        return
    reach = marking.lookback_blocks - _REACH_MARGIN
    last, place = len(history), len(history) - 1
    while place >= 0 and num_left > 0:
        # As far back as is within reach of the mark behind it, or else as near to it as can be.
        order = (*range(place, last), *range(place - 1, -1, -1))
        found = next((index for index in order if _is_markable(history[index], marking)), None)
        if found is None:
            return
        yield history[found]
        num_left -= 1
        last, place = found, found - reach


def _is_markable(block: Block, marking: Marking) -> bool:
    if marking.style == "prompt_cache_breakpoint" and block.role == "assistant":
        return False
    if isinstance(block.value, str):
        return bool(block.value.strip())
    fields = mapping_of(block.value)
    kind = fields.get("type")
    return isinstance(kind, str) and kind not in _UNMARKABLE and str(fields.get("text", "-")).strip() != ""


def _head(body: Body, dialect: DialectName) -> Iterator[Block]:
    match dialect:
        case "messages":
            yield from _content(body.get("system"), ("system",), "system")
        case "responses":
            # Instructions are a string that takes no mark.
            yield from (block for block in _items(body) if block.role in ("system", "developer"))
        case "chat":
            yield from (block for block in _of_messages(body) if block.role in ("system", "developer"))


def _history(body: Body, dialect: DialectName) -> Iterator[Block]:
    blocks = _items(body) if dialect == "responses" else _of_messages(body)
    return (block for block in blocks if dialect == "messages" or block.role not in ("system", "developer"))


def _of_messages(body: Body) -> Iterator[Block]:
    for index, message in enumerate(list_of(body.get("messages"))):
        fields = mapping_of(message)
        role = str(fields.get("role"))
        yield from _content(fields.get("content"), ("messages", index, "content"), role)
        yield from (Block(("messages", index), None, role) for _ in list_of(fields.get("tool_calls")))


def _items(body: Body) -> Iterator[Block]:
    for index, item in enumerate(list_of(body.get("input"))):
        fields = mapping_of(item)
        match fields.get("type", "message"):
            case "message":
                yield from _content(fields.get("content"), ("input", index, "content"), str(fields.get("role")))
            case "function_call_output":
                yield from _content(fields.get("output"), ("input", index, "output"), "tool")
            case _:
                yield Block(("input", index), None, "assistant")


def _content(content: object, path: Path, role: str) -> Iterator[Block]:
    if isinstance(content, str):
        yield Block(path, content, role)
    for place, part in enumerate(list_of(content)):
        yield Block((*path, place), part, role)


def _with_mark(body: Body, block: Block, dialect: DialectName, style: Style) -> Body:
    mark = {"type": "ephemeral"} if style == "cache_control" else {"mode": "explicit"}
    if isinstance(block.value, str):
        kind = "input_text" if dialect == "responses" else "text"
        new: object = [{"type": kind, "text": block.value, style: mark}]
    else:
        new = {**mapping_of(block.value), style: mark}
    return cast("Body", replaced(body, block.path, new))


def _has_marks(value: object, style: Style) -> bool:
    """Whether the client marks something itself, anywhere but in the tools' schemas and arguments."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return style in fields or any(_has_marks(each, style) for key, each in fields.items() if _may_hold(key, each))
    return any(_has_marks(each, style) for each in list_of(value))


def _may_hold(key: str, value: object) -> bool:
    """Responses has its items in ``input``; that of a call in Messages is an object."""
    return key not in ("input_schema", "parameters") and not (key == "input" and isinstance(value, Mapping))
