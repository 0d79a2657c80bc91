"""A request for a summary, said again so that it rides the live prefix.

Clients ask for a summary with another system prompt and without tools: either the history follows as it was, or it is
told as a transcript. Both are new to every cache. The same is asked by the conversation itself, as it was last sent,
and one message of the user more. A request with tools, be they few, never rides: it is another way to work (a mode that
only plans, a helper), in which the instructions and the tools are meant as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvstet.context.arranging.lens import BETWEEN, Body, DialectName, Lens, entries_of, user_entry, with_entries
from kvstet.context.memory import digest
from kvstet.context.message import Message, role_of
from kvstet.edits.alignment import longest_ascent
from kvstet.types import HEAD_ROLES

_MIN_TEXT = 8
"""Characters of a text that is looked for in a transcript."""

_LOOKED_FOR = 120
"""Transcripts cut long texts short: so many characters of each are looked for."""

_COVERED = 0.8
"""So much of a conversation has to be in what stands for it: clients leave out what says little."""

_MIN_ENTRIES = 4
"""A shorter conversation is not worth it."""

_OF_HEAD: Mapping[DialectName, tuple[str, ...]] = {
    "chat": ("tools",),
    "responses": ("instructions", "tools"),
    # Anthropic: "changes to tool_choice or thinking invalidate the messages".
    "messages": ("system", "tools", "tool_choice", "thinking", "output_config"),
}

_CLOSING_TAG = re.compile(r"\n</([\w-]+)>")

_ASKING = "{}\n\nThe conversation to work on is all that stands above. Answer with text only: call no tools."


@dataclass(frozen=True, slots=True)
class Live:
    """A conversation as it was sent last."""

    sent: Lens
    """By the client."""
    arranged: Body
    """What went out in its place, and is cached."""

    @property
    def num_entries(self) -> int:
        return len(entries_of(self.sent.body, self.sent.dialect))


def ridden(asked: Lens, conversations: Iterable[Live]) -> Body | None:
    """The request on the first conversation that it asks about; None where it asks about none of them."""
    if asked.tools:
        return None
    for live in conversations:
        if live.sent.dialect == asked.dialect and live.num_entries >= _MIN_ENTRIES:
            body = _on_history(asked, live) or _on_transcript(asked, live)
            if body is not None:
                return body
    return None


def _on_history(asked: Lens, live: Live) -> Body | None:
    """Asked behind a copy of the history, by other instructions or by leaving the tools out."""
    if not live.sent.tools:
        return None
    sent, wanted = _history(live.sent.messages), _history(asked.messages)
    num_same = _num_common(sent, wanted)
    if num_same < len(sent) * _COVERED:
        return None
    entries = entries_of(asked.body, asked.dialect)
    num_kept = _num_entries(live.sent, num_same)
    start = _num_entries(asked, num_same)
    rest = entries[start:]
    if not rest or num_kept < live.num_entries:
        return None
    if _head(asked) != _head(live.sent):
        rest.insert(_question(asked, start) - start, user_entry(_ASKING.format(_head(asked)).strip(), asked.dialect))
    return _with_live_head(asked, live, [*entries_of(live.arranged, asked.dialect), *rest])


def _question(asked: Lens, start: int) -> int:
    """The first entry from there on that begins with what the user says; else the end. Outputs stay with their calls,
    and what follows a question leaves its place as it is."""
    roles: dict[int, str] = {}
    for leaf in asked.leaves:
        if leaf.entry is not None:
            roles.setdefault(leaf.entry, role_of(leaf.message))
    questions = (entry for entry, role in roles.items() if entry >= start and role == "user")
    return next(questions, len(entries_of(asked.body, asked.dialect)))


def _on_transcript(asked: Lens, live: Live) -> Body | None:
    """Asked in one message that tells the conversation."""
    said = [text for message in asked.messages if role_of(message) == "user" for text in _texts([message])]
    told = "\n".join(said)
    texts = [text for text in _texts(_history(live.sent.messages, without="tool")) if len(text) >= _MIN_TEXT]
    found = [place for text in texts if (place := told.find(text[:_LOOKED_FOR])) >= 0]
    if not texts or len(found) < len(texts) * _COVERED:
        return None
    in_order = [found[index] for index in longest_ascent(found)]
    start, end = _transcript(told, in_order[0], in_order[-1])
    instructions = "\n\n".join(part.strip() for part in (_head(asked), told[:start], told[end:]) if part.strip())
    asking = user_entry(_ASKING.format(instructions).strip(), asked.dialect)
    return _with_live_head(asked, live, [*entries_of(live.arranged, asked.dialect), asking])


def _transcript(told: str, first: int, last: int) -> tuple[int, int]:
    """The tags, with all between them, that hold what is told first and last; or the lines that tell it."""
    for tag in _CLOSING_TAG.finditer(told, last):
        opening = told.rfind(f"<{tag[1]}", 0, first)
        if opening >= 0:
            return opening, tag.end()
    return told.rfind("\n", 0, first) + 1, _end_of_transcript(told, last)


def _end_of_transcript(told: str, last: int) -> int:
    """Before the next heading, or behind the paragraph, of what is told last."""
    heading = told.find("\n# ", last)
    paragraph = told.find("\n\n", last)
    ends = [end for end in (heading, paragraph) if end >= 0]
    return heading if heading >= 0 else min(ends, default=len(told))


def _with_live_head(asked: Lens, live: Live, entries: Sequence[Any]) -> Body:
    """The request, with all that stands in the prompt's head, or changes what is cached behind it, from the
    conversation."""
    kept = {key: live.arranged[key] for key in _OF_HEAD[asked.dialect] if key in live.arranged}
    bare = {key: value for key, value in asked.body.items() if key not in _OF_HEAD[asked.dialect]}
    return with_entries(_with_room_to_think({**bare, **kept}), asked.dialect, entries)


def _with_room_to_think(body: Body) -> Body:
    """Anthropic refuses a ``max_tokens`` that the thinking alone may use up."""
    match body:
        case {"thinking": {"budget_tokens": int(budget)}, "max_tokens": int(allowed)} if allowed <= budget:
            return {**body, "max_tokens": allowed + budget}
        case _:
            return body


def _history(messages: Sequence[Message], *, without: str | None = None) -> list[Message]:
    return [message for message in messages if role_of(message) not in HEAD_ROLES | {without}]


def _head(lens: Lens) -> str:
    return "\n".join(_texts(message for message in lens.messages if role_of(message) in HEAD_ROLES))


def _texts(messages: Iterable[Message]) -> list[str]:
    contents = (message["content"] for message in messages if isinstance(message["content"], str))
    return [text.strip() for content in contents for text in content.split(BETWEEN)]


def _num_common(one: Sequence[Message], other: Sequence[Message]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if digest(a) != digest(b)), min(len(one), len(other)))


def _num_entries(lens: Lens, num_leaves: int) -> int:
    """How many entries so many leaves of the history end."""
    leaves = [leaf for leaf in lens.leaves if role_of(leaf.message) not in HEAD_ROLES]
    if num_leaves == len(leaves):
        return len(entries_of(lens.body, lens.dialect))
    return next((leaf.entry or 0 for leaf in leaves[num_leaves:]), 0)
