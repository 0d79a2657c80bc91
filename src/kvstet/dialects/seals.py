"""Reasoning that has to come back to its vendor as it was given: how it gets there through clients that cannot hold it.

Anthropic signs its thinking and refuses it without the signature; OpenAI gives reasoning out encrypted. Clients of the
Messages and the Responses API return such a seal to whoever sent it, so another vendor's seal is *carried* within
theirs (`carrier_of`, `carried_in`), and nothing has to be remembered. Most Chat clients return
``reasoning_content`` at best, so for them seals are kept in a `SealMemory`, and put back when the message comes again.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from kvstet.dialects.reply import CallBegin, Delta, ReasoningDelta, ReasoningSeal, TextDelta
from kvstet.dialects.request import Message, Request
from kvstet.dialects.values import from_json, objects, text, to_json

Detail = dict[str, Any]
"""One of ``reasoning_details``; see `kvstet.dialects.request`."""

_CARRIER = "kvstet-seal."


def carrier_of(details: Sequence[Mapping[str, Any]]) -> str:
    """An opaque text that holds the details. Never empty: clients drop what has no signature."""
    return _CARRIER + urlsafe_b64encode(to_json(details).encode()).decode()


def carried_in(seal: str) -> list[Detail] | None:
    """What `carrier_of` put there; None where the seal is a vendor's own. A damaged carrier holds nothing."""
    if not seal.startswith(_CARRIER):
        return None
    try:
        return [dict(detail) for detail in objects(from_json(urlsafe_b64decode(seal.removeprefix(_CARRIER))))]
    except (binascii.Error, ValueError):
        return []


def text_of_detail(detail: Mapping[str, Any]) -> str:
    return text(detail.get("text")) or text(detail.get("summary"))


def with_text(detail: Mapping[str, Any], said: str) -> Detail:
    """The detail with the text that it seals, where its kind has one."""
    kind = detail.get("type")
    if kind == "reasoning.text":
        return {**detail, "text": said}
    return {**detail, "summary": said} if said else dict(detail)


class SealMemory:
    """Keeps the seals of the latest replies, in memory only; thread-safe.

    A reply is found again by its calls' ids, by its reasoning, or by its text: clients leave out one or the other, and
    trim what they return. The seals of one reply count once against the limit, whatever they are found by.
    """

    def __init__(self, max_replies: int = 10_000) -> None:
        self._max_replies = max_replies
        self._details: dict[bytes, tuple[int, tuple[Detail, ...]]] = {}
        """With the number of the reply, the latest of those that have this key."""
        self._keys: OrderedDict[int, tuple[bytes, ...]] = OrderedDict()
        self._num_kept = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"SealMemory({len(self._keys)} of {self._max_replies} replies)"

    def recorder(self, owner: str = "") -> SealRecorder:
        """For one reply. ``owner``: whose conversation it is; nobody else's request gets its seals."""
        return SealRecorder(self, owner)

    def keep(self, keys: Sequence[bytes], details: Sequence[Detail]) -> None:
        with self._lock:
            self._num_kept += 1
            self._keys[self._num_kept] = tuple(keys)
            for key in keys:
                self._details[key] = self._num_kept, tuple(details)
            if len(self._keys) > self._max_replies:
                self._forget(*self._keys.popitem(last=False))

    def _forget(self, number: int, keys: Sequence[bytes]) -> None:
        for key in keys:
            if self._details.get(key, (None,))[0] == number:
                del self._details[key]

    def restored(self, request: Request, owner: str = "") -> Request:
        """With the seals that its assistant messages lost on the way."""
        return replace(request, messages=tuple(self._restored(message, owner) for message in request.messages))

    def _restored(self, message: Message, owner: str) -> Message:
        if message["role"] != "assistant" or message.get("reasoning_details"):
            return message
        with self._lock:
            found = (self._details.get(key) for key in _keys_of_message(message, owner))
            kept = next((kept for kept in found if kept is not None), None)
        if kept is None:
            return message
        _, details = kept
        reasoning = "".join(map(text_of_detail, details))
        return {**message, "reasoning_content": reasoning, "reasoning_details": list(details)}


class SealRecorder:
    """Reads along with one reply, and puts its seals into the memory when it is over."""

    def __init__(self, memory: SealMemory, owner: str) -> None:
        self._memory = memory
        self._owner = owner
        self._details: list[Detail] = []
        self._reasoning: list[str] = []
        self._unsealed: list[str] = []
        self._text: list[str] = []
        self._ids: list[str] = []

    def __repr__(self) -> str:
        return f"SealRecorder({len(self._details)} seals)"

    def add(self, delta: Delta) -> None:
        match delta:
            case ReasoningDelta(said):
                self._reasoning.append(said)
                self._unsealed.append(said)
            case ReasoningSeal(detail):
                self._details.append(with_text(detail, "".join(self._unsealed)))
                self._unsealed.clear()
            case TextDelta(said):
                self._text.append(said)
            case CallBegin(id=id):
                self._ids.append(id)
            case _:
                return

    def close(self) -> None:
        """The reply is over; one that was cut off is kept as well. May be called more than once."""
        if self._details:
            keys = _keys(self._owner, self._ids, "".join(self._reasoning), "".join(self._text))
            self._memory.keep(list(keys), self._details)
            self._details.clear()


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
