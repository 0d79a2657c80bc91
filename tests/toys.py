"""Toy models: random float32 weights for 20 architectures, built from `data/toys.json.xz` into files libllama loads.

A toy has 128 tokens, two layers and no real tokenizer; it decodes thousands of tokens a second, so exactness can be
tested on every kind of memory. The data file holds, for each toy, GGUF metadata (``kv``: name -> [types, value]) and
tensors (``[name, shape, ggml type]``, the innermost dimension first).
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data" / "toys.json.xz"
BUILDER_VERSION = 3
"""Part of every file's name; raise it when `build` writes something else for the same toy."""
VOCABULARY_TENSORS = ("token_embd.weight", "output.weight", "output.bias")

Entries = dict[str, tuple[list[int], Any]]
"""GGUF metadata: name -> (value types, value)."""
Strength = Callable[[str, str], float]
"""Toy, tensor -> factor."""


STRONG = {"falcon-dense": 200.0, "gpt2-dense": 12.0}
"""Architectures in which attention weighs little beside the rest need more."""


def gain(name: str, tensor: str) -> float:
    """Makes a toy depend on its context as a trained model does.

    With weights all of one size, attention is an average over all tokens and drowns in what a token brings itself:
    another prefix altogether would change the prediction by 1e-8 nats, and state that is wrong would pass for right.
    ``test_toys_depend_on_their_context`` holds this to what it promises.
    """
    if "norm" in tensor or not tensor.endswith("weight"):
        return 1.0
    strong = STRONG.get(name, 6.0)
    if any(part in tensor for part in ("attn_output", "attn_v", "attn_kv", "ssm_out", "ssm_in", "ssm_x", "shortconv")):
        return strong
    if any(part in tensor for part in ("attn_q", "attn_k")):
        return 4.0
    return 4.0 if tensor == "output.weight" else 1.0


def no_gain(name: str, tensor: str) -> float:
    """The weights as they were drawn: with them, rounding is never made larger."""
    return 1.0


@functools.cache
def specs() -> dict[str, dict[str, Any]]:
    return json.loads(lzma.decompress(DATA.read_bytes()))


def toy_names() -> tuple[str, ...]:
    return tuple(specs())


def toy_path(
    name: str,
    *,
    seed: int = 0,
    context_length: int | None = None,
    vocabulary: Path | None = None,
    strength: Strength = gain,
) -> Path:
    """The toy's GGUF file, built on first use.

    ``context_length`` overrides the length the toy claims to be trained for; a toy with learned positions has only so
    many of them. ``vocabulary`` is a GGUF file whose tokenizer and chat template the toy gets. ``strength`` tells by
    how much to multiply each tensor.
    """
    check_context_length(name, context_length)
    path = cache_folder() / f"{name}-{build_key(name, seed, context_length, vocabulary, strength)}.gguf"
    if not path.exists():
        # Several test processes may build the same toy at once: each writes its own file, the last rename wins.
        partial = path.with_suffix(f".{os.getpid()}.partial")
        entries = toy_entries(name, vocabulary=vocabulary)
        if context_length is not None:
            change(entries, {f"{architecture(name)}.context_length": context_length})
        build(name, gguf.GGUFWriter(partial, architecture(name)), entries, seed=seed, strength=strength)
        partial.replace(path)
    return path


def build(name: str, writer: gguf.GGUFWriter, entries: Entries, *, seed: int = 0, strength: Strength = gain) -> None:
    """Write the toy with this metadata, and close the writer."""
    num_tokens = len(entries["tokenizer.ggml.tokens"][1])
    random = np.random.default_rng(seed)
    for tensor, shape, _ in specs()[name]["tensors"]:
        wanted = [*shape[:-1], num_tokens] if tensor in VOCABULARY_TENSORS else shape
        writer.add_tensor(tensor, weights(random, tensor, wanted) * np.float32(strength(name, tensor)))
    write_metadata(writer, entries)
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(path: Path, entries: Entries, *, architecture: str = "llama") -> Path:
    """A model file of metadata only, good for `Model.load_vocab`."""
    writer = gguf.GGUFWriter(path, architecture)
    write_metadata(writer, entries)
    writer.close()
    return path


def write_metadata(writer: gguf.GGUFWriter, entries: Entries) -> None:
    for key, (types, value) in entries.items():
        kinds = [gguf.GGUFValueType(kind) for kind in types]
        writer.add_key_value(key, value, kinds[0], kinds[1] if len(kinds) > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()


def toy_entries(name: str, *, vocabulary: Path | None = None) -> Entries:
    """The toy's metadata, with the tokenizer of another model file if one is given."""
    entries: Entries = {k: (types, value) for k, (types, value) in specs()[name]["kv"].items() if is_written(k, value)}
    if vocabulary is not None:
        entries = {key: entry for key, entry in entries.items() if not key.startswith("tokenizer.")}
        entries |= tokenizer_entries(vocabulary)
        change(entries, {f"{architecture(name)}.vocab_size": len(entries["tokenizer.ggml.tokens"][1])})
    return entries


def is_written(key: str, value: Any) -> bool:
    # The writer adds the architecture and the header's own keys itself, and cannot write an empty array.
    return key != "general.architecture" and not key.startswith("GGUF.") and value != []


def change(entries: Entries, values: Mapping[str, Any]) -> None:
    """Give entries that are there other values of the same types."""
    for key, value in values.items():
        types, _ = entries[key]
        entries[key] = (types, value)


@functools.cache
def tokenizer_entries(vocabulary: Path) -> Entries:
    """Tokenizer and chat template of a model file; kept as JSON, since reading the arrays takes seconds."""
    kept = cache_folder() / f"tokenizer-{file_digest(vocabulary)}.json"
    if not kept.exists():
        fields = gguf.GGUFReader(vocabulary).fields.items()
        entries = {k: ([int(t) for t in f.types], f.contents()) for k, f in fields if k.startswith("tokenizer.")}
        partial = kept.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(entries))
        partial.replace(kept)
    return {key: (types, value) for key, (types, value) in json.loads(kept.read_text()).items()}


def weights(random: np.random.Generator, tensor: str, shape: list[int]) -> NDArray[np.float32]:
    values = (random.standard_normal(shape[::-1]) * 0.1).astype(np.float32)
    if tensor.endswith("norm.weight"):
        values += 1
    if "ssm_a" in tensor:
        values = -np.abs(values)  # a decay must be negative
    return values


def architecture(name: str) -> str:
    return specs()[name]["kv"]["general.architecture"][1]


def check_context_length(name: str, context_length: int | None) -> None:
    positions = {tensor: shape[-1] for tensor, shape, _ in specs()[name]["tensors"]}.get("position_embd.weight")
    if context_length is not None and positions is not None and context_length > positions:
        raise ValueError(f"{name} has {positions} learned positions, {context_length} were asked for")


def build_key(name: str, seed: int, context_length: int | None, vocabulary: Path | None, strength: Strength) -> str:
    parts = [BUILDER_VERSION, specs()[name], seed, context_length, vocabulary and file_digest(vocabulary)]
    parts += [] if strength is gain else [strength.__name__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(4 * 1024 * 1024)).hexdigest()[:16]  # metadata comes first in a GGUF file


def cache_folder() -> Path:
    """One folder per user, shared by all test runs."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(tempfile.gettempdir()) / f"kvstet-toys-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
