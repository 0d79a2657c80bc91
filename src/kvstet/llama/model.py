"""A model file, loaded: its weights, its vocabulary and what its metadata says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import llama_cpp.llama_cpp as lib

from kvstet.config import Lora, ModelOptions
from kvstet.errors import LlamaError, ModelLoadError, UnsupportedModel
from kvstet.llama.library import initialize, log
from kvstet.llama.vocab import Vocab

GGUF_MAGIC = b"GGUF"

ROPE_NONE = -1
"""LLAMA_ROPE_TYPE_NONE in llama.h."""

LOAD_AUTO, LOAD_NONE, LOAD_MLOCK, LOAD_MMAP_MLOCK = -1, 0, 2, 3
"""`enum llama_load_mode`; AUTO maps the file wherever the devices can read mapped memory."""

WITHOUT_MEMORY = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3"}
    | {"eurobert", "gemma-embedding", "wavtokenizer-dec"}
)
"""Architectures that generate nothing: `llama_model::create_memory` gives them no memory."""


class Model:
    """One loaded model; close its contexts before it. Vocabulary and metadata may be read from any thread."""

    def __init__(self, handle: Any, path: Path) -> None:
        self._handle: Any = handle
        self.path = path
        self.vocab = Vocab(lib.llama_model_get_vocab(handle))
        self.adapters: tuple[Adapter, ...] = ()
        """Contexts of this model decode with them. They go with the model."""

    @classmethod
    def load(cls, options: ModelOptions, on_progress: Callable[[float], None] | None = None) -> Self:
        """Load weights and vocabulary; a split model by the name of its first file.

        ``on_progress`` gets the share that is loaded, 0 to 1; what it raises ends the loading and is raised here.
        Raises ModelLoadError, and UnsupportedModel for a model that is not a generative decoder.
        """
        parameters: Any = lib.llama_model_default_params()
        parameters.n_gpu_layers = options.n_gpu_layers
        parameters.load_mode = load_mode(options)
        parameters.use_extra_bufts = options.repack
        model = cls._load(options.path, parameters, on_progress)
        try:
            # Before there is a context, which makes room for their nodes in its graphs.
            model.adapters = tuple(load_adapter(model.handle, lora) for lora in options.lora)
        except ModelLoadError:
            model.close()
            raise
        return model

    @classmethod
    def load_vocab(cls, path: Path) -> Self:
        """Load vocabulary and metadata only: what a process needs that never decodes. Raises as `load` does.

        What libllama reads with the weights is 0 or False then, but for layers and training length.
        """
        parameters: Any = lib.llama_model_default_params()
        parameters.vocab_only = True
        return cls._load(path, parameters, None)

    @classmethod
    def _load(cls, path: Path, parameters: Any, on_progress: Callable[[float], None] | None) -> Self:
        initialize()
        check_file(path)
        progress = _Progress(on_progress)
        parameters.progress_callback = callback = lib.llama_progress_callback(progress)
        with log.errors() as errors:
            handle = lib.llama_model_load_from_file(os.fsencode(path), parameters)
        del callback  # only now: libllama called it until here
        progress.reraise()
        if not handle:
            raise ModelLoadError(f"libllama cannot load {path}: {_reason(errors)}")
        model = cls(handle, path)
        try:
            model.refuse_unsupported()
        except UnsupportedModel:
            model.close()
            raise
        return model

    def close(self) -> None:
        """Free the model. Its contexts must be closed already."""
        if self._handle is not None:
            self.vocab.close()
            lib.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.name} {self.architecture}>" if self._handle else f"<Model {self.path.name} closed>"

    @property
    def handle(self) -> Any:
        """Pointer for libllama. LlamaError once the model is closed."""
        if self._handle is None:
            raise LlamaError(f"The model {self.path.name} is closed.")
        return self._handle

    # What it is

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Every scalar of the file's metadata, as libllama prints it; arrays are left out."""
        count = lib.llama_model_meta_count(self.handle)
        read = lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index
        keys, values = ([_text(call, self.handle, index) for index in range(count)] for call in read)
        return dict(zip(keys, values, strict=True))

    def number(self, key: str, default: int) -> int:
        """What the metadata says of this architecture; the default where that is nothing, or one for each layer."""
        text = self.metadata.get(f"{self.architecture}.{key}", "")
        return int(text) if text.isdigit() else default

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it, ``general.architecture``."""
        return self.metadata.get("general.architecture", "")

    @property
    def name(self) -> str:
        """What the file calls itself, or the file's name."""
        return self.metadata.get("general.name") or self.path.stem

    @cached_property
    def description(self) -> str:
        """libllama's one-line description: architecture, size and quantization."""
        return _text(lib.llama_model_desc, self.handle)

    @cached_property
    def num_parameters(self) -> int:
        return int(lib.llama_model_n_params(self.handle))

    @cached_property
    def size_bytes(self) -> int:
        """All tensors together."""
        return int(lib.llama_model_size(self.handle))

    @cached_property
    def num_layers(self) -> int:
        return int(lib.llama_model_n_layer(self.handle)) or self.number("block_count", 0)

    @cached_property
    def training_context_length(self) -> int:
        """Tokens the model was trained to read at once; 0 where the file does not say."""
        return int(lib.llama_model_n_ctx_train(self.handle)) or self.number("context_length", 0)

    @cached_property
    def is_recurrent(self) -> bool:
        return bool(lib.llama_model_is_recurrent(self.handle))

    @cached_property
    def is_hybrid(self) -> bool:
        """Recurrent layers and attention layers."""
        return bool(lib.llama_model_is_hybrid(self.handle))

    @cached_property
    def sliding_window(self) -> int:
        """Tokens that its window layers look back; 0 where it has none."""
        return int(lib.llama_model_n_swa(self.handle))

    @cached_property
    def has_learned_positions(self) -> bool:
        """Whether libllama may abort beyond the training length: attention without rotary positions.

        That takes in models with ALiBi, which could go on: libllama does not tell the two apart.
        """
        rope = lib.llama_model_rope_type(self.handle)
        return rope == ROPE_NONE and not self.is_recurrent and not self.is_hybrid

    @property
    def chat_template(self) -> str | None:
        """The file's default template, as Jinja text."""
        return self.metadata.get("tokenizer.chat_template")

    def chat_template_named(self, name: str) -> str | None:
        """One of the file's named templates (``tool_use``, say)."""
        return self.metadata.get(f"tokenizer.chat_template.{name}")

    def refuse_unsupported(self) -> None:
        """UnsupportedModel unless the model generates text token by token from left to right."""
        if lib.llama_model_has_encoder(self.handle):
            kind = "reads its prompt with an encoder"
        elif lib.llama_model_is_diffusion(self.handle):
            kind = "is a diffusion model"
        elif self.architecture in WITHOUT_MEMORY or not lib.llama_model_has_decoder(self.handle):
            kind = "is an encoder only"
        elif self.metadata.get(f"{self.architecture}.attention.causal") == "false":
            kind = "attends to tokens that are still to come"
        else:
            return
        raise UnsupportedModel(f"{self.path} cannot be served: a {self.architecture} model {kind}.")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is loaded; libllama frees it with its model."""

    handle: Any
    scale: float


def load_adapter(model: Any, lora: Lora) -> Adapter:
    """ModelLoadError where it is none for this model."""
    check_file(lora.path)
    with log.errors() as errors:
        handle = lib.llama_adapter_lora_init(model, os.fsencode(lora.path))
    if not handle:
        raise ModelLoadError(f"libllama cannot load the adapter {lora.path}: {_reason(errors)}")
    if lib.llama_adapter_get_alora_n_invocation_tokens(handle):
        raise ModelLoadError(f"The adapter {lora.path} is for parts of a prompt only (aLoRA), which is not supported.")
    return Adapter(handle, lora.scale)


class _Progress:
    """The callback libllama gets while it loads; no exception may pass through its C code."""

    def __init__(self, on_progress: Callable[[float], None] | None) -> None:
        self._on_progress = on_progress
        self._raised: BaseException | None = None

    def __call__(self, share: float, _: object) -> bool:
        """False ends the loading."""
        try:
            if self._on_progress is not None:
                self._on_progress(share)
        except BaseException as error:
            self._raised = error
        self._raised = self._raised or log.take_interrupt()
        return self._raised is None

    def reraise(self) -> None:
        """Raise what was raised while libllama loaded."""
        interrupt = log.take_interrupt()  # in any case, so that none is left for the next load
        raised = self._raised or interrupt
        if raised is not None:
            raise raised


def load_mode(options: ModelOptions) -> int:
    """`enum llama_load_mode` for the user's ``mmap`` and ``mlock``."""
    if options.mlock:
        return LOAD_MMAP_MLOCK if options.mmap else LOAD_MLOCK
    return LOAD_AUTO if options.mmap else LOAD_NONE


def check_file(path: Path) -> None:
    """ModelLoadError where libllama would say less about it than we can."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelLoadError(f"Cannot read the model file {path}: {reason}") from error
    if magic != GGUF_MAGIC:
        raise ModelLoadError(f"{path} is not a GGUF file: it begins with {magic!r}.")


def _reason(errors: list[str]) -> str:
    """The most telling of libllama's error lines: the first, without the name of the function that logged it."""
    return errors[0].split(": ", 1)[-1] if errors else "no reason given"


def _text(call: Callable[..., int], *arguments: object) -> str:
    """What a function of libllama writes into a buffer; it returns the length it would need."""
    buffer = ctypes.create_string_buffer(1024)
    length = call(*arguments, buffer, len(buffer))
    if length >= len(buffer):
        buffer = ctypes.create_string_buffer(length + 1)
        call(*arguments, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
