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
        self._vocab = vocab
        self._sampling = sampling
        self._trigger = Trigger(sampling) if sampling.grammar is not None and sampling.grammar_triggers else None
        self._binds = self._trigger is None
        self._grammar: GrammarSampler | None = None
        if sampling.grammar is not None:
            # Also one that is to bind later: now is the time to say that it cannot be used.
            self._grammar = GrammarSampler(vocab, sampling.grammar)
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
        if self._grammar is None or not self._binds:
            token = lib.llama_sampler_sample(self._chain, self._context, index)
            self._watch(token)
            return token
        token = self._grammar.sample(self._chain, self._logits(index))
        lib.llama_sampler_accept(self._chain, token)
        return token

    def _watch(self, token: int) -> None:
        """Let the grammar bind from where it is triggered on."""
        if self._trigger is None or self._grammar is None or self._vocab.is_end(token):
            return
        behind = self._trigger.push(self._vocab.piece(token))
        if behind is not None:
            self._trigger = None
            # What the token says behind the trigger may be no beginning of what the grammar wants.
            self._binds = self._grammar.accept_text(behind)

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


class Trigger:
    """Looks for what triggers a grammar, in bytes as they are generated."""

    def __init__(self, sampling: Sampling) -> None:
        self._triggers = [trigger.encode() for trigger in sampling.grammar_triggers]
        pause = sampling.grammar_pause
        self._pause, self._resume = (pause[0].encode(), pause[1].encode()) if pause else (b"", b"")
        self._is_paused = sampling.is_grammar_paused and bool(pause)
        self._unread = b""

    def push(self, data: bytes) -> bytes | None:
        """What stands behind the trigger, once it is complete; None until then."""
        self._unread += data
        while found := self._first():
            start, text = found
            self._unread = self._unread[start + len(text) :]
            if text in self._triggers and not self._is_paused:
                return self._unread
            self._is_paused = not self._is_paused
        longest = max(map(len, (*self._triggers, self._pause, self._resume)))
        self._unread = self._unread[max(0, len(self._unread) - longest) :]
        return None

    def _first(self) -> tuple[int, bytes] | None:
        wanted = [self._resume] if self._is_paused else [*self._triggers, self._pause]
        places = [(self._unread.find(text), text) for text in wanted if text]
        return min((place for place in places if place[0] >= 0), default=None)


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

    def accept_text(self, text: bytes) -> bool:
        """Take in what was generated already. False: the grammar does not allow it."""
        tokens = self._vocab.tokenize(text.decode(errors="replace"), add_special=False, parse_special=False)
        for token in tokens.tolist():
            if not self._allows(token):
                return False
            self._accept(token)
        return True

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
