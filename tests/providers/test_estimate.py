"""The pseudo-tokeniser: the same everywhere, near real counts, and fast."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.providers.estimate import Kept, num_tokens, opaque, tokens_of

if TYPE_CHECKING:
    from kvstet.llama.vocab import Vocab

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real(smollm2_path: Path) -> Iterator[Vocab]:
    from kvstet.llama.model import Model

    with Model.load_vocab(smollm2_path) as model:
        yield model.vocab


@pytest.mark.parametrize("pattern", ["src/kvstet/cache/*.py", "docs/*.md"])
def test_the_count_is_near_a_real_tokenisers(pattern: str, real: Vocab) -> None:
    text = "".join(path.read_text("utf-8") for path in sorted(ROOT.glob(pattern)))
    counted = len(real.tokenize(text, add_special=False, parse_special=False))
    assert 0.85 < num_tokens(text) / counted < 1.15
    assert 3 < len(text) / num_tokens(text) < 4.5


def test_ids_are_the_same_in_every_process() -> None:
    text = "def main() -> None:  # Grüße, 你好 \\ud800"
    code = f"from kvstet.providers.estimate import tokens_of; print(tokens_of({text!r}).tolist())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str(tokens_of(text).tolist())


@given(st.text(), st.text())
def test_texts_that_begin_alike_have_tokens_that_begin_alike(one: str, other: str) -> None:
    begun = "the quick brown fox.\n"
    first, second = tokens_of(begun + one), tokens_of(begun + other)
    number = num_tokens(begun) - 1
    assert np.array_equal(first[:number], second[:number])


@given(st.text(), st.text())
def test_different_texts_have_different_tokens(one: str, other: str) -> None:
    assert (one == other) == np.array_equal(tokens_of(one), tokens_of(other))


def test_lone_surrogates_and_nothing_at_all_are_texts_too() -> None:
    assert num_tokens("") == 0
    assert num_tokens("\ud800") == 1


def test_what_is_kept_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        tokens_of("a b c")[0] = 1


def test_what_is_no_text_depends_on_all_of_it() -> None:
    assert not np.array_equal(opaque("one picture", 10), opaque("another one", 10))
    assert len(opaque("one picture", 1000)) == 1000


def test_200_000_tokens_take_well_under_a_second() -> None:
    text = "".join(f"line {index}: value = compute_something({index * 7919})\n" for index in range(13_000))
    started = time.perf_counter()
    number = num_tokens(text)
    first_seconds = time.perf_counter() - started
    started = time.perf_counter()
    num_tokens(text)
    assert number > 200_000
    assert first_seconds < 1.5
    assert time.perf_counter() - started < 0.01


def test_only_the_latest_texts_are_kept():
    kept = Kept(10)
    for text in ("aaaa", "bbbb", "bbbb", "cc"):
        kept.keep(text, tokens_of(text))
    assert kept.get("aaaa") is not None
    kept.keep("dddd", tokens_of("dddd"))
    assert [text for text in ("aaaa", "bbbb", "cc", "dddd") if kept.get(text) is not None] == ["aaaa", "cc", "dddd"]
    assert repr(kept) == "Kept(3 texts, 10 of 10 characters)"


def test_a_text_that_is_too_long_is_not_kept():
    """And drives no other out."""
    kept = Kept(10)
    for text in ("b", "a" * 11):
        kept.keep(text, tokens_of(text))
    assert repr(kept) == "Kept(1 texts, 1 of 10 characters)"
