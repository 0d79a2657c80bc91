"""Fast tokenisation of growing text: cut at special tokens, tokenise each segment once, remember it.

libllama takes the special tokens out of a text first, longest first, and tokenises the fragments between them
independently. A text may therefore be cut in front of a special token, unless

- a special token may reach across the cut, or one that is taken out earlier may swallow the token behind it, or
- the token strips white space to its left (`SegmentTokenizer` tries that on an example).
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from kvstet.chat.lru import Lru
from kvstet.config import MIB
from kvstet.types import Tokenizer, Tokens

DEFAULT_CACHE_BYTES = 64 * MIB

_RESYNC_BYTES = 64
"""How far to look for a token's bytes when they are not the next ones."""


class Segment:
    """A piece of text and its tokens."""

    def __init__(self, text: str, tokens: Tokens, piece: Callable[[int], bytes]) -> None:
        self.text = text
        self.tokens = tokens
        self._piece = piece

    def __repr__(self) -> str:
        return f"Segment({self.text[:40]!r}, {len(self.tokens)} tokens)"

    @property
    def num_bytes(self) -> int:
        """Memory for text and tokens; the starts of the tokens are not always there, but counted always."""
        return sys.getsizeof(self.text) + 2 * self.tokens.nbytes

    def token_at(self, offset: int) -> int:
        """Index of the token that holds the character at ``offset``; the number of tokens where that is the end."""
        if offset <= 0:
            return 0
        if offset >= len(self.text):
            return len(self.tokens)
        starts = self._half_starts
        index = int(np.searchsorted(starts, np.int32(2 * offset)))  # int32, or the whole array is converted each time
        is_start = index < len(starts) and starts[index] == 2 * offset
        return index if is_start else index - 1

    @cached_property
    def _half_starts(self) -> NDArray[np.int32]:
        """Where each token begins, ascending, shape ``(num_tokens,)``: 2c at character c, 2c + 1 within it."""
        pieces = [self._piece(token) for token in self.tokens.tolist()]
        text = self.text.encode()
        spelt = b"".join(pieces) == text
        starts = [0, *accumulate(map(len, pieces))][:-1] if spelt else _align(pieces, text)
        return _halves(text)[starts]


def _halves(text: bytes) -> NDArray[np.int32]:
    """For each byte of UTF-8, and for its end: 2c where character c begins, 2c + 1 within it."""
    begins = (np.frombuffer(text, dtype=np.uint8) & 0xC0) != 0x80
    num_begun = np.concatenate([[0], np.cumsum(begins)])
    return (2 * num_begun - np.append(~begins, False)).astype(np.int32)


def _align(pieces: Sequence[bytes], text: bytes) -> list[int]:
    """Starts, in bytes, of pieces that do not quite spell the text.

    SentencePiece puts a space before text that follows a special token; some special tokens swallow space around them.
    """
    starts: list[int] = []
    cursor = 0
    for piece in pieces:
        if text.startswith(piece, cursor):
            start, length = cursor, len(piece)
        elif piece.startswith(b" ") and text.startswith(piece[1:], cursor):
            start, length = cursor, len(piece) - 1
        else:
            found = text.find(piece, cursor, cursor + _RESYNC_BYTES + len(piece))
            start, length = max(found, cursor), len(piece)
        starts.append(start)
        cursor = min(start + length, len(text))
    return starts


@dataclass(frozen=True, slots=True)
class Encoded:
    """A text's tokens, and the segments they come from."""

    tokens: Tokens
    segments: tuple[Segment, ...]
    char_starts: tuple[int, ...]
    token_starts: tuple[int, ...]

    def token_at(self, offset: int) -> int:
        """Index of the token that holds the character at ``offset``; 0 for the first, whatever is put before it."""
        if offset <= 0:
            return 0
        number = bisect_right(self.char_starts, offset) - 1
        return self.token_starts[number] + self.segments[number].token_at(offset - self.char_starts[number])


@dataclass(frozen=True, slots=True)
class _Frame:
    """Tokens that ``add_special`` puts around a text."""

    before: Tokens
    after: Tokens


class SegmentTokenizer:
    """Tokenises whole texts, as the tokenizer itself would with ``parse_special``, segment by segment; thread-safe."""

    def __init__(
        self, tokenizer: Tokenizer, templates: Iterable[str], *, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        """Cuts at special tokens that occur in the source of one of the ``templates``, and where the caller says."""
        self._tokenizer = tokenizer
        self._specials = {text: token for text, token in tokenizer.special_tokens.items() if text}
        self._lengths = sorted({len(text) for text in self._specials}, reverse=True)
        self._segments: Lru[str, Segment] = Lru(cache_bytes, cost=lambda segment: segment.num_bytes)
        self._piece = cache(tokenizer.piece)
        self._rivals = cache(self._find_rivals)
        self._frame = self._find_frame()
        self._pattern = self._pattern_of(templates)

    def __repr__(self) -> str:
        return f"SegmentTokenizer({self._segments!r})"

    def encode(self, text: str, *, add_special: bool, hints: Iterable[int] = ()) -> Encoded:
        """Tokens of the text; ``hints`` are characters at which a special token may begin."""
        return self.encode_parts([text], add_special=add_special, hints=hints)

    def encode_parts(self, parts: Sequence[str | Segment], *, add_special: bool, hints: Iterable[int] = ()) -> Encoded:
        """As `encode`, of texts between segments whose tokens are known; ``hints`` count from the start of all."""
        frame = self._frame if add_special else _Frame(_NO_TOKENS, _NO_TOKENS)
        if frame is None:
            return self._encode_whole("".join(part if isinstance(part, str) else part.text for part in parts))
        segments: list[Segment] = []
        start = 0
        hints = list(hints)
        for part in parts:
            if isinstance(part, str):
                own = [hint - start for hint in hints if start < hint < start + len(part)]
                cuts = [0, *self._cuts(part, own), len(part)]
                segments += [self._segment(part[i:j]) for i, j in pairwise(cuts)]
                start += len(part)
            else:
                segments.append(part)
                start += len(part.text)
        char_starts = accumulate((len(segment.text) for segment in segments), initial=0)
        tokens = np.concatenate([frame.before, *(segment.tokens for segment in segments), frame.after])
        token_starts = accumulate((len(segment.tokens) for segment in segments), initial=len(frame.before))
        return Encoded(tokens, tuple(segments), tuple(char_starts)[:-1], tuple(token_starts)[:-1])

    def segment_of(self, tokens: Tokens) -> Segment:
        """Tokens that are known, as a segment; what is no text in them stands there as U+FFFD."""
        pieces = b"".join(map(self._piece, tokens.tolist()))
        return Segment(pieces.decode(errors="replace"), tokens, self._piece)

    def _encode_whole(self, text: str) -> Encoded:
        tokens = self._tokenizer.tokenize(text, add_special=True, parse_special=True)
        return Encoded(tokens, (Segment(text, tokens, self._piece),), (0,), (0,))

    def _segment(self, text: str) -> Segment:
        return self._segments.get_or_make(text, lambda: Segment(text, self._tokens(text), self._piece))

    def _tokens(self, text: str) -> Tokens:
        return self._tokenizer.tokenize(text, add_special=False, parse_special=True)

    def _cuts(self, text: str, hints: Iterable[int]) -> list[int]:
        places = {match.start(): match.group() for match in self._pattern.finditer(text)} if self._pattern else {}
        for hint in hints:
            if hint not in places and (special := self._special_at(text, hint)):
                places[hint] = special
        return sorted(place for place, special in places.items() if place > 0 and self._parts(text, place, special))

    def _special_at(self, text: str, place: int) -> str | None:
        candidates = (text[place : place + length] for length in self._lengths)
        return next((candidate for candidate in candidates if candidate in self._specials), None)

    def _parts(self, text: str, place: int, special: str) -> bool:
        """Whether the tokens before and behind the place do not depend on each other."""
        rivals = self._rivals(special)
        return rivals is not None and not any(_overlaps(text, place, special, rival) for rival in rivals)

    def _find_rivals(self, special: str) -> tuple[str, ...] | None:
        """Special tokens that may overlap with this one; None where it is no place to cut at all."""
        if special[0].isspace() or special[-1].isspace() or not self._stands_alone(special):
            return None
        return tuple(other for other in self._specials if _may_overlap(special, other))

    def _stands_alone(self, special: str) -> bool:
        token = np.array([self._specials[special]], dtype=np.int32)
        whole = self._tokens(f"x {special}")
        return np.array_equal(self._tokens(special), token) and np.array_equal(
            whole, np.concatenate([self._tokens("x "), token])
        )

    def _find_frame(self) -> _Frame | None:
        """What ``add_special`` adds; None where it does more than to add tokens before and behind."""
        body = self._tokens("a")
        whole = self._tokenizer.tokenize("a", add_special=True, parse_special=True)
        for start in range(len(whole) - len(body) + 1):
            stop = start + len(body)
            if np.array_equal(whole[start:stop], body):
                return _Frame(whole[:start], whole[stop:])
        return None

    def _pattern_of(self, templates: Iterable[str]) -> re.Pattern[str] | None:
        sources = [*templates, self._tokenizer.token_text("bos"), self._tokenizer.token_text("eos")]
        used = [text for text in self._specials if any(text in source for source in sources)]
        usable = [text for text in used if self._rivals(text) is not None]
        return re.compile("|".join(map(re.escape, sorted(usable, key=len, reverse=True)))) if usable else None


_NO_TOKENS: Tokens = np.zeros(0, dtype=np.int32)


def _may_overlap(special: str, other: str) -> bool:
    """Whether ``other`` can begin before ``special`` and reach into it, or begin inside it and be taken out earlier.

    One that begins with ``special`` does no harm: it begins at the same place.
    """
    reaches_in = any(special.startswith(other[i:]) or other[i:].startswith(special) for i in range(1, len(other)))
    goes_first = len(other.encode()) >= len(special.encode())
    return reaches_in or (goes_first and any(other.startswith(special[i:]) for i in range(1, len(special))))


def _overlaps(text: str, place: int, special: str, rival: str) -> bool:
    """Whether the rival occurs such that it shares characters with ``special`` at ``place``, or reaches across."""
    start, stop = max(0, place - len(rival) + 1), place + len(special) + len(rival) - 1
    found = text.find(rival, start, stop)
    if found == place and rival == special:
        found = text.find(rival, place + 1, stop)
    return found != -1
