"""What a simulated cache holds: entries at the ends of blocks, or whole prompts of which any prefix can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash

from kvstet.providers.estimate import TokenIds

Digest = bytes
"""Of all tokens up to the end of a block."""


@dataclass(slots=True)
class Entry:
    """One prefix that was written."""

    written_seconds: float
    """When the request that wrote it was sent."""
    used_seconds: float
    ttl_seconds: float | None
    """None: it stays."""

    def is_live(self, at_seconds: float, first_token_seconds: float) -> bool:
        """Whether a request that is sent now can read it: from when the first reply began, until its time is over."""
        return at_seconds > self.written_seconds + first_token_seconds and not self.is_over(at_seconds)

    def is_over(self, at_seconds: float) -> bool:
        return self.ttl_seconds is not None and at_seconds > self.used_seconds + self.ttl_seconds


@dataclass(slots=True, eq=False)
class Held:
    """One prompt, and at which lengths it can be read where that is not any."""

    tokens: TokenIds = field(repr=False)
    entry: Entry
    lengths: set[int] = field(default_factory=set[int])


@dataclass(slots=True)
class Prompts:
    """Prompts of one scope; one that goes on in a later one is kept in it."""

    held: list[Held] = field(default_factory=list[Held], repr=False)

    def common(self, tokens: TokenIds, at_seconds: float, first_token_seconds: float) -> list[tuple[Held, int]]:
        """Those that can be read now, with how many of their first tokens are these."""
        self.held = [each for each in self.held if not each.entry.is_over(at_seconds)]
        live = [each for each in self.held if each.entry.is_live(at_seconds, first_token_seconds)]
        found = [(each, num_common(each.tokens, tokens)) for each in live]
        begun = sorted(
            (each for each, length in found if length == len(each.tokens)), key=lambda each: len(each.tokens)
        )
        for one in begun[:-1]:
            begun[-1].lengths |= one.lengths
            self.held.remove(one)
        return [(each, length) for each, length in found if each not in begun[:-1]]

    def add(self, new: Held) -> None:
        self.held.append(new)


def num_common(one: TokenIds, other: TokenIds) -> int:
    """Length of the longest common prefix."""
    length = min(len(one), len(other))
    start, step = 0, 4096
    while start < length:
        stop = min(start + step, length)
        differing = one[start:stop] != other[start:stop]
        if differing.any():
            return start + int(differing.argmax())
        start, step = stop, step * 4
    return length


def digests(first: bytes, parts: Sequence[tuple[bytes, TokenIds]]) -> list[Digest]:
    """A chain over parts, each a salt and its tokens: equal digests stand behind equal prefixes."""
    chain: list[Digest] = []
    digest = first
    for salt, tokens in parts:
        hashed = xxhash.xxh3_128(digest)
        hashed.update(salt)
        hashed.update(np.ascontiguousarray(tokens).data)
        digest = hashed.digest()
        chain.append(digest)
    return chain
