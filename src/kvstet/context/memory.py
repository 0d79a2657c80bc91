"""What is remembered of conversations: in memory, bounded, forgotten when the server stops."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvstet.config import MIB

DEFAULT_BYTES = 128 * MIB

_ENTRY_BYTES = 300
"""About what an entry takes beside its text."""


def digest(*parts: object) -> bytes:
    """Of values that JSON can hold, whatever the order of their keys. Raises RecursionError and ValueError."""
    spelt = json.dumps([part.hex() if isinstance(part, bytes) else part for part in parts], sort_keys=True)
    return hashlib.blake2b(spelt.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Key:
    """Whose it is, of which conversation (empty: of none in particular), and what."""

    owner: str
    conversation: bytes
    what: str
    place: bytes = b""


class Store(Protocol):
    """Where entries are kept."""

    def get(self, key: Key) -> object | None: ...

    def peek(self, key: Key) -> object | None:
        """As `get`, and it leaves no trace."""
        ...

    def keep(self, key: Key, value: object, num_characters: int) -> None:
        """In place of what was kept under this key."""
        ...

    def forget(self, is_meant: Callable[[Key], bool]) -> None: ...


class Memory:
    """Holds entries that take at most ``max_bytes``; what was used least recently is forgotten first."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[Key, tuple[object, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Memory({len(self._entries)} entries, {self._num_bytes} of {self._max_bytes} bytes)"

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def get(self, key: Key) -> object | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def peek(self, key: Key) -> object | None:
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def keep(self, key: Key, value: object, num_characters: int) -> None:
        self._drop(key)
        num_bytes = _ENTRY_BYTES + num_characters
        self._entries[key] = value, num_bytes
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def forget(self, is_meant: Callable[[Key], bool]) -> None:
        for key in [key for key in self._entries if is_meant(key)]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        _, num_bytes = self._entries.pop(key, (None, 0))
        self._num_bytes -= num_bytes


class Draft:
    """What is kept elsewhere, and what is written over it here."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._entries: dict[Key, object | None] = {}

    def __repr__(self) -> str:
        return f"Draft({len(self._entries)} entries over {self._store!r})"

    def get(self, key: Key) -> object | None:
        return self.peek(key)

    def peek(self, key: Key) -> object | None:
        return self._entries[key] if key in self._entries else self._store.peek(key)

    def keep(self, key: Key, value: object, num_characters: int) -> None:
        self._entries[key] = value

    def forget(self, is_meant: Callable[[Key], bool]) -> None:
        """Of what was written here."""
        for key in [key for key in self._entries if is_meant(key)]:
            del self._entries[key]


@dataclass(frozen=True, slots=True)
class Recollection:
    """What is remembered of one conversation."""

    store: Store
    owner: str
    conversation: bytes

    def get(self, what: str, place: bytes = b"") -> object | None:
        """What was kept there: values of one name are of one type."""
        return self.store.get(Key(self.owner, self.conversation, what, place))

    def keep(self, what: str, place: bytes, value: object, num_characters: int = 0) -> None:
        self.store.keep(Key(self.owner, self.conversation, what, place), value, num_characters)

    @property
    def of_all(self) -> Recollection:
        """What is remembered of the owner's conversations together."""
        return Recollection(self.store, self.owner, b"")
