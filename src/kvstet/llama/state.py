"""The state of one sequence as bytes: read from libllama, and written back to it.

libllama catches its own exceptions, logs them and reports too few bytes; what it logged during the call tells them
apart here.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llama_cpp import llama_cpp
from numpy.typing import NDArray

from kvstet.errors import MemoryMisuse, OutOfCells, OutOfMemory, SnapshotMismatch
from kvstet.llama.library import log
from kvstet.types import new_buffer

lib: Any = llama_cpp  # its annotations ask for ctypes numbers where ctypes takes plain ones

Bytes = NDArray[np.uint8]


def state_size(context: Any, seq: int, flags: int) -> int:
    """Bytes that `get_state` returns."""
    return int(lib.llama_state_seq_get_size_ext(context, seq, flags))


def get_state(context: Any, seq: int, flags: int) -> Bytes:
    """Raises OutOfMemory where there is no room to write it to."""
    data = buffer(state_size(context, seq, flags))
    with log.errors() as errors:
        written = int(lib.llama_state_seq_get_data_ext(context, _pointer(data), len(data), seq, flags))
    if written == len(data):
        return data
    reason = f"libllama wrote {written} of {len(data)} bytes of state: {last(errors)}"
    raise OutOfMemory(reason) if _is_out_of_memory(errors) else MemoryMisuse(reason)


def put_state(context: Any, seq: int, data: Bytes, flags: int) -> None:
    """Raises OutOfCells, OutOfMemory, or SnapshotMismatch; the sequence's state is undefined then."""
    with log.errors() as errors:
        read = int(lib.llama_state_seq_set_data_ext(context, _pointer(data), len(data), seq, flags))
    if read == len(data):
        return
    reason = f"libllama read {read} of {len(data)} bytes: {last(errors)}"
    if any("available cells" in line or "not enough cells" in line for line in errors):
        raise OutOfCells(f"No room for a snapshot in the live cells. {reason}")
    if _is_out_of_memory(errors):
        raise OutOfMemory(f"No memory to load a snapshot. {reason}")
    raise SnapshotMismatch(f"The snapshot was not taken. {reason}")


def buffer(num_bytes: int) -> Bytes:
    """Room for state, its content undefined. Raises OutOfMemory."""
    try:
        return new_buffer(num_bytes)
    except MemoryError as error:
        raise OutOfMemory(f"There is no memory for {num_bytes} bytes of state.") from error


def last(errors: list[str]) -> str:
    """What libllama said last of what went wrong in one call."""
    return errors[-1] if errors else "no reason given"


def _is_out_of_memory(errors: list[str]) -> bool:
    return any("bad_alloc" in line for line in errors)


def _pointer(data: Bytes) -> Any:
    return ctypes.cast(data.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
