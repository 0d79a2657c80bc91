"""Sampling the tokens of one request: libllama's sampler chain, and grammars by rejection.

Whatever would make libllama abort the process, or throw through C, is refused before it gets there.
"""

from __future__ import annotations

import codecs
import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from kvstet.errors import GrammarError, LlamaError, MemoryMisuse
from kvstet.llama.chain import Windows, check_sampling, make_chain
from kvstet.llama.grammar import START_RULE
from kvstet.llama.library import log
from kvstet.llama.vocab import Vocab
from kvstet.types import Sampling, Tokens

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""`llama_token_data` in llama.h."""

Candidates = NDArray[np.void]
"""Array of `CANDIDATE`, shape ``(n,)``."""


class Sampler:
    """Chooses tokens; keeps what it accepted for penalties and grammar, and the state of its draws. For one thread."""

    def __init__(self, context: Any, vocab: Vocab, sampling: Sampling, prompt: Tokens) -> None:
        """``context`` is libllama's pointer. The prompt counts for the penalties, not for the grammar.

        InvalidRequest: a number out of range, an unknown token id. GrammarError: libllama cannot use the grammar.
        """
        check_sampling(sampling, vocab)
        self._context = context
        self._num_tokens = vocab.num_tokens
        windows = Windows.of(sampling, int(lib.llama_n_ctx_seq(context)))
        self._grammar = GrammarSampler(vocab, sampling.grammar) if sampling.grammar is not None else None
        self._chain: Any = make_chain(vocab, sampling, windows)
        for token in prompt[max(0, len(prompt) - windows.longest) :].tolist():
            lib.llama_sampler_accept(self._chain, token)

    def sample_at(self, index: int) -> int:
        """Token id drawn from the last decode's output at ``index``, and accepted.

        ``index`` is a token's place in the batch, or negative to count outputs from the last; it must have logits.
        GrammarError: the grammar lets no token of the vocabulary come next.
        """
        if not self._chain:
            raise LlamaError("The sampler is closed.")
        if self._grammar is None:
            return lib.llama_sampler_sample(self._chain, self._context, index)
        token = self._grammar.sample(self._chain, self._logits(index))
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        """Free it; more than once does no harm."""
        if self._grammar is not None:
            self._grammar.close()
        if self._chain:
            lib.llama_sampler_free(self._chain)
        self._chain = None

    def _logits(self, index: int) -> NDArray[np.float32]:
        pointer: Any = lib.llama_get_logits_ith(self._context, index)
        if not pointer:
            raise MemoryMisuse(f"The last decode has no logits at {index}.")
        return np.ctypeslib.as_array(pointer, (self._num_tokens,))


class GrammarSampler:
    """Samples under a grammar by rejection, like llama.cpp's `common_sampler_sample`.

    Checking the one token that the chain chose is cheap, and mostly it fits; only otherwise is the whole vocabulary
    tried against the grammar. Candidates that do not fit are then taken out of the array, not just given a logit of
    minus infinity, so that the chain cannot choose one whatever it does.
    """

    def __init__(self, vocab: Vocab, text: str) -> None:
        """The grammar must have passed `check_grammar`. GrammarError where libllama still refuses it."""
        self._vocab = vocab
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._blank = np.zeros(vocab.num_tokens, CANDIDATE)
        self._blank["id"] = np.arange(vocab.num_tokens)
        self._scratch = np.empty_like(self._blank)
        with log.errors() as errors:
            grammar: Any = lib.llama_sampler_init_grammar(
                vocab.handle, text.encode("utf-8", "replace"), START_RULE.encode()
            )
        if not grammar:
            raise GrammarError(f"libllama cannot use the grammar: {'; '.join(errors)}.", param="grammar")
        self._grammar: Any = grammar

    def sample(self, chain: Any, logits: NDArray[np.float32]) -> int:
        """Token id that fits the grammar, accepted by the grammar but not by the chain."""
        candidates = self._all(logits)
        token = _choose(chain, candidates)
        if not self._allows(token):
            token = self._choose_allowed(chain, logits)
        self._accept(token)
        return token

    def close(self) -> None:
        if self._grammar:
            lib.llama_sampler_free(self._grammar)
        self._grammar = None

    def _all(self, logits: NDArray[np.float32]) -> Candidates:
        """The whole vocabulary, in one array that is used again and again: samplers sort and shorten it."""
        np.copyto(self._scratch, self._blank)
        self._scratch["logit"] = logits
        return self._scratch

    def _allows(self, token: int) -> bool:
        return len(self._fitting(self._blank[token : token + 1].copy())) == 1 and self._is_text(token)

    def _choose_allowed(self, chain: Any, logits: NDArray[np.float32]) -> int:
        allowed = self._fitting(self._all(logits))
        while len(allowed):
            token = _choose(chain, allowed.copy())
            if self._is_text(token):
                return token
            allowed = allowed[allowed["id"] != token]
        raise GrammarError("No token of this model's vocabulary can continue the text as the grammar wants it.")

    def _fitting(self, candidates: Candidates) -> Candidates:
        _apply(self._grammar, candidates)
        return candidates[candidates["logit"] > -np.inf]

    def _is_text(self, token: int) -> bool:
        """Whether the token carries on valid UTF-8.

        libllama masks by a token's characters up to the first NUL, but accepts all of them, and decodes invalid UTF-8
        to NULs; where the two differ it throws. No valid text differs.
        """
        if self._vocab.is_end(token):
            return True
        piece = self._vocab.piece(token)
        state = self._utf8.getstate()
        try:
            return "\0" not in self._utf8.decode(piece)
        except UnicodeDecodeError:
            return False
        finally:
            self._utf8.setstate(state)

    def _accept(self, token: int) -> None:
        lib.llama_sampler_accept(self._grammar, token)
        if not self._vocab.is_end(token):
            self._utf8.decode(self._vocab.piece(token))


def _choose(chain: Any, candidates: Candidates) -> int:
    """Token id that the chain selects; leaves the candidates in any order."""
    array = _apply(chain, candidates)
    if not 0 <= array.selected < array.size:
        raise LlamaError("The samplers selected no token.")
    return array.data[array.selected].id  # a sampler may have moved `data` forward


def _apply(sampler: Any, candidates: Candidates) -> Any:
    """Apply a sampler or chain to the candidates in place; returns libllama's view of them."""
    data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
    array: Any = lib.llama_token_data_array(data, len(candidates), -1, False)  # nothing selected, not sorted
    lib.llama_sampler_apply(sampler, array)
    return array
