"""From tokens to text: bytes become characters only when they are whole, and stop strings are found across tokens."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Set
from dataclasses import dataclass

from kvstet.engine.messages import TokenLogprobs
from kvstet.types import Tokenizer

_Utf8 = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token that printed something, where it lies in the text, in characters, and its log-probabilities."""

    token: int
    data: bytes
    start: int
    stop: int
    logprobs: TokenLogprobs


@dataclass(frozen=True, slots=True)
class CertainText:
    """Text that is certain by now, and its tokens if their log-probabilities were asked for."""

    text: str
    tokens: tuple[TokenText, ...] = ()


class StopScanner:
    """Finds the first stop string in text that comes in pieces, and holds back only what could still become one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self.held = ""
        """Text that may be the beginning of a stop string."""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is certain now. After a hit nothing more may be pushed."""
        text = self.held + text
        hits = [(position, stop) for stop in self._stops if (position := text.find(stop)) >= 0]
        if hits:
            position, self.found = min(hits)
            self.held = ""
            return text[:position]
        held = max((_num_overlapping(text, stop) for stop in self._stops), default=0)
        certain = len(text) - held
        self.held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The end of the text has come: no stop string can be completed."""
        held, self.held = self.held, ""
        return held


class TextStream:
    """The text of one reply as its tokens come in. Broken characters never appear: bytes that are not UTF-8 become
    U+FFFD, and a character the reply breaks off in is left out. Control tokens print nothing, except ``shown`` ones.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...], shown: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
        self._decoder = _Utf8(errors="replace")
        self._scanner = StopScanner(stops)
        self._ready: list[str] = []
        self._tokens: deque[TokenText] = deque()
        self._num_decoded = 0
        self._num_released = 0

    def __repr__(self) -> str:
        return f"TextStream({self._num_released} of {self._num_decoded} characters released, stop={self.stop_string!r})"

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, which is not part of it."""
        return self._scanner.found

    def push(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        data = self._tokenizer.piece(token, special=token in self._shown)
        if not data:
            return
        text = self._decoder.decode(data)
        start = self._num_decoded
        self._num_decoded += len(text)
        if logprobs is not None:
            self._tokens.append(TokenText(token, data, start, self._num_decoded, logprobs))
        if text:
            self._release(self._scanner.push(text))

    def finish(self) -> None:
        """No token will follow: what was held back is text."""
        self._release(self._scanner.flush())

    def take(self) -> CertainText:
        """What became certain since the last call."""
        text = "".join(self._ready)
        self._ready.clear()
        return CertainText(text, self._take_tokens())

    def _release(self, text: str) -> None:
        if text:
            self._ready.append(text)
            self._num_released += len(text)

    def _take_tokens(self) -> tuple[TokenText, ...]:
        taken: list[TokenText] = []
        while self._tokens and self._is_released(self._tokens[0]):
            taken.append(self._tokens.popleft())
        return tuple(taken)

    def _is_released(self, token: TokenText) -> bool:
        if self.stop_string is not None:
            return token.start < self._num_released
        return token.stop <= self._num_released


def _num_overlapping(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    position = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while position >= 0:
        if stop.startswith(text[position:]):
            return len(text) - position
        position = text.find(stop[0], position + 1)
    return 0
