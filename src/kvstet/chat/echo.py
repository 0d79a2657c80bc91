"""Puts the model's own replies back into a rendered prompt, token by token as it generated them.

A message is put back where it means what was generated, and where the template shows all of it: reasoning that the
template leaves out of older turns stays out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvstet.chat.ledger import Ledger, Said, meanings_of_message
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


def echo(
    rendered: Rendered,
    messages: Sequence[Message | None],
    defaults: Defaults,
    ledger: Ledger,
    segments: SegmentTokenizer,
) -> Echoed:
    """``messages`` are those of the marks, normalised; None: what is shown there is another message than was sent.

    ``defaults`` are those of the tools.
    """
    parts: list[str | Segment] = []
    marks: list[Mark] = []
    text, done, shift = rendered.text, 0, 0
    hasher = hashlib.blake2b(digest_size=16)
    for mark, after in zip(rendered.marks, (*rendered.marks[1:], None), strict=True):
        marks.append(replace(mark, start=mark.start + shift))
        message = messages[mark.index] if mark.index is not None else None
        if after is None or message is None or message["role"] != "assistant":
            continue
        shown = text[mark.start : after.start]
        meanings = meanings_of_message(message, defaults)
        found = [said for meaning in meanings for said in ledger.find(meaning) if _fits(said, shown, message)]
        if not found:
            continue
        start, stop = mark.start + len(found[0].opening), mark.start + shown.rfind(found[0].ending)
        hasher.update(text[done:start].encode())
        said = next((said for said in found if said.prompt == hasher.digest()), found[0])
        segment = segments.segment_of(said.tokens)
        parts += [text[done:start], segment]
        hasher.update(segment.text.encode())
        shift += len(segment.text) - (stop - start)
        done = stop
    return Echoed([*parts, text[done:]], tuple(marks), len(parts) // 2)


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
