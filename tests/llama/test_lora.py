"""Adapters change what a model computes, by their scale, and name their state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters import write_adapter
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.fingerprint import model_fingerprint
from kvstet.config import Lora, ModelOptions
from kvstet.engine.model import Batch
from kvstet.errors import ModelLoadError
from kvstet.llama.context import Context
from kvstet.llama.identity import state_identity
from kvstet.llama.model import Model

TOY = "llama-dense"


@pytest.fixture
def options(toy_path: Callable[..., Path]) -> ModelOptions:
    return ModelOptions(toy_path(TOY), ctx_size=256, parallel=2, threads=1)


@pytest.fixture
def adapters(tmp_path: Path) -> tuple[Path, Path]:
    return write_adapter(tmp_path / "one.gguf", TOY), write_adapter(tmp_path / "two.gguf", TOY, seed=1)


def logits(options: ModelOptions, *lora: Lora) -> NDArray[np.float32]:
    """Of the token that follows eight others."""
    options = replace(options, lora=lora)
    with Model.load(options) as model:
        context = Context(model, options)
        outputs = np.zeros(8, np.bool_)
        outputs[-1] = True
        context.decode(Batch(np.arange(1, 9, dtype=np.int32), np.zeros(8, np.int32), outputs))
        found = context.logits(0).copy()
        context.close()
        return found


def fingerprint(store: DiskStore, options: ModelOptions, *lora: Lora) -> bytes:
    options = replace(options, lora=lora)
    with Model.load(options) as model:
        context = Context(model, options)
        identity = state_identity(model, options, context.traits)
        context.close()
    return model_fingerprint(options.path, identity, store, [one.path for one in lora])


def test_adapters_change_what_is_computed_by_their_scale(options: ModelOptions, adapters: tuple[Path, Path]):
    one, two = adapters
    kinds = [(), (Lora(one),), (Lora(one, 0.5),), (Lora(two),), (Lora(one), Lora(two))]
    found = [logits(options, *lora) for lora in kinds]
    for index, mine in enumerate(found):
        for other in found[:index]:
            assert np.abs(mine - other).max() > 0.01
    assert np.array_equal(logits(options, Lora(one, 0.0)), found[0])
    assert np.array_equal(logits(options, Lora(one)), found[1])


def test_state_of_another_adapter_or_scale_has_another_name(
    options: ModelOptions, adapters: tuple[Path, Path], tmp_path: Path
):
    one, two = adapters
    store = DiskStore(tmp_path / "store")
    kinds = [(), (Lora(one),), (Lora(one, 0.5),), (Lora(two),), (Lora(one), Lora(two)), (Lora(two), Lora(one))]
    names = [fingerprint(store, options, *lora) for lora in kinds]
    assert len(set(names)) == len(kinds)
    copied = tmp_path / "moved.gguf"
    copied.write_bytes(one.read_bytes())
    assert fingerprint(store, options, Lora(copied)) == names[1], "an adapter is what is in its file"
    one.write_bytes(two.read_bytes())
    assert fingerprint(store, options, Lora(one)) == names[3]
    store.close()


@pytest.mark.parametrize("kind", ["missing", "of another model", "a model"])
def test_a_file_that_is_no_adapter_of_the_model_is_refused(kind: str, options: ModelOptions, tmp_path: Path):
    path = tmp_path / "adapter.gguf"
    if kind == "of another model":
        write_adapter(path, "qwen2-dense")
    elif kind == "a model":
        path = options.path
    with pytest.raises(ModelLoadError, match="Cannot read the model file" if kind == "missing" else "the adapter"):
        Model.load(replace(options, lora=(Lora(path),)))
