"""A model's context: its live sequences, decoding, and moving their state in and out.

Everything that libllama would answer with silent corruption or an abort of the process is refused here with a typed
error (`MemoryMisuse`), before libllama sees it. How the two parts of a state are told apart: `kvstet.llama.sequences`.
Checked against cold runs on all toy architectures in ``tests/engine/test_exactness.py``.
"""

from __future__ import annotations

import ctypes
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from kvstet.config import ModelOptions
from kvstet.errors import (
    MemoryMisuse,
    ModelLoadError,
    OutOfCells,
    OutOfMemory,
    SnapshotMismatch,
    UnsupportedModel,
)
from kvstet.llama.library import log
from kvstet.llama.memory import keeps_window, memory_traits, shift_refusal
from kvstet.llama.model import Model
from kvstet.llama.parameters import cells_of, context_parameters, max_length
from kvstet.llama.sampler import Sampler
from kvstet.llama.sequences import PARTIAL_ONLY, Sequences
from kvstet.llama.state import get_state, last, put_state, state_size
from kvstet.types import Blob, Sampling, SeqId, Tokens

lib: Any = llama_cpp  # its annotations ask for ctypes numbers where ctypes takes plain ones

NO_SLOT = 1
"""What `llama_decode` returns where the batch found no cells; the memory is then as before the call."""

WARM_UP_TOKENS = 64


class BatchLike(Protocol):
    """Tokens to append, arrays of shape ``(n,)``; `kvstet.engine.model.Batch`."""

    @property
    def tokens(self) -> Tokens: ...
    @property
    def seqs(self) -> NDArray[np.int32]: ...
    @property
    def outputs(self) -> NDArray[np.bool_]: ...


class Context:
    """The live memory of one model; implements `kvstet.engine.model.Model`. Not thread-safe: one thread owns it."""

    def __init__(self, model: Model, options: ModelOptions) -> None:
        """Raises ModelLoadError where libllama cannot make the context (memory, options that contradict)."""
        self.model = model
        self.traits = memory_traits(model, options)
        parameters = context_parameters(model, options, self.traits)
        with log.errors() as errors:
            self._handle: Any = lib.llama_init_from_model(model.handle, parameters)
        if not self._handle:
            raise ModelLoadError(f"libllama could not create a context: {last(errors)}")
        self._memory = lib.llama_get_memory(self._handle)
        if not self._memory:
            lib.llama_free(self._handle)
            raise UnsupportedModel(f"A {model.architecture} model keeps no memory of its tokens; it cannot be served.")
        self._set_adapters()
        self.shift_refusal = shift_refusal(model, options, self.traits, self._memory)
        """See `kvstet.engine.model.Model.shift_refusal`."""
        window = model.sliding_window if keeps_window(model, options) else None
        self._sequences = Sequences(self._handle, self.traits, window)
        self.num_sequences = self._sequences.num_sequences
        self.num_cells = cells_of(self._handle, self.traits)
        self.max_length = min(max_length(model, options), int(lib.llama_n_ctx(self._handle)))
        self.max_batch = int(lib.llama_n_batch(self._handle))
        if window is not None:
            # No token of a batch leaves the window before its shadow is there (`kvstet.llama.shadows`).
            self.max_batch = min(self.max_batch, window)
        self.vocab_size = model.vocab.num_tokens
        self._lengths = np.zeros(self.num_sequences, np.int32)
        self._awaiting_checkpoint: set[int] = set()
        self._exact_lengths: dict[int, int] = {}
        """Of sequences that hold shifted state: how many tokens stand before it."""
        self._output_indexes: list[int] = []
        self._make_batch()

    def close(self) -> None:
        """Free the context (not the model)."""
        if self._handle:
            lib.llama_free(self._handle)
            self._handle = None

    def __repr__(self) -> str:
        used = {seq: int(n) for seq, n in enumerate(self._lengths) if n}
        return f"<Context {self.model.architecture} {self.traits.kind} cells={self.num_cells} lengths={used}>"

    # Decoding

    def length(self, seq: SeqId) -> int:
        """Tokens whose state the sequence holds."""
        return int(self._lengths[self._checked(seq)])

    def decode(self, batch: BatchLike) -> None:
        """Append the batch to its sequences.

        OutOfCells: nothing was changed. MemoryMisuse: the batch is not one that libllama takes.
        """
        n = len(batch.tokens)
        positions = self._positions(batch)
        self._tokens[:n] = batch.tokens
        self._pos[:n] = positions
        self._seq_pointers[:n] = self._seq_table.ctypes.data + 4 * batch.seqs.astype(np.uintp)
        self._outputs[:n] = batch.outputs
        self._batch.n_tokens = n
        self._sequences.before_growth(batch.seqs, self._lengths)
        with log.errors() as errors:
            code = lib.llama_decode(self._handle, self._batch)
        if code == NO_SLOT:
            raise OutOfCells(f"No room for {n} tokens in the {self.num_cells} live cells.")
        if code != 0:
            raise MemoryMisuse(f"llama_decode failed with {code}: {last(errors)}")
        np.maximum.at(self._lengths, batch.seqs, positions + 1)
        self._output_indexes = np.flatnonzero(batch.outputs).tolist()

    def logits(self, row: int) -> NDArray[np.float32]:
        """Output row of the last decode, shape ``(vocab_size,)``, valid until the next one."""
        pointer: Any = lib.llama_get_logits_ith(self._handle, self._output_indexes[row])
        address = ctypes.cast(pointer, ctypes.c_void_p).value
        if address is None:
            raise MemoryMisuse(f"No logits in output row {row}.")
        values: Any = (ctypes.c_float * self.vocab_size).from_address(address)
        return np.frombuffer(values, np.float32)

    def sampler(self, sampling: Sampling, prompt: Tokens) -> ContextSampler:
        """GrammarError where the grammar cannot be compiled."""
        return ContextSampler(self, Sampler(self._handle, self.model.vocab, sampling, prompt))

    def is_end(self, token: int) -> bool:
        """Whether the token ends a turn or text."""
        return self.model.vocab.is_end(token)

    def output_index(self, row: int) -> int:
        """Place in the last batch of output row ``row``."""
        return self._output_indexes[row]

    # Moving state

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        """Give the empty ``target`` the first ``stop`` tokens of ``source``; see `kvstet.engine.model.Model`.

        OutOfMemory: nothing was changed.
        """
        length = self.length(source)
        self._require_empty(target)
        if not 0 < stop <= length:
            raise MemoryMisuse(f"Cannot fork {stop} tokens of a sequence that holds {length}.")
        if stop < length and not self.traits.has_spans:
            raise MemoryMisuse(f"A {self.traits.kind} memory can be forked at its tip only.")
        # The tip's whole range is asked for as "all": opaque memories assert on any other.
        self._sequences.share(source, target, *((-1, -1) if stop == length else (0, stop)))
        self._lengths[target] = stop
        if stop > self._exact_length(source):
            self._exact_lengths[target] = self._exact_length(source)
        if self.traits.has_checkpoints and (stop < length or source in self._awaiting_checkpoint):
            self._awaiting_checkpoint.add(target)
        elif self.traits.has_checkpoints and self.traits.has_spans:
            # Window cells that two sequences share are never recycled and would fill the cache: give it its own.
            try:
                self.load_checkpoint(target, self.save_checkpoint(source))
            except OutOfMemory:
                self.remove(target)
                raise

    def remove(self, seq: SeqId) -> None:
        """Empty the sequence."""
        self._sequences.empty(self._checked(seq))
        self._lengths[seq] = 0
        self._awaiting_checkpoint.discard(seq)
        self._exact_lengths.pop(seq, None)

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        """The additive state of ``[start, stop)``. OutOfMemory: there is no room to write it to."""
        if not self.traits.has_spans:
            raise MemoryMisuse(f"A {self.traits.kind} memory has no state per token.")
        if not 0 <= start < stop <= self.length(seq):
            raise MemoryMisuse(f"Cannot save [{start}, {stop}) of a sequence that holds {self.length(seq)}.")
        if stop > self._exact_length(seq):
            # Nor could it be: libllama turns what was moved only with the next decode.
            raise MemoryMisuse(f"Only {self._exact_length(seq)} tokens are exact: [{start}, {stop}) is not saved.")
        return self._sequences.saved(seq, start, stop)

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        """Append tokens ``[start, stop)`` of the blob.

        OutOfCells, OutOfMemory, SnapshotMismatch: nothing was changed.
        """
        if not self.traits.has_spans:
            raise MemoryMisuse(f"A {self.traits.kind} memory has no state per token.")
        if self.length(seq) != start or not blob.start <= start < stop <= blob.stop:
            raise MemoryMisuse(f"Cannot append [{start}, {stop}) of {blob} to {self.length(seq)} tokens.")
        self._sequences.append(seq, start, blob, start, stop)
        self._lengths[seq] = stop
        if self.traits.has_checkpoints:
            self._awaiting_checkpoint.add(seq)

    def load_shifted(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        """Append tokens ``[start, stop)`` of the blob at other positions than they were computed at.

        OutOfCells, OutOfMemory, SnapshotMismatch: nothing was changed. See `kvstet.engine.model.Model`.
        """
        if self.shift_refusal:
            raise MemoryMisuse(f"State cannot be moved: {self.shift_refusal}.")
        at = self.length(seq)
        if not blob.start <= start < stop <= blob.stop or at + stop - start > self.max_length:
            raise MemoryMisuse(f"Cannot append [{start}, {stop}) of {blob} to {at} tokens.")
        self._sequences.append(seq, at, blob, start, stop)
        self._lengths[seq] = at + stop - start
        self._exact_lengths.setdefault(seq, at)

    def save_checkpoint(self, seq: SeqId) -> Blob:
        """The summary state at the sequence's tip; for an opaque memory, all of it.

        OutOfMemory: there is no room to write it to.
        """
        if not self.traits.has_checkpoints:
            raise MemoryMisuse("An attention memory has no checkpoints: PARTIAL_ONLY would save all of it.")
        if self.length(seq) == 0 or seq in self._awaiting_checkpoint:
            raise MemoryMisuse(f"Sequence {seq} has no state to save.")
        return Blob(0, self.length(seq), get_state(self._handle, seq, self._summary_flag))

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        """Put the summary state in place; a model with spans must hold exactly ``blob.stop`` tokens of them.

        OutOfCells, OutOfMemory, SnapshotMismatch: the sequence is empty then.
        """
        if not self.traits.has_checkpoints:
            raise MemoryMisuse("An attention memory has no checkpoints.")
        if self.length(seq) != (blob.stop if self.traits.has_spans else 0):
            raise MemoryMisuse(f"Cannot load a checkpoint at {blob.stop} onto {self.length(seq)} tokens.")
        try:
            put_state(self._handle, seq, blob.data, self._summary_flag)
            tip = int(lib.llama_memory_seq_pos_max(self._memory, seq))
            if tip != blob.stop - 1:
                raise SnapshotMismatch(f"A checkpoint at {blob.stop} put the sequence at {tip + 1}.")
        except (OutOfCells, OutOfMemory, SnapshotMismatch):
            self.remove(seq)
            raise
        self._lengths[seq] = blob.stop
        self._awaiting_checkpoint.discard(seq)

    def measure_state(self) -> tuple[int, int]:
        """Bytes that one token adds to a span, and bytes of a checkpoint, measured on two tokens of an empty context.

        Where a window grows with the sequence up to its size, the checkpoint is reckoned with a full window.
        """
        seq = SeqId(0)
        self._require_empty(seq)
        token = np.zeros(1, np.int32)
        sizes: list[tuple[int, int]] = []
        for stop in (1, 2):
            self.decode(_Tokens(token, token, np.ones(1, np.bool_)))
            span_bytes = len(self.save_span(seq, 0, stop).data) if self.traits.has_spans else 0
            sizes.append(
                (span_bytes, state_size(self._handle, seq, self._summary_flag) if self.traits.has_checkpoints else 0)
            )
        self.remove(seq)
        (span_1, checkpoint_1), (span_2, checkpoint_2) = sizes
        window = min(self.model.sliding_window, self.max_length) if self.traits.kind != "recurrent" else 0
        return span_2 - span_1, checkpoint_2 + (checkpoint_2 - checkpoint_1) * max(0, window - 2)

    def warm_up(self) -> float:
        """Decode a few tokens as a prompt would be, so that the first request finds everything in place.

        Returns the seconds that each of them took. A machine whose CPU claims instructions that it does not run dies
        here, before anyone is served.
        """
        n = min(WARM_UP_TOKENS, self.max_batch, self.max_length)
        outputs = np.zeros(n, np.bool_)
        outputs[-1] = True
        begun = time.perf_counter()
        self.decode(_Tokens(np.zeros(n, np.int32), np.zeros(n, np.int32), outputs))
        lib.llama_synchronize(self._handle)
        seconds = time.perf_counter() - begun
        self.remove(SeqId(0))
        return seconds / n

    # Inside

    @property
    def _summary_flag(self) -> int:
        return 0 if self.traits.kind == "opaque" else PARTIAL_ONLY

    def _exact_length(self, seq: SeqId) -> int:
        return self._exact_lengths.get(seq, self.length(seq))

    def _set_adapters(self) -> None:
        adapters = self.model.adapters
        if not adapters:
            return
        handles = (lib.llama_adapter_lora_p_ctypes * len(adapters))(*(adapter.handle for adapter in adapters))
        scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
        if lib.llama_set_adapters_lora(self._handle, handles, len(adapters), scales) != 0:
            lib.llama_free(self._handle)
            raise ModelLoadError("libllama does not take the model's adapters.")

    def _make_batch(self) -> None:
        """Point libllama's batch at numpy memory, so that filling it is a few array copies."""
        n = self.max_batch
        self._tokens = np.zeros(n, np.int32)
        self._pos = np.zeros(n, np.int32)
        self._num_seqs = np.ones(n, np.int32)
        self._seq_table = np.arange(self.num_sequences, dtype=np.int32)
        self._seq_pointers = np.zeros(n, np.uintp)
        self._outputs = np.zeros(n, np.int8)
        batch: Any = lib.llama_batch()
        fields: dict[str, Any] = dict(lib.llama_batch._fields_)
        for name, array in (
            ("token", self._tokens),
            ("pos", self._pos),
            ("n_seq_id", self._num_seqs),
            ("seq_id", self._seq_pointers),
            ("logits", self._outputs),
        ):
            setattr(batch, name, ctypes.cast(array.ctypes.data, fields[name]))
        self._batch = batch

    def _positions(self, batch: BatchLike) -> NDArray[np.int32]:
        """Where each token goes, shape ``(n,)``: behind what its sequence holds. MemoryMisuse where it cannot."""
        n = len(batch.tokens)
        seqs = batch.seqs
        if not 0 < n <= self.max_batch:
            raise MemoryMisuse(f"A batch has 1 to {self.max_batch} tokens, not {n}.")
        if int(batch.tokens.min()) < 0 or int(batch.tokens.max()) >= self.vocab_size:
            raise MemoryMisuse(f"Token ids are 0 to {self.vocab_size - 1}.")
        if int(seqs.min()) < 0 or int(seqs.max()) >= self.num_sequences:
            raise MemoryMisuse(f"Sequences are 0 to {self.num_sequences - 1}.")
        starts = np.flatnonzero(np.diff(seqs, prepend=-1))
        groups = seqs[starts]
        if len(np.unique(groups)) != len(groups):
            raise MemoryMisuse("Tokens of one sequence must stand together in a batch.")
        counts = np.diff(starts, append=n)
        if (self._lengths[groups] + counts > self.max_length).any():
            raise MemoryMisuse(f"A sequence holds at most {self.max_length} tokens.")
        if self._awaiting_checkpoint and not self._awaiting_checkpoint.isdisjoint(groups.tolist()):
            raise MemoryMisuse("A sequence was forked or loaded before its tip, and has no checkpoint yet.")
        ranks = np.arange(n, dtype=np.int32) - np.repeat(starts, counts).astype(np.int32)
        return self._lengths[seqs] + ranks

    def _require_empty(self, seq: SeqId) -> None:
        if self.length(seq):
            raise MemoryMisuse(f"Sequence {seq} is in use ({self.length(seq)} tokens).")

    def _checked(self, seq: SeqId) -> int:
        if not 0 <= seq < self.num_sequences:
            raise MemoryMisuse(f"Sequences are 0 to {self.num_sequences - 1}, not {seq}.")
        return seq


@dataclass(frozen=True, slots=True)
class _Tokens:
    tokens: Tokens
    seqs: NDArray[np.int32]
    outputs: NDArray[np.bool_]


class ContextSampler:
    """Samples from a context's output rows; implements `kvstet.engine.model.Sampler`."""

    def __init__(self, context: Context, sampler: Sampler) -> None:
        self._context = context
        self._sampler = sampler

    def sample(self, row: int) -> int:
        """Token id drawn from output row ``row`` of the last decode, and accepted."""
        return self._sampler.sample_at(self._context.output_index(row))

    def close(self) -> None:
        self._sampler.close()
