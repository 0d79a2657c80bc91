"""A model's vocabulary: text to token ids and back, exactly as libllama does it.

libllama answers some harmless input with an abort of the process; what is known of that is handled here:

- a model without a tokenizer asserts when asked to tokenize (`NO_TOKENIZER`);
- BOS and EOS assert where the model wants them but names none, so they are added here;
- many pre-tokenizers run on `std::regex`, which recurses for every character of a match: a run of 26,000 letters or
  spaces overflows an 8 MiB stack. Such runs are cut (`MAX_RUN`);
- a SentencePiece vocabulary without byte tokens throws on characters it does not know.
"""

from __future__ import annotations

import ctypes
import re
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np

from kvstet.errors import InvalidRequest, LlamaError
from kvstet.types import Tokens

SENTENCEPIECE, BPE, UNIGRAM = 1, 2, 4
NO_TOKENIZER = frozenset({0, 7})
"""`enum llama_vocab_type` NONE and TEST; the latter hashes text to ids and cannot be undone."""
ADDS_SPECIAL = frozenset({SENTENCEPIECE, BPE, UNIGRAM})
"""Types of vocabulary for which libllama adds BOS and EOS (`llama_vocab::impl::tokenize`)."""

UNKNOWN, CONTROL, USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
STRIPS_LEFT, STRIPS_RIGHT = 1 << 7, 1 << 8
"""Bits of `enum llama_token_attr`."""

MAX_RUN = 4096
"""Most characters that stand together without white space, or of white space, and are tokenized in one piece."""
_WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # as libllama's `unicode_set_whitespace`
_LONG_RUN = re.compile(f"[{_WHITE}]{{{MAX_RUN}}}|[^{_WHITE}]{{{MAX_RUN}}}")

MAX_TEXT_BYTES = 2**31 - 2
"""libllama counts bytes in an int32."""


class Vocab:
    """Implements `kvstet.types.Tokenizer`. Thread-safe; belongs to a `Model` and is of no use once that is closed."""

    def __init__(self, handle: Any) -> None:
        self._handle: Any = handle
        self._type = int(lib.llama_vocab_type(handle))
        self.num_tokens = int(lib.llama_vocab_n_tokens(handle))
        self.bos = _token_or_none(lib.llama_vocab_bos(handle))
        self.eos = _token_or_none(lib.llama_vocab_eos(handle))
        self.eot = _token_or_none(lib.llama_vocab_eot(handle))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(handle))
        self.adds_eos = bool(lib.llama_vocab_get_add_eos(handle))

    def __repr__(self) -> str:
        return f"<Vocab tokens={self.num_tokens} bos={self.bos} eos={self.eos} eot={self.eot}>"

    def close(self) -> None:
        """Called by the model when it goes; afterwards only what was read before is still there."""
        self._handle = None

    @property
    def handle(self) -> Any:
        """Pointer for libllama. LlamaError once the model is closed."""
        if self._handle is None:
            raise LlamaError("The model of this vocabulary is closed.")
        return self._handle

    @property
    def has_tokenizer(self) -> bool:
        """False where the model file holds ids only; `tokenize` then raises."""
        return self._type not in NO_TOKENIZER

    # Text to tokens

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        """Token ids of the text, int32 of shape ``(n,)``; lone surrogates count as "?".

        LlamaError: the model has no tokenizer that can be used.
        """
        self._require_tokenizer()
        pieces = [self._tokenize_piece(piece, parse_special) for piece in self._pieces_of(text)]
        if add_special and self._type in ADDS_SPECIAL:
            pieces = [_special(self.adds_bos, self.bos), *pieces, _special(self.adds_eos, self.eos)]
        return np.concatenate([np.empty(0, np.int32), *pieces])

    def _tokenize_piece(self, text: str, parse_special: bool) -> Tokens:
        data = text.encode("utf-8", "replace")
        if len(data) > MAX_TEXT_BYTES:
            raise InvalidRequest("The text is larger than 2 GiB.")
        tokens = np.empty(len(data) // 2 + 16, np.int32)
        count = self._fill(data, tokens, parse_special)
        if count < 0:
            tokens = np.empty(-count, np.int32)
            count = self._fill(data, tokens, parse_special)
        return tokens[:count]

    def _fill(self, data: bytes, tokens: Tokens, parse_special: bool) -> int:
        target: Any = tokens.ctypes.data_as(lib.llama_token_p)
        return lib.llama_tokenize(self.handle, data, len(data), target, len(tokens), False, parse_special)

    def _pieces_of(self, text: str) -> list[str]:
        """The text, cut inside of runs that are too long for libllama; most texts are one piece."""
        if self._type != BPE or not _LONG_RUN.search(text):
            return [text] if text else []
        # libllama splits at special tokens first, so a run is counted anew behind each: a text tokenized in parts that
        # begin with special tokens is then cut in the same places.
        specials = [0, *(i for match in self._special_pattern.finditer(text) for i in match.span()), len(text)]
        cuts = {0, len(text)}
        for start, stop in pairwise(specials):
            cuts |= {run.end() for run in _LONG_RUN.finditer(text, start, stop)}
        return [text[start:stop] for start, stop in pairwise(sorted(cuts))]

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        texts = sorted((text for text in self.special_tokens if text), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")

    def _require_tokenizer(self) -> None:
        if not self.has_tokenizer:
            raise LlamaError("The model file has no tokenizer: it takes and gives token ids only.")
        if self._type == SENTENCEPIECE and not self._has_all_bytes:
            raise LlamaError("The model's SentencePiece vocabulary has no byte tokens: it cannot take arbitrary text.")

    @cached_property
    def _has_all_bytes(self) -> bool:
        texts = {lib.llama_vocab_get_text(self.handle, token) for token in range(self.num_tokens)}
        return all(b"<0x%02X>" % byte in texts or bytes([byte]) in texts for byte in range(256))

    # Tokens to text

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The bytes that one token prints; ``special=False`` prints nothing for control tokens."""
        return (self._pieces if special else self._plain_pieces)[self._checked(token)]

    def detokenize(self, tokens: Tokens, *, special: bool = True) -> bytes:
        """The bytes that the tokens print one after the other; they may end inside a character."""
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.num_tokens:
            raise InvalidRequest(f"Token ids are 0 to {self.num_tokens - 1}.")
        pieces = self._pieces if special else self._plain_pieces
        return b"".join(map(pieces.__getitem__, tokens.tolist()))

    @cached_property
    def _pieces(self) -> list[bytes]:
        """What each token prints, read in one pass; a call into libllama per token would cost more."""
        if not self._type:
            return [b""] * self.num_tokens
        buffer = ctypes.create_string_buffer(256)
        return [self._read_piece(token, buffer) for token in range(self.num_tokens)]

    def _read_piece(self, token: int, buffer: Any) -> bytes:
        length = lib.llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, True)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, True)
        return bytes(buffer.raw[:length])

    @cached_property
    def _plain_pieces(self) -> list[bytes]:
        silent = (self._attributes & (UNKNOWN | CONTROL)) != 0
        return [b"" if is_silent else piece for piece, is_silent in zip(self._pieces, silent.tolist(), strict=True)]

    # What tokens are

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text of every control and user-defined token -> its id."""
        return self._special_tokens

    @cached_property
    def _special_tokens(self) -> dict[str, int]:
        special = np.flatnonzero(self._attributes & (CONTROL | USER_DEFINED)).tolist()
        return {self._pieces[token].decode("utf-8", "replace"): token for token in special}

    @property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a turn or text."""
        return self._end_tokens

    @cached_property
    def _end_tokens(self) -> frozenset[int]:
        return frozenset(token for token in range(self.num_tokens) if lib.llama_vocab_is_eog(self.handle, token))

    @cached_property
    def suppressed_tokens(self) -> tuple[int, ...]:
        """Tokens that the model file says must never be sampled."""
        count: Any = ctypes.c_int32()
        tokens: Any = lib.llama_vocab_get_suppress_tokens(self.handle, count)
        return tuple(tokens[: count.value]) if count.value else ()

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or text."""
        return token in self.end_tokens

    def strips_left(self, token: int) -> bool:
        """Whether the tokenizer drops white space before this special token."""
        return bool(self._attributes[self._checked(token)] & STRIPS_LEFT)

    def strips_right(self, token: int) -> bool:
        """Whether the tokenizer drops white space behind this special token."""
        return bool(self._attributes[self._checked(token)] & STRIPS_RIGHT)

    def token_text(self, name: Literal["bos", "eos"]) -> str:
        """Text of the model's BOS or EOS token, as chat templates use it; empty where it has none."""
        token = {"bos": self.bos, "eos": self.eos}[name]
        return "" if token is None else self.piece(token).decode("utf-8", "replace")

    @cached_property
    def _attributes(self) -> Tokens:
        """Bits of `enum llama_token_attr` for each token; all zero where there is no vocabulary."""
        if not self._type:
            return np.zeros(self.num_tokens, np.int32)
        attributes = (lib.llama_vocab_get_attr(self.handle, token) for token in range(self.num_tokens))
        return np.fromiter(attributes, np.int32, self.num_tokens)

    def _checked(self, token: int) -> int:
        # A negative index would silently count from the end of the tables.
        if not 0 <= token < self.num_tokens:
            raise InvalidRequest(f"Token ids are 0 to {self.num_tokens - 1}, not {token}.")
        return token


def _token_or_none(token: Any) -> int | None:
    return token if token >= 0 else None  # LLAMA_TOKEN_NULL is -1


def _special(is_added: bool, token: int | None) -> Tokens:
    return np.array([token] if is_added and token is not None else [], np.int32)
