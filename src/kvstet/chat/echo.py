"""Puts the model's own replies back into a rendered prompt, token by token as it generated them.

A message is put back where it means what was generated, and where the template shows all of it: reasoning that the
template leaves out of older turns stays out. At fidelity ``equivalent`` it comes back too, where all that stands before
it is what the model had read when it said it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from kvstet.chat.ledger import Ledger, Said, lean_meanings_of_message, meanings_of_message
from kvstet.chat.marks import Mark, Rendered
from kvstet.chat.messages import Message
from kvstet.chat.segments import Segment, SegmentTokenizer
from kvstet.chat.tools import Defaults
from kvstet.types import Tokens


@dataclass(frozen=True, slots=True)
class Echoed:
    """A rendered prompt in parts: text, and replies whose tokens are known."""

    parts: Sequence[str | Segment]
    marks: tuple[Mark, ...]
    """In all parts together."""
    num_messages: int = 0
    reasoned: tuple[int, ...] = ()
    """Indices of marked messages that stand there with reasoning that the template does not show."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a reply is put back: characters ``[start, stop)`` of what the template printed."""

    said: Said
    start: int
    stop: int
    opening: str = ""
    """What is said before it, where the template opens the message otherwise than it was opened to the model."""
    has_reasoning: bool = False
    """It comes back with reasoning that is not shown."""


def echo(
    rendered: Rendered,
    messages: Sequence[Message | None],
    defaults: Defaults,
    ledger: Ledger,
    segments: SegmentTokenizer,
    *,
    reasoning_of: str | None = None,
) -> Echoed:
    """``messages`` are those of the marks, normalised; None: what is shown there is another message than was sent.

    ``defaults`` are those of the tools. With ``reasoning_of``, replies to the API key of this name come back with
    reasoning that the template does not show.
    """
    parts: list[str | Segment] = []
    marks: list[Mark] = []
    reasoned: list[int] = []
    text, done, hashed, shift = rendered.text, 0, 0, 0
    hasher = hashlib.blake2b(digest_size=16)
    for mark, after in zip(rendered.marks, (*rendered.marks[1:], None), strict=True):
        marks.append(replace(mark, start=mark.start + shift))
        message = messages[mark.index] if mark.index is not None else None
        if after is None or mark.index is None or message is None or message["role"] != "assistant":
            continue
        hasher.update(text[hashed : mark.start].encode())
        hashed = mark.start
        shown = Shown(text, mark.start, after.start, message, defaults)
        place = _where_shown(shown, ledger, hasher)
        if place is None and reasoning_of is not None:
            place = _where_reasoned(shown, ledger, hasher, reasoning_of)
        if place is None:
            continue
        segment = segments.segment_of(place.said.tokens)
        parts += [text[done : place.start] + place.opening, segment]
        hasher.update((text[hashed : place.start] + place.opening + segment.text).encode())
        shift += len(place.opening) + len(segment.text) - (place.stop - place.start)
        done = hashed = place.stop
        reasoned += [mark.index] * place.has_reasoning
    return Echoed([*parts, text[done:]], tuple(marks), len(parts) // 2, tuple(reasoned))


@dataclass(frozen=True, slots=True)
class Shown:
    """A message of the assistant, and the characters ``[start, stop)`` that the template made of it."""

    whole: str
    start: int
    stop: int
    message: Message
    defaults: Defaults

    @property
    def text(self) -> str:
        return self.whole[self.start : self.stop]


Hash = hashlib.blake2b


def _where_shown(shown: Shown, ledger: Ledger, before: Hash) -> _Place | None:
    """Where a reply stands of which the template shows all; of several, the one to this very prompt, or the latest."""
    text = shown.text
    meanings = meanings_of_message(shown.message, shown.defaults)
    found = [said for meaning in meanings for said in ledger.find(meaning) if _fits(said, text, shown.message)]
    if not found:
        return None
    said = next((said for said in found if _is_next(said, before)), found[0])
    return _Place(said, shown.start + len(found[0].opening), shown.start + text.rfind(found[0].ending))


def _where_reasoned(shown: Shown, ledger: Ledger, before: Hash, owner: str) -> _Place | None:
    """Where a reply stands whose reasoning was left out. It was said to this owner, and to this very prompt."""
    text = shown.text
    reasoning = str(shown.message.get("reasoning_content", ""))
    meanings = (meanings_of_message if reasoning else partial(lean_meanings_of_message, owner=owner))(
        shown.message, shown.defaults
    )
    for said in (said for meaning in meanings for said in ledger.find(meaning)):
        stop = text.rfind(said.ending) if said.ending else -1
        if stop >= 0 and text[:1] == said.opening[:1] and _is_next(said, before):
            return _Place(said, shown.start, shown.start + stop, said.opening, has_reasoning=True)
    return None


def _is_next(said: Said, before: Hash) -> bool:
    """Whether it was said to a prompt that begins with the text hashed so far, and goes on with its opening."""
    hasher = before.copy()
    hasher.update(said.opening.encode())
    return said.prompt == hasher.digest()


def _fits(said: Said, shown: str, message: Message) -> bool:
    """Whether the template shows the whole message, between the very opening and ending that it was generated with."""
    stop = shown.rfind(said.ending) if said.ending else -1
    reasoning = str(message.get("reasoning_content", "")).strip()
    return shown.startswith(said.opening) and stop >= len(said.opening) and reasoning in shown[:stop]


def digest_of(text: str) -> bytes:
    """Of a prompt, as `echo` knows it again."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def as_tokens(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, dtype=np.int32)
