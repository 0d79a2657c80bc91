"""A mapping that forgets what was used least recently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Holds entries whose costs add up to at most ``max_cost``; thread-safe."""

    def __init__(self, max_cost: int, cost: Callable[[V], int] = lambda _: 1) -> None:
        self._max_cost = max_cost
        self._cost_of = cost
        self._cost = 0
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Lru({len(self._entries)} entries, {self._cost} of {self._max_cost})"

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The entry, made if it is missing. Two threads may make the same one; both then get the first."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        value = make()  # outside the lock: this is the slow part
        with self._lock:
            if key not in self._entries:
                self._entries[key] = value
                self._cost += self._cost_of(value)
            kept = self._entries[key]
            while self._cost > self._max_cost:
                _, evicted = self._entries.popitem(last=False)
                self._cost -= self._cost_of(evicted)
            return kept
