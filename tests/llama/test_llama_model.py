from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

import toys
from kvstet.config import ModelOptions
from kvstet.errors import LlamaError, ModelLoadError, UnsupportedModel
from kvstet.llama.model import Model, load_mode


def last_logits(context: Any, model: Model) -> list[float]:
    return lib.llama_get_logits_ith(context, -1)[: model.vocab.num_tokens]


def test_every_toy_loads_and_decodes(toy_name: str, toy_path: Callable[..., Path], decode: Any) -> None:
    with Model.load(ModelOptions(toy_path(toy_name))) as model:
        assert model.architecture == toys.architecture(toy_name)
        assert np.ptp(last_logits(decode(model, [1, 2, 3, 4, 5]), model)) > 0


def test_a_toy_with_another_seed_is_another_model(toy_path: Callable[..., Path], decode: Any) -> None:
    logits: list[list[float]] = []
    for seed in (0, 1):
        with Model.load(ModelOptions(toy_path("llama-dense", seed=seed))) as model:
            logits.append(last_logits(decode(model, [1, 2, 3]), model))
    assert not np.allclose(*logits)


def test_a_toy_can_be_given_a_real_vocabulary(smollm2: Model, toy_path: Callable[..., Path], decode: Any) -> None:
    path = toy_path("qwen2-dense", vocabulary=smollm2.path)
    with Model.load(ModelOptions(path)) as model:
        tokens = model.vocab.tokenize("Hello world", add_special=False, parse_special=False)
        assert model.vocab.detokenize(tokens) == b"Hello world"
        assert model.chat_template == smollm2.chat_template
        assert len(last_logits(decode(model, tokens.tolist()), model)) == smollm2.vocab.num_tokens


def test_a_toys_training_length_can_be_overridden(toy_path: Callable[..., Path]) -> None:
    with Model.load(ModelOptions(toy_path("llama-dense", context_length=4096))) as model:
        assert model.training_context_length == 4096


def test_a_toy_with_learned_positions_cannot_be_stretched(toy_path: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="learned positions"):
        toy_path("gpt2-dense", context_length=4096)


def test_a_model_tells_what_it_is(smollm2: Model) -> None:
    assert repr(smollm2) == f"<Model {smollm2.name} llama>"
    assert smollm2.metadata["general.basename"] == "smollm2"
    assert smollm2.description == "llama 256M Q4_1"
    assert (smollm2.num_layers, smollm2.training_context_length) == (30, 8192)
    assert smollm2.num_parameters == 134_515_008
    assert 0 < smollm2.size_bytes < smollm2.path.stat().st_size
    assert smollm2.chat_template is not None
    assert "<|im_start|>" in smollm2.chat_template
    assert smollm2.chat_template_named("tool_use") is None


@pytest.mark.parametrize(
    ("name", "traits"),
    [
        ("llama-dense", (False, False, 0, False)),
        ("gemma3-dense", (False, False, 32, False)),
        ("mamba-dense", (True, False, 0, False)),
        ("qwen35-dense", (False, True, 0, False)),
        ("nemotron_h-dense", (False, True, 0, False)),
        ("gpt2-dense", (False, False, 0, True)),
    ],
)
def test_a_model_tells_which_memory_it_needs(name: str, traits: object, toy_path: Callable[..., Path]) -> None:
    with Model.load(ModelOptions(toy_path(name))) as model:
        found = (model.is_recurrent, model.is_hybrid, model.sliding_window, model.has_learned_positions)
    assert found == traits


def test_the_vocabulary_can_be_loaded_without_the_weights(smollm2: Model) -> None:
    with Model.load_vocab(smollm2.path) as model:
        assert model.vocab.num_tokens == 49152
        assert model.chat_template == smollm2.chat_template


def test_a_split_model_loads_by_its_first_file(tmp_path: Path, toy_path: Callable[..., Path], decode: Any) -> None:
    writer = gguf.GGUFWriter(tmp_path / "toy.gguf", "llama", split_max_tensors=8)
    toys.build("llama-dense", writer, toys.toy_entries("llama-dense"))
    first, *others = sorted(tmp_path.glob("*.gguf"))
    assert others
    with Model.load(ModelOptions(first)) as split, Model.load(ModelOptions(toy_path("llama-dense"))) as whole:
        assert last_logits(decode(split, [1, 2]), split) == last_logits(decode(whole, [1, 2]), whole)


@pytest.mark.parametrize(
    ("mmap", "mlock", "mode"), [(True, False, -1), (False, False, 0), (False, True, 2), (True, True, 3)]
)
def test_mmap_and_mlock_become_a_load_mode(mmap: bool, mlock: bool, mode: int) -> None:
    assert load_mode(ModelOptions(Path("x"), mmap=mmap, mlock=mlock)) == mode


def test_a_model_loads_without_mapping_the_file(toy_path: Callable[..., Path]) -> None:
    with Model.load(ModelOptions(toy_path("llama-dense"), mmap=False)) as model:
        assert model.num_layers == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"nothing\.gguf: No such file"):
        Model.load(ModelOptions(tmp_path / "nothing.gguf"))


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="directory"):
        Model.load(ModelOptions(tmp_path))


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("hello")
    with pytest.raises(ModelLoadError, match=r"notes\.gguf is not a GGUF file: it begins with b'hell'"):
        Model.load(ModelOptions(tmp_path / "notes.gguf"))


@pytest.mark.parametrize("share", [0.001, 0.5])
def test_a_truncated_model_is_refused_with_libllamas_reason(
    share: float, tmp_path: Path, toy_path: Callable[..., Path]
) -> None:
    data = toy_path("llama-dense").read_bytes()
    (tmp_path / "half.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelLoadError, match=r"half\.gguf: .*(not within the file bounds|file size)"):
        Model.load(ModelOptions(tmp_path / "half.gguf"))


def test_an_unknown_architecture_is_refused_with_its_name(tmp_path: Path) -> None:
    toys.write_vocabulary(tmp_path / "new.gguf", toys.toy_entries("llama-dense"), architecture="frobnicate")
    with pytest.raises(ModelLoadError, match="unknown model architecture: 'frobnicate'"):
        Model.load(ModelOptions(tmp_path / "new.gguf"))


def renamed_entries(architecture: str) -> toys.Entries:
    """Metadata of the toy llama under another architecture's keys."""
    entries = toys.toy_entries("llama-dense")
    return {key.replace("llama.", f"{architecture}.", 1): entry for key, entry in entries.items()}


@pytest.mark.parametrize(
    ("architecture", "reason"), [("dream", "diffusion"), ("bert", "encoder only"), ("t5", "reads its prompt")]
)
def test_a_model_that_does_not_generate_is_refused(architecture: str, reason: str, tmp_path: Path) -> None:
    path = toys.write_vocabulary(tmp_path / "other.gguf", renamed_entries(architecture), architecture=architecture)
    with pytest.raises(UnsupportedModel, match=reason):
        Model.load_vocab(path)


def test_a_model_that_sees_the_future_is_refused(tmp_path: Path) -> None:
    entries = toys.toy_entries("llama-dense")
    toys.change(entries, {"llama.attention.causal": False})
    path = toys.write_vocabulary(tmp_path / "embed.gguf", entries)
    with pytest.raises(UnsupportedModel, match="still to come"):
        Model.load_vocab(path)


def test_progress_rises_to_one(toy_path: Callable[..., Path]) -> None:
    shares: list[float] = []
    Model.load(ModelOptions(toy_path("llama-dense")), shares.append).close()
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_what_the_progress_callback_raises_ends_the_loading(
    error: BaseException, toy_path: Callable[..., Path]
) -> None:
    def fail(_: float) -> None:
        raise error

    with pytest.raises(type(error)):
        Model.load(ModelOptions(toy_path("llama-dense")), fail)


def test_ctrl_c_inside_of_a_log_line_ends_the_loading(
    toy_path: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logging.getLogger("kvstet.llama"), "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Model.load(ModelOptions(toy_path("llama-dense")))


def test_a_closed_model_says_so(toy_path: Callable[..., Path]) -> None:
    model = Model.load(ModelOptions(toy_path("llama-dense")))
    model.close()
    model.close()
    assert repr(model).endswith("closed>")
    with pytest.raises(LlamaError, match="closed"):
        _ = model.num_layers
