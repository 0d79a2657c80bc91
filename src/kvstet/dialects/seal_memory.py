"""Seals of replies to clients that cannot hold them: most Chat clients return ``reasoning_content`` at best."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from threading import Lock

from kvstet.config import MIB
from kvstet.dialects.request import Message, Request
from kvstet.dialects.seals import Detail, text_of_detail
from kvstet.dialects.values import objects, text
from kvstet.dialects.whole import Reply

MAX_REPLIES = 10_000
MAX_CHARACTERS = 64 * MIB


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """Of one reply."""

    keys: tuple[bytes, ...]
    details: tuple[Detail, ...]

    @property
    def num_characters(self) -> int:
        return sum(len(text(value)) for detail in self.details for value in detail.values())


class SealMemory:
    """Keeps the seals of the latest replies, in memory only; thread-safe.

    A reply is found again by its calls' ids, by its reasoning, or by its text: clients leave out one or the other, and
    trim what they return. The seals of one reply count once against the limits, whatever they are found by.
    """

    def __init__(self, *, max_replies: int = MAX_REPLIES, max_characters: int = MAX_CHARACTERS) -> None:
        self._max_replies, self._max_characters = max_replies, max_characters
        self._replies: deque[_Kept] = deque()
        self._by_key: dict[bytes, _Kept] = {}
        """The latest of those that have this key."""
        self._num_characters = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"SealMemory({len(self._replies)} of {self._max_replies} replies, {self._num_characters:,} characters)"

    def keep(self, reply: Reply, owner: str = "") -> None:
        """A reply without seals takes no room. ``owner``: whose conversation it is; nobody else's request gets them."""
        if not reply.details:
            return
        keys = _keys(owner, [call.id for call in reply.calls], reply.reasoning, reply.text)
        kept = _Kept(tuple(keys), reply.details)
        with self._lock:
            self._replies.append(kept)
            self._num_characters += kept.num_characters
            self._by_key.update(dict.fromkeys(kept.keys, kept))
            while len(self._replies) > self._max_replies or self._num_characters > self._max_characters:
                self._forget(self._replies.popleft())

    def _forget(self, kept: _Kept) -> None:
        self._num_characters -= kept.num_characters
        for key in kept.keys:
            if self._by_key.get(key) is kept:
                del self._by_key[key]

    def restored(self, request: Request, owner: str = "") -> Request:
        """With the seals that its assistant messages lost on the way."""
        return replace(request, messages=tuple(self._restored(message, owner) for message in request.messages))

    def _restored(self, message: Message, owner: str) -> Message:
        if message["role"] != "assistant" or message.get("reasoning_details"):
            return message
        with self._lock:
            found = (self._by_key.get(key) for key in _keys_of_message(message, owner))
            kept = next((kept for kept in found if kept is not None), None)
        if kept is None:
            return message
        reasoning = "".join(map(text_of_detail, kept.details))
        return {**message, "reasoning_content": reasoning, "reasoning_details": list(kept.details)}


def _keys_of_message(message: Message, owner: str) -> Iterator[bytes]:
    ids = [text(call.get("id")) for call in objects(message.get("tool_calls"))]
    content = message.get("content")
    said = content if isinstance(content, str) else "".join(text(part.get("text")) for part in objects(content))
    return _keys(owner, ids, text(message.get("reasoning_content")), said)


def _keys(owner: str, ids: Sequence[str], reasoning: str, said: str) -> Iterator[bytes]:
    for id in ids:
        yield _digest(owner, "call", id)
    if reasoning.strip():
        yield _digest(owner, "reasoning", reasoning.strip())
    # A reply that calls is known by its calls; a text alone may be as common as "Done.".
    if not ids and said.strip():
        yield _digest(owner, "text", said.strip())


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode(errors="replace")).digest()[:16]
