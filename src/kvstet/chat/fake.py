"""A tokenizer without a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kvstet.types import Tokens

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_ENDS = frozenset({"<|endoftext|>", "<|im_end|>"})

_NUM_BYTES = 256


class ByteTokenizer:
    """Tokens 0..255 are bytes of UTF-8; the special tokens follow, in the order given.

    Like libllama it takes longer special tokens out of the text first.
    """

    def __init__(
        self,
        special_tokens: Sequence[str] = CHATML_TOKENS,
        *,
        bos: str = "",
        eos: str = "",
        prefix: Sequence[str] = (),
        suffix: Sequence[str] = (),
    ) -> None:
        """``bos``, ``eos``, ``prefix`` and ``suffix`` name special tokens; ``add_special`` adds the last two."""
        self._ids = {text: _NUM_BYTES + i for i, text in enumerate(special_tokens)}
        self._texts = tuple(special_tokens)
        self._longest_first = sorted(special_tokens, key=lambda text: -len(text.encode()))
        self._named = {"bos": bos, "eos": eos}
        self._prefix = [self._ids[text] for text in prefix]
        self._suffix = [self._ids[text] for text in suffix]

    def __repr__(self) -> str:
        return f"ByteTokenizer({', '.join(self._texts)})"

    @property
    def num_tokens(self) -> int:
        return _NUM_BYTES + len(self._texts)

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self._ids)

    @property
    def end_tokens(self) -> frozenset[int]:
        """EOS, and what ends a turn in ChatML."""
        return frozenset(token for text, token in self._ids.items() if text in {*CHATML_ENDS, self._named["eos"]})

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        fragments = self._split(text) if parse_special else [text]
        tokens = [token for fragment in fragments for token in self._read(fragment)]
        if add_special:
            tokens = [*self._prefix, *tokens, *self._suffix]
        return np.array(tokens, dtype=np.int32)

    def piece(self, token: int, *, special: bool = True) -> bytes:
        if token < _NUM_BYTES:
            return bytes([token])
        return self._texts[token - _NUM_BYTES].encode() if special else b""

    def token_text(self, name: Literal["bos", "eos"]) -> str:
        return self._named[name]

    def _split(self, text: str) -> list[str | int]:
        fragments: list[str | int] = [text]
        for special in self._longest_first:
            fragments = [part for fragment in fragments for part in self._take_out(special, fragment)]
        return fragments

    def _take_out(self, special: str, fragment: str | int) -> list[str | int]:
        if isinstance(fragment, int):
            return [fragment]
        first, *rest = fragment.split(special)
        return [first, *(part for text in rest for part in (self._ids[special], text))]

    @staticmethod
    def _read(fragment: str | int) -> Sequence[int]:
        return [fragment] if isinstance(fragment, int) else fragment.encode()
