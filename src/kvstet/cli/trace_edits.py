"""Edits of recorded conversations, as agents make them: what drift is measured on.

The messages are edited and rendered again, as a client's next request would be. The end of the prompt, which no edit
touches, is what the model is then given to predict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np

from kvstet.api.job import render
from kvstet.api.openai.prompts import conversation_of
from kvstet.api.openai.requests import TemplateRequest
from kvstet.api.ports import Renderer
from kvstet.cache.tree import num_equal
from kvstet.cli.traces import Trace, rendered
from kvstet.engine.drift import EDIT_KINDS, Edit, EditKind
from kvstet.engine.graft import SEAM_TOKENS
from kvstet.errors import RequestError
from kvstet.types import MessageSpan, Prompt, Tokens

CONTINUATION_TOKENS = 128
"""Positions that are compared of each edit."""

MIN_TAIL_TOKENS = SEAM_TOKENS + 128
"""Behind the edit: with less, next to nothing is left to be moved."""

MIN_CHARACTERS = 300
"""Of a text that is edited."""

STUB = "[Old tool result content cleared]"
"""What Claude Code puts in the place of a tool's output that it drops."""

SAME_SHARE = 0.9
"""Prompts that have so much of the shorter one in common are one conversation."""


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A recorded request that no later one goes on from, and its prompt."""

    label: str
    fields: TemplateRequest
    prompt: Prompt


@dataclass(frozen=True, slots=True, eq=False)
class EditedPrompt:
    """An edit, and the edited prompt with what follows it."""

    edit: Edit
    tokens: Tokens
    replies: tuple[MessageSpan, ...]
    """Where replies of the model stand in it."""

    @property
    def num_tokens(self) -> int:
        """Of the longer of the two prompts, with what follows."""
        return max(len(self.edit.before) + CONTINUATION_TOKENS, len(self.tokens))


@dataclass(frozen=True, slots=True)
class Place:
    """A text of a conversation that may be edited."""

    recorded: Recorded
    index: int
    """Of the message."""
    role: str
    text: str

    def takes(self, kind: EditKind) -> bool:
        """Clients drop results of tools, and change all sorts of texts."""
        return kind != "prune" or self.role == "tool"


def recorded_of(trace: Trace, renderer: Renderer, context_length: int) -> tuple[list[Recorded], Counter[str]]:
    """The longest prompt of each conversation; and why requests were left out, how often."""
    prompts, skipped = rendered(trace, renderer, context_length)
    found = [Recorded(request.label, request.fields, prompt) for request, prompt in prompts]
    return _longest(found), skipped


def edits_of(
    recorded: Sequence[Recorded], renderer: Renderer, num_edits: int, context_length: int
) -> list[EditedPrompt]:
    """At most so many edits, of all kinds in turn, spread over the conversations and their messages."""
    by_kind = [_edits(kind, recorded, renderer, context_length) for kind in EDIT_KINDS]
    return list(islice(_in_turn(by_kind), num_edits))


def _longest(recorded: list[Recorded]) -> list[Recorded]:
    kept: list[Recorded] = []
    for one in sorted(recorded, key=lambda one: -len(one.prompt.tokens)):
        tokens = one.prompt.tokens
        if all(num_equal(tokens, other.prompt.tokens) < SAME_SHARE * len(tokens) for other in kept):
            kept.append(one)
    return kept


def _edits(
    kind: EditKind, recorded: Sequence[Recorded], renderer: Renderer, context_length: int
) -> Iterator[EditedPrompt]:
    texts = [place.text for one in recorded for place in _places(one)]
    # Each kind begins elsewhere, so that not all of them meet the same messages.
    offset = EDIT_KINDS.index(kind)
    for number, place in enumerate(_in_turn([_rotated(list(_places(one)), offset) for one in recorded])):
        other = texts[(number + len(texts) // 2) % len(texts)]
        edited = _edit(kind, place, other, renderer) if place.takes(kind) else None
        if edited is not None and edited.num_tokens <= context_length:
            yield edited


def _places(recorded: Recorded) -> Iterator[Place]:
    """Long texts of users and tools, and of the system prompt, the first ones last: an edit there leaves most to do."""
    for index, message in reversed(list(enumerate(recorded.fields.messages))):
        text = _text(message)
        if (role := message.get("role")) in ("user", "tool", "system") and len(text) >= MIN_CHARACTERS:
            yield Place(recorded, index, role, text)


def _edit(kind: EditKind, place: Place, other: str, renderer: Renderer) -> EditedPrompt | None:
    """None: what lies behind it is too short, or the template shows it elsewhere too."""
    before, after = _versions(kind, place, other)
    try:
        prompts = [_rendered(place, text, renderer) for text in (before, after)]
    except RequestError:
        return None
    one, two = (prompt.tokens for prompt in prompts)
    continuation = two[-CONTINUATION_TOKENS:]
    if min(len(one), len(two)) <= CONTINUATION_TOKENS or not np.array_equal(one[-CONTINUATION_TOKENS:], continuation):
        return None
    label = f"{kind} in message {place.index} of {place.recorded.label}"
    edit = Edit(kind, label, one[:-CONTINUATION_TOKENS], two[:-CONTINUATION_TOKENS], continuation)
    if edit.num_tail_tokens < MIN_TAIL_TOKENS:
        return None
    replies = [span for span in prompts[1].spans if span.role == "assistant" and span.index is not None]
    return EditedPrompt(edit, two, tuple(replies))


def _versions(kind: EditKind, place: Place, other: str) -> tuple[str, str]:
    """The text before and after the edit: a third of its lines, or one line of a system prompt, go or come."""
    text = place.text
    lines, others = text.splitlines(keepends=True), other.splitlines(keepends=True)
    begin = len(lines) // 3
    end = begin + 1 if place.role == "system" else max(begin + 1, 2 * len(lines) // 3)
    shorter = "".join(lines[:begin] + lines[end:])
    match kind:
        case "prune":
            return text, STUB
        case "remove":
            return text, shorter
        case "insert":
            return shorter, text
        case "replace":
            middle = others[: end - begin] or [STUB + "\n"]
            return text, "".join(lines[:begin] + middle + lines[end:])


def _rendered(place: Place, text: str, renderer: Renderer) -> Prompt:
    messages = list(place.recorded.fields.messages)
    messages[place.index] = _with_text(messages[place.index], text)
    return render(renderer, conversation_of(msgspec.structs.replace(place.recorded.fields, messages=messages)))


def _text(message: dict[str, Any]) -> str:
    """Of a message that is one text; empty for any other."""
    match message.get("content"):
        case str(text):
            return text
        case [{"type": "text", "text": str(text)}]:
            return text
        case _:
            return ""


def _with_text(message: dict[str, Any], text: str) -> dict[str, Any]:
    is_text = isinstance(message["content"], str)
    return {**message, "content": text if is_text else [{**message["content"][0], "text": text}]}


def _rotated(places: list[Place], offset: int) -> list[Place]:
    return places[offset % len(places) :] + places[: offset % len(places)] if places else []


def _in_turn(iterables: Iterable[Iterable[Any]]) -> Iterator[Any]:
    """The first of each, the second of each..., until all are at their end."""
    waiting = [iter(iterable) for iterable in iterables]
    while waiting:
        going: list[Iterator[Any]] = []
        for iterator in waiting:
            for item in islice(iterator, 1):
                yield item
                going.append(iterator)
        waiting = going
