"""Context parameters: what the user set, and defaults that fit the model and the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from kvstet.config import MIB, KvType, ModelOptions
from kvstet.errors import ModelLoadError
from kvstet.llama.memory import keeps_window
from kvstet.llama.model import Model
from kvstet.types import MemoryTraits

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ in llama.cpp; more abort."""

NUM_COSTLY_PARKED = 4
"""Sequences beyond the running ones where each costs memory of its own."""

GGML_TYPES: dict[KvType, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 6,
    "q5_1": 7,
    "q8_0": 8,
    "iq4_nl": 20,
    "bf16": 30,
}
"""`enum ggml_type` in ggml.h."""

ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2, "longrope": 3}
SAME_NAMES = (
    "rope_freq_base",
    "rope_freq_scale",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
    "yarn_orig_ctx",
)
"""Options that libllama has under the same name; those that are not set stay as it has them."""

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
SMALL_CONTEXT = 32768
MIN_CELLS = 4096
KV_MEMORY_SHARE = 0.25
"""Share of the machine's memory that live state may take where the user sets no size."""


def context_parameters(model: Model, options: ModelOptions, traits: MemoryTraits) -> Any:
    """`llama_context_params` for this model and these options. ModelLoadError where options are out of range."""
    p: Any = lib.llama_context_default_params()
    p.n_ctx = max(live_cells(model, options), MAX_SEQUENCES)
    p.n_seq_max = num_slots(options, traits, has_shadows=keeps_window(model, options))
    # libllama aborts where a batch does not hold a token of every sequence, or the cells not a batch.
    p.n_batch = max(options.batch_size, p.n_seq_max)
    p.n_ubatch = min(options.ubatch_size, p.n_batch)
    p.n_threads = options.threads or default_threads()
    p.n_threads_batch = options.threads_batch or options.threads or default_threads()
    p.flash_attn_type = FLASH_ATTENTION[options.flash_attn]
    p.type_k = GGML_TYPES[options.cache_type_k]
    p.type_v = GGML_TYPES[options.cache_type_v]
    p.kv_unified = True  # one buffer for all sequences: forks are metadata only
    p.swa_full = keeps_window(model, options)
    p.no_perf = True
    if options.rope_scaling is not None:
        p.rope_scaling_type = ROPE_SCALING[options.rope_scaling]
    for name in SAME_NAMES:
        if (value := getattr(options, name)) is not None:
            setattr(p, name, value)
    return p


def num_slots(options: ModelOptions, traits: MemoryTraits, *, has_shadows: bool = False) -> int:
    """Sequences to make: the running ones, parked ones, and one scratch. Shadows: `kvstet.llama.shadows`."""
    # Each slot of a memory with checkpoints costs a whole window or recurrent state, so few are parked there.
    max_parallel = MAX_SEQUENCES - 1 - NUM_COSTLY_PARKED if traits.has_checkpoints else (MAX_SEQUENCES - 1) // 2
    if has_shadows:
        max_parallel = (MAX_SEQUENCES - 1) // 4
    if not 1 <= options.parallel <= max_parallel:
        raise ModelLoadError(
            f"--parallel must be between 1 and {max_parallel} for {traits.kind} memory, not {options.parallel}."
        )
    num_sequences = options.parallel + (NUM_COSTLY_PARKED if traits.has_checkpoints else options.parallel)
    return num_sequences * (2 if has_shadows else 1) + 1


def max_length(model: Model, options: ModelOptions) -> int:
    """Most tokens of one sequence. Learned positions end where training did: libllama aborts past them."""
    trained = model.training_context_length
    if options.ctx_size is None:
        return trained
    return min(options.ctx_size, trained) if model.has_learned_positions else options.ctx_size


def live_cells(model: Model, options: ModelOptions) -> int:
    """Token cells of live state: as set, else room for two conversations of a small context, within memory."""
    context = max_length(model, options)
    if options.live_cells is not None:
        return max(options.live_cells, options.ctx_size or 0)
    if options.ctx_size is not None:
        return context
    wanted = 2 * context if context <= SMALL_CONTEXT else context
    return min(wanted, max(MIN_CELLS, _affordable_cells(model, options)))


def kv_bytes_per_token(model: Model, options: ModelOptions) -> int:
    """K and V of one token over all layers, from the model's metadata: an upper bound, for sizing only."""
    number = model.number
    num_heads = number("attention.head_count", 1)
    num_kv_heads = number("attention.head_count_kv", num_heads)
    head_size = number("embedding_length", 0) // max(1, num_heads)
    num_elements = num_kv_heads * (
        number("attention.key_length", head_size) + number("attention.value_length", head_size)
    )
    return model.num_layers * num_elements * (4 if "f32" in (options.cache_type_k, options.cache_type_v) else 2)


def default_threads() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cells_of(handle: Any, traits: MemoryTraits) -> int:
    """Live token cells of a context; a recurrent memory has none per token, only its positions are bounded."""
    num_cells = int(lib.llama_n_ctx(handle))
    if traits.kind == "recurrent":
        return num_cells * int(lib.llama_n_seq_max(handle))
    return num_cells


def _affordable_cells(model: Model, options: ModelOptions) -> int:
    total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    share_bytes = max(int(KV_MEMORY_SHARE * total_bytes), 256 * MIB)
    return max(256, share_bytes // max(1, kv_bytes_per_token(model, options)))


def working_bytes(path: Path, options: ModelOptions) -> int | None:
    """About how much memory of this machine the model will take besides its weights, from its file's metadata alone.

    Live state, and what libllama computes in; rather too much than too little, as for windows, whose state is smaller.
    None: a GPU takes the model, and how much of it cannot be told. Raises as `Model.load_vocab` does.
    """
    if options.n_gpu_layers != 0 and lib.llama_supports_gpu_offload():
        return None
    with Model.load_vocab(path) as model:
        cells = max(live_cells(model, options), MAX_SEQUENCES)
        width = model.number("embedding_length", 0)
        return cells * kv_bytes_per_token(model, options) + compute_bytes(model.vocab.num_tokens, width, options)


def compute_bytes(num_vocabulary_tokens: int, embedding_length: int, options: ModelOptions) -> int:
    """A guess at libllama's compute buffers: logits and a handful of activations of one physical batch."""
    return 64 * MIB + options.ubatch_size * (num_vocabulary_tokens + 16 * embedding_length) * 4
