"""What libllama's memory of a model allows: how its state can be saved, and whether it can be moved."""

from __future__ import annotations

from typing import Any

from llama_cpp import llama_cpp

from kvstet.config import ModelOptions
from kvstet.llama.model import Model
from kvstet.types import MemoryTraits

lib: Any = llama_cpp  # its annotations ask for ctypes numbers where ctypes takes plain ones

OPAQUE_ARCHITECTURES = frozenset({"deepseek4", "glm5-next", "qwen4exp"})
"""`llama_memory_seq_cp` of a range asserts on these (llama-kv-cache-dsv4.cpp, llama-memory-hybrid-idx.cpp)."""

SHIFTABLE_TYPES = frozenset({"f16", "f32"})
"""Types of K that are rotated in place, by nothing where nothing moved. Quantized K is written anew for all sequences,
and bf16 has no rotation on the CPU."""

SCALED_ROPE = frozenset({"yarn", "longrope"})
"""Their rotation also scales: libllama shifts all cells at once, and would scale those again that did not move."""


def memory_traits(model: Model, options: ModelOptions) -> MemoryTraits:
    """The kind of memory libllama gives this model (`llama_model::create_memory`)."""
    if model.architecture in OPAQUE_ARCHITECTURES:
        return MemoryTraits("opaque", has_spans=False, has_checkpoints=True)
    if model.is_recurrent:
        return MemoryTraits("recurrent", has_spans=False, has_checkpoints=True)
    if model.is_hybrid:
        return MemoryTraits("hybrid", has_spans=True, has_checkpoints=True)
    if model.sliding_window > 0 and not keeps_window(model, options):
        return MemoryTraits("swa", has_spans=True, has_checkpoints=True)
    return MemoryTraits("attention", has_spans=True, has_checkpoints=False)


def keeps_window(model: Model, options: ModelOptions) -> bool:
    """Whether what lies behind the sliding window is kept too, so that the memory is like any other attention."""
    is_plain = not (model.is_recurrent or model.is_hybrid or model.architecture in OPAQUE_ARCHITECTURES)
    return options.swa_full and model.sliding_window > 0 and is_plain


def shift_refusal(model: Model, options: ModelOptions, traits: MemoryTraits, memory: Any) -> str | None:
    """Why the state of tokens cannot be moved to other positions, as a clause; None: it can.

    ``memory`` is libllama's handle of a context's memory.
    """
    match traits.kind:
        case "recurrent" | "hybrid":
            return "a recurrent state holds all tokens in one"
        case "opaque":
            return "its state can be saved as a whole only"
        case "swa":
            return "what lies behind its sliding window is not kept (--swa-full keeps it)"
        case "attention":
            return _position_refusal(model, memory) or _rotation_refusal(model, options)


def _position_refusal(model: Model, memory: Any) -> str | None:
    if model.has_learned_positions:
        return "its positions are not rotations (RoPE)"
    if not lib.llama_memory_can_shift(memory):
        return "libllama cannot shift its memory (several positions per token, or RoPE that differs by layer)"
    return None


def _rotation_refusal(model: Model, options: ModelOptions) -> str | None:
    if options.cache_type_k not in SHIFTABLE_TYPES:
        return f"K of type {options.cache_type_k} does not stay as it is when others are moved"
    scaling = options.rope_scaling or model.metadata.get(f"{model.architecture}.rope.scaling.type", "none")
    factor = float(model.metadata.get(f"{model.architecture}.rope.scaling.attn_factor", 1.0))
    if scaling in SCALED_ROPE or options.yarn_ext_factor or factor != 1.0:
        return "its RoPE scales what it rotates (YaRN), and would do so again when others are moved"
    return None
