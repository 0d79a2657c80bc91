"""LoRA adapters for the toys: random ones, strong enough to change every prediction."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

import toys

RANK = 4


def write_adapter(path: Path, toy: str, *, seed: int = 0) -> Path:
    """An adapter on the K and V of each layer of a toy."""
    writer = gguf.GGUFWriter(path, toys.architecture(toy))
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    random = np.random.default_rng(seed)
    for tensor, shape, _ in toys.specs()[toy]["tensors"]:
        if tensor.endswith(("attn_k.weight", "attn_v.weight")):
            num_in, num_out = shape
            writer.add_tensor(f"{tensor}.lora_a", random.standard_normal((RANK, num_in)).astype(np.float32))
            writer.add_tensor(f"{tensor}.lora_b", random.standard_normal((num_out, RANK)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
