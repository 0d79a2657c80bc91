"""What besides the model's file decides the numbers in saved state, and how they are laid out."""

from __future__ import annotations

import sys

from kvstet.config import ModelOptions
from kvstet.llama.library import build_id
from kvstet.llama.memory import keeps_window
from kvstet.llama.model import Model
from kvstet.llama.parameters import max_length
from kvstet.types import MemoryTraits


def state_identity(model: Model, options: ModelOptions, traits: MemoryTraits) -> tuple[str, ...]:
    """State may be loaded where all of these and the file's hash are equal.

    What only changes the rounding is left out (threads, batch sizes, the kind of CPU or GPU), as is what only changes
    how much fits. Long RoPE takes other factors where the context is longer than the one trained for.
    """
    is_stretched = max_length(model, options) > model.training_context_length
    # What is in the adapters' files is hashed as the model's own is.
    adapters = (f"adapters at {' '.join(repr(lora.scale) for lora in options.lora)}",) if options.lora else ()
    return (
        f"build {build_id()}",
        f"byte order {sys.byteorder}",
        f"memory {traits.kind}",
        f"K {options.cache_type_k}, V {options.cache_type_v}, flash attention {options.flash_attn}",
        f"RoPE {options.rope_scaling} {options.rope_freq_base} {options.rope_freq_scale} stretched {is_stretched}",
        f"YaRN {options.yarn_orig_ctx} {options.yarn_ext_factor} {options.yarn_attn_factor}"
        f" {options.yarn_beta_fast} {options.yarn_beta_slow}",
        # State that is saved in pieces is laid out otherwise.
        *(("whole window",) if keeps_window(model, options) else ()),
        *adapters,
    )
