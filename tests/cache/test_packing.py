from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.cache.disk.packing import packed, unpacked

ids = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=50)


def as_bytes(tokens: list[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


@given(ids)
def test_tokens_come_back_as_they_were(tokens: list[int]):
    assert unpacked(packed(as_bytes(tokens)), len(tokens)) == as_bytes(tokens)


def test_no_tokens_take_no_bytes():
    assert packed(b"") == b""


@pytest.mark.parametrize(("vocab_size", "most_bytes"), [(256, 1.2), (50_000, 2.2), (260_000, 3.0)])
def test_the_zeros_above_an_id_take_no_room(vocab_size: int, most_bytes: float):
    tokens = np.random.default_rng(0).integers(0, vocab_size, 256).tolist()
    assert len(packed(as_bytes(tokens))) < most_bytes * len(tokens)


@pytest.mark.parametrize("num_tokens", [-1, 0, 2, 4, 1 << 40])
def test_another_number_of_tokens_is_an_error(num_tokens: int):
    with pytest.raises(ValueError, match=f"not {num_tokens} tokens"):
        unpacked(packed(as_bytes([1, 2, 3])), num_tokens)


@pytest.mark.parametrize("data", [b"nonsense", packed(as_bytes([1, 2, 3]))[:-9]])
def test_damaged_tokens_are_an_error(data: bytes):
    with pytest.raises(ValueError, match=r"cannot be unpacked|not 3 tokens"):
        unpacked(data, 3)


def test_what_unpacks_to_very_much_is_an_error_and_takes_no_memory():
    with pytest.raises(ValueError, match="not 3 tokens"):
        unpacked(zlib.compress(bytes(1 << 24)), 3)
