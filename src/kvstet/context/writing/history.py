"""What was said, kept so that it can only grow: each entry is chained to all before it, and stays byte for byte.

A prompt is reused as far as it is the same. So the history holds the JSON text of each message as it was first written,
and an id hashed from that text and from the entry before; whoever stores a history and reads it again gets the same
bytes, or an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NewType, cast

from kvstet.context.message import Message
from kvstet.errors import BrokenHistory

EntryId = NewType("EntryId", str)

_ROOT = EntryId("")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One message."""

    id: EntryId
    """Of this message after all that stand before it."""
    text: str
    """The message as JSON."""

    @property
    def message(self) -> Message:
        return cast("Message", json.loads(self.text))


class History:
    """Messages in their order; only `append` changes it. Two histories that share an id are the same up to there."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self._entries = list(entries)

    def __repr__(self) -> str:
        return f"History({len(self)} entries, head={self.head[:8]!r})"

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def head(self) -> EntryId:
        """Id of the last entry; it stands for the whole history."""
        return self._entries[-1].id if self._entries else _ROOT

    @property
    def messages(self) -> list[Message]:
        return [entry.message for entry in self._entries]

    def append(self, message: Mapping[str, Any]) -> Entry:
        """Raises BrokenHistory for what JSON cannot hold."""
        entry = _entry(self.head, written(message))
        self._entries.append(entry)
        return entry

    def fork(self, length: int) -> History:
        """Another history that begins with so many entries of this one."""
        return History(self._entries[:length])

    def num_common(self, other: History) -> int:
        """How many entries both begin with."""
        pairs = enumerate(zip(self._entries, other._entries, strict=False))
        return next((index for index, (a, b) in pairs if a.id != b.id), min(len(self), len(other)))

    def to_json(self) -> str:
        """Without white space: there is no byte in it that could be another one and mean the same."""
        entries = [{"id": entry.id, "message": entry.text} for entry in self._entries]
        return json.dumps({"version": _VERSION, "entries": entries}, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> History:
        """What `to_json` has written. Raises BrokenHistory where a byte of it was changed."""
        history = History()
        for number, (id, said) in enumerate(_read(text)):
            entry = _entry(history.head, said)
            if entry.id != id:
                raise BrokenHistory(f"Entry {number} of this history is not what was written.")
            history._entries.append(entry)
        return history


def written(message: Mapping[str, Any]) -> str:
    """A message as the JSON that stands for it from now on: its keys in the order that it has them in."""
    try:
        return json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenHistory(f"A message must be JSON: {error}.") from error


def _entry(before: EntryId, text: str) -> Entry:
    chained = hashlib.blake2b(f"{before}\n{text}".encode(errors="surrogatepass"), digest_size=16)
    return Entry(EntryId(chained.hexdigest()), text)


def _read(text: str) -> list[tuple[str, str]]:
    try:
        stored = json.loads(text)
        if stored["version"] != _VERSION:
            raise BrokenHistory(f"This history is of version {stored['version']}, not {_VERSION}.")
        pairs = [(str(entry["id"]), str(entry["message"])) for entry in stored["entries"]]
        for _, said in pairs:
            json.loads(said)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BrokenHistory("This is not a history, or was cut off.") from error
    return pairs
