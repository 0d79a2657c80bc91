"""libllama's chain of samplers for one request.

The order is llama.cpp's default (`common_sampler_init` in common/sampling.cpp): bias, penalties, DRY, top-k, typical,
top-p, min-p, XTC, temperature, draw. Samplers that would do nothing are left out.
"""

from __future__ import annotations

import ctypes
import math
import secrets
from dataclasses import dataclass
from typing import Any, Self

import llama_cpp.llama_cpp as lib

from kvstet.errors import GrammarError, InvalidRequest
from kvstet.llama.grammar import check_grammar
from kvstet.llama.vocab import Vocab
from kvstet.types import Sampling

NUM_SEEDS = 2**32 - 1
"""Seeds are taken modulo this: the value it leaves out means "random" to libllama."""

GREEDY_BELOW = 1e-4
"""Temperatures from here down draw the best token anyway; as divisors of logits they would overflow float32."""

MIN_KEEP = 1
"""Candidates that top-p, min-p and typical leave at least."""

MAX_BREAKERS, MAX_BREAKER_CHARACTERS = 16, 40
"""DRY searches the whole vocabulary for each breaker, and cuts it to 40 bytes."""

MAX_INT = 2**31 - 1
MAX_BIAS = 10_000

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (-100, 100),
    "top_k": (-MAX_INT, MAX_INT),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (-1, MAX_INT),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "dry_multiplier": (0, 100),
    "dry_base": (0, 100),
    "dry_allowed_length": (0, MAX_INT),
    "dry_penalty_last_n": (-1, MAX_INT),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
}
"""Smallest and largest value of each number in `Sampling`."""


def check_sampling(sampling: Sampling, vocab: Vocab) -> None:
    """InvalidRequest or GrammarError unless libllama can sample like this; needs no context."""
    for name, (low, high) in LIMITS.items():
        value = getattr(sampling, name)
        if not low <= value <= high:  # a NaN is in no range
            raise InvalidRequest(f"{name} must be between {low} and {high}, not {value}.", param=name)
    for token, bias in sampling.logit_bias:
        _check_bias(token, bias, vocab)
    _check_breakers(sampling.dry_sequence_breakers)
    if sampling.grammar is not None:
        if not vocab.has_tokenizer:
            raise GrammarError("This model knows token ids but no text: a grammar cannot be applied.", param="grammar")
        check_grammar(sampling.grammar)


def _check_bias(token: int, bias: float, vocab: Vocab) -> None:
    if not 0 <= token < vocab.num_tokens:
        message = f"logit_bias names token {token}; ids are 0 to {vocab.num_tokens - 1}."
        raise InvalidRequest(message, param="logit_bias")
    if not (bias == -math.inf or -MAX_BIAS <= bias <= MAX_BIAS):
        raise InvalidRequest(f"The logit_bias of token {token} cannot be {bias}.", param="logit_bias")


def _check_breakers(breakers: tuple[str, ...]) -> None:
    if len(breakers) > MAX_BREAKERS:
        raise InvalidRequest(f"At most {MAX_BREAKERS} sequence breakers.", param="dry_sequence_breakers")
    for text in breakers:
        if not 0 < len(text) <= MAX_BREAKER_CHARACTERS or "\0" in text:
            message = f"A sequence breaker has 1 to {MAX_BREAKER_CHARACTERS} characters and no NUL, not {text!r:.60}."
            raise InvalidRequest(message, param="dry_sequence_breakers")


@dataclass(frozen=True, slots=True)
class Windows:
    """How many of the last tokens the penalties and DRY look at; 0 where they are off."""

    penalties: int
    dry: int

    @classmethod
    def of(cls, sampling: Sampling, context_length: int) -> Self:
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        return cls(
            penalties=0 if penalties == (1, 0, 0) else _window(sampling.repeat_last_n, context_length),
            dry=0 if sampling.dry_multiplier == 0 else _window(sampling.dry_penalty_last_n, context_length),
        )

    @property
    def longest(self) -> int:
        return max(self.penalties, self.dry)


def _window(last_n: int, context_length: int) -> int:
    return context_length if last_n < 0 else min(last_n, context_length)


def make_chain(vocab: Vocab, sampling: Sampling, windows: Windows) -> Any:
    """Pointer to a new chain, to be freed with `llama_sampler_free`; the sampling must have been checked."""
    parameters: Any = lib.llama_sampler_chain_default_params()
    parameters.no_perf = True
    chain: Any = lib.llama_sampler_chain_init(parameters)
    for sampler in _adjusting(vocab, sampling, windows) + _choosing(sampling):
        lib.llama_sampler_chain_add(chain, sampler)
    return chain


def _adjusting(vocab: Vocab, sampling: Sampling, windows: Windows) -> list[Any]:
    """What moves logits, also for greedy sampling."""
    samplers: list[Any] = []
    biases = [*sampling.logit_bias, *((token, -math.inf) for token in vocab.suppressed_tokens)]
    if biases:
        array: Any = (lib.llama_logit_bias * len(biases))(*biases)
        samplers.append(lib.llama_sampler_init_logit_bias(vocab.num_tokens, len(biases), array))
    if windows.penalties:
        penalties = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
        samplers.append(lib.llama_sampler_init_penalties(vocab.num_tokens, windows.penalties, *penalties))
    if windows.dry:
        samplers.append(_dry(vocab, sampling, windows.dry))
    return samplers


def _dry(vocab: Vocab, sampling: Sampling, window: int) -> Any:
    # Breakers are tokenized, which asserts where there is no tokenizer.
    texts = sampling.dry_sequence_breakers if vocab.has_tokenizer else ()
    breakers = (ctypes.c_char_p * len(texts))(*(text.encode("utf-8", "replace") for text in texts))
    numbers = sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length
    untyped: Any = lib  # the bindings do not say what type the breakers are
    return untyped.llama_sampler_init_dry(vocab.handle, *numbers, window, breakers, len(texts))


def _choosing(sampling: Sampling) -> list[Any]:
    """What drops candidates and takes one."""
    if sampling.temperature < GREEDY_BELOW:
        return [lib.llama_sampler_init_greedy()]
    seed = secrets.randbelow(NUM_SEEDS) if sampling.seed is None else sampling.seed % NUM_SEEDS
    samplers: list[Any] = []
    if sampling.top_k > 0:
        samplers.append(lib.llama_sampler_init_top_k(sampling.top_k))
    if sampling.typical_p < 1:
        samplers.append(lib.llama_sampler_init_typical(sampling.typical_p, MIN_KEEP))
    if sampling.top_p < 1:
        samplers.append(lib.llama_sampler_init_top_p(sampling.top_p, MIN_KEEP))
    if sampling.min_p > 0:
        samplers.append(lib.llama_sampler_init_min_p(sampling.min_p, MIN_KEEP))
    if sampling.xtc_probability > 0:
        probability, threshold = sampling.xtc_probability, sampling.xtc_threshold
        samplers.append(lib.llama_sampler_init_xtc(probability, threshold, MIN_KEEP, seed))
    if sampling.temperature != 1:
        samplers.append(lib.llama_sampler_init_temp(sampling.temperature))
    return [*samplers, lib.llama_sampler_init_dist(seed)]
