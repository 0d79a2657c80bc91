"""Decoding with low-level calls, for tests of what lies below the context."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import pytest

from kvstet.llama.model import Model

Decode = Callable[[Model, Sequence[int]], Any]


@pytest.fixture
def decode() -> Iterator[Decode]:
    """Decodes tokens in a new context and returns its pointer; output -1 has the last token's logits."""
    contexts: list[Any] = []

    def run(model: Model, tokens: Sequence[int]) -> Any:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = 128
        parameters.n_threads = parameters.n_threads_batch = 1
        contexts.append(lib.llama_init_from_model(model.handle, parameters))
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert lib.llama_decode(contexts[-1], lib.llama_batch_get_one(array, len(tokens))) == 0
        return contexts[-1]

    yield run
    for context in contexts:
        lib.llama_free(context)
