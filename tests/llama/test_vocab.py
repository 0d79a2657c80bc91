from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from kvstet.config import ModelOptions
from kvstet.errors import InvalidRequest, LlamaError
from kvstet.llama.model import Model
from kvstet.llama.vocab import MAX_RUN, Vocab
from kvstet.types import Tokens

IM_START, IM_END = 1, 2
STRING, INT32, ARRAY = 8, 5, 9
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
"""Token types in a GGUF file."""

LoadVocab = Callable[[toys.Entries], Vocab]


@pytest.fixture(scope="module")
def vocab(smollm2: Model) -> Vocab:
    return smollm2.vocab


@pytest.fixture
def load_vocab(tmp_path: Path) -> Iterator[LoadVocab]:
    """Writes metadata into a model file and loads the vocabulary from it."""
    models: list[Model] = []

    def load(entries: toys.Entries) -> Vocab:
        models.append(Model.load_vocab(toys.write_vocabulary(tmp_path / "vocabulary.gguf", entries)))
        return models[-1].vocab

    yield load
    for model in models:
        model.close()


def smollm2_entries(smollm2: Model, **changes: Any) -> toys.Entries:
    entries = toys.toy_entries("llama-dense", vocabulary=smollm2.path)
    toys.change(entries, {f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return entries


def sentencepiece_entries(*, with_bytes: bool) -> toys.Entries:
    tokens = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL), ("\N{LOWER ONE EIGHTH BLOCK}", NORMAL)]
    tokens += [("a", NORMAL), ("aa", NORMAL)]
    tokens += [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] if with_bytes else []
    entries = {k: e for k, e in toys.toy_entries("llama-dense").items() if not k.startswith("tokenizer.")}
    toys.change(entries, {"llama.vocab_size": len(tokens)})
    return entries | {
        "tokenizer.ggml.model": ([STRING], "llama"),
        "tokenizer.ggml.tokens": ([ARRAY, STRING], [text for text, _ in tokens]),
        "tokenizer.ggml.scores": ([ARRAY, 6], [-float(i) for i in range(len(tokens))]),
        "tokenizer.ggml.token_type": ([ARRAY, INT32], [kind for _, kind in tokens]),
    }


def plain(vocab: Vocab, text: str) -> Tokens:
    return vocab.tokenize(text, add_special=False, parse_special=False)


@pytest.mark.parametrize(
    "text", ["", "Hello world", "naïve café 日本語 🎉", "a\0b\0", "\r\n\t  \n", "def f(x):\n    return x\n"]
)
def test_text_survives_the_round_trip(text: str, vocab: Vocab) -> None:
    tokens = plain(vocab, text)
    assert tokens.dtype == np.int32
    assert vocab.detokenize(tokens).decode() == text


def test_token_ids_are_those_of_the_model(vocab: Vocab) -> None:
    assert plain(vocab, "Hello world").tolist() == [19556, 905]


def test_special_tokens_are_read_from_text_only_when_asked(vocab: Vocab) -> None:
    text = "<|im_start|>user"
    assert vocab.tokenize(text, add_special=False, parse_special=True).tolist() == [IM_START, 4093]
    assert IM_START not in plain(vocab, text)


def test_a_lone_surrogate_becomes_a_question_mark(vocab: Vocab) -> None:
    assert vocab.detokenize(plain(vocab, "a\ud800b")) == b"a?b"


def test_bos_and_eos_are_added_as_the_model_wants(smollm2: Model, load_vocab: LoadVocab, vocab: Vocab) -> None:
    assert vocab.tokenize("Hello", add_special=True, parse_special=False).tolist() == [19556]
    entries = smollm2_entries(smollm2, add_bos_token=True)
    entries["tokenizer.ggml.add_eos_token"] = entries["tokenizer.ggml.add_bos_token"]
    greeting = load_vocab(entries)
    assert greeting.tokenize("Hello", add_special=True, parse_special=False).tolist() == [IM_START, 19556, IM_END]
    assert greeting.tokenize("", add_special=True, parse_special=False).tolist() == [IM_START, IM_END]
    assert greeting.tokenize("Hello", add_special=False, parse_special=False).tolist() == [19556]


@pytest.mark.parametrize("pre_tokenizer", ["gpt-4o", "deepseek-v3"])
def test_an_endless_run_of_one_kind_does_not_overflow_the_stack(
    pre_tokenizer: str, smollm2: Model, load_vocab: LoadVocab
) -> None:
    # From 26,000 characters on, libllama alone crashes here.
    vocab = load_vocab(smollm2_entries(smollm2, pre=pre_tokenizer))
    for unit in ("a", " ", "!", "\n", "\x1c"):
        text = unit * 60_000
        assert vocab.detokenize(plain(vocab, text)).decode() == text


def test_a_text_with_short_runs_is_never_cut(vocab: Vocab) -> None:
    words = "word " * MAX_RUN
    assert (
        plain(vocab, words).tolist()
        == plain(vocab, "word").tolist() + plain(vocab, " word").tolist() * (MAX_RUN - 1) + plain(vocab, " ").tolist()
    )


@pytest.mark.parametrize("length", range(MAX_RUN - 12, MAX_RUN + 2))
def test_a_cut_never_falls_into_a_special_token(length: int, vocab: Vocab) -> None:
    text = "a" * length + "<|im_end|>" + "b" * 100
    tokens = vocab.tokenize(text, add_special=False, parse_special=True)
    assert tokens.tolist().count(IM_END) == 1
    assert vocab.detokenize(tokens).decode() == text


def test_pieces_are_what_tokens_print(vocab: Vocab) -> None:
    assert vocab.piece(905) == b" world"
    assert vocab.piece(IM_START) == b"<|im_start|>"
    assert vocab.piece(IM_START, special=False) == b""
    assert vocab.piece(905, special=False) == b" world"


def test_control_tokens_can_be_left_out_of_text(vocab: Vocab) -> None:
    tokens = np.array([IM_START, 19556, 905, IM_END], np.int32)
    assert vocab.detokenize(tokens) == b"<|im_start|>Hello world<|im_end|>"
    assert vocab.detokenize(tokens, special=False) == b"Hello world"


@pytest.mark.parametrize("token", [-1, 49152])
def test_an_unknown_token_id_is_refused(token: int, vocab: Vocab) -> None:
    for ask in (vocab.piece, vocab.strips_left, vocab.strips_right):
        with pytest.raises(InvalidRequest, match="Token ids are 0 to 49151"):
            ask(token)
    with pytest.raises(InvalidRequest, match="Token ids are 0 to 49151"):
        vocab.detokenize(np.array([5, token], np.int32))


def test_the_vocabulary_knows_its_special_tokens(vocab: Vocab) -> None:
    assert repr(vocab) == "<Vocab tokens=49152 bos=1 eos=2 eot=0>"
    assert vocab.special_tokens["<|im_start|>"] == IM_START
    assert len(vocab.special_tokens) == 17
    assert (vocab.token_text("bos"), vocab.token_text("eos")) == ("<|im_start|>", "<|im_end|>")
    assert not vocab.adds_bos


def test_every_end_token_is_known(vocab: Vocab) -> None:
    assert {0, IM_END} <= vocab.end_tokens
    assert vocab.is_end(IM_END)
    assert not vocab.is_end(IM_START)
    assert not vocab.is_end(905)


def test_tokens_that_strip_white_space_are_known(smollm2: Model, load_vocab: LoadVocab, vocab: Vocab) -> None:
    assert not vocab.strips_right(IM_START)
    # libllama knows no key for this: it goes by the model's name, and wants that model's tokens to be there.
    tokens = toys.tokenizer_entries(smollm2.path)["tokenizer.ggml.tokens"][1]
    entries = smollm2_entries(smollm2, tokens=[*tokens[:3], "</s>", "<unk>", "<s>", *tokens[6:]])
    phi = load_vocab(entries | {"general.name": ([STRING], "phi-3")})
    assert phi.strips_right(IM_START)
    assert not phi.strips_left(IM_START)


def test_tokens_that_must_not_be_sampled_are_known(smollm2: Model, load_vocab: LoadVocab, vocab: Vocab) -> None:
    assert vocab.suppressed_tokens == ()
    entries = smollm2_entries(smollm2) | {"tokenizer.ggml.suppress_tokens": ([ARRAY, INT32], [7, 9])}
    assert load_vocab(entries).suppressed_tokens == (7, 9)


def test_a_toy_prints_tokens_but_reads_no_text(toy_path: Callable[..., Path]) -> None:
    with Model.load(ModelOptions(toy_path("llama-dense"))) as model:
        assert not model.vocab.has_tokenizer
        assert model.vocab.piece(127) == b"7f"
        assert model.vocab.special_tokens == {}
        assert model.vocab.token_text("bos") == ""
        with pytest.raises(LlamaError, match="no tokenizer"):
            plain(model.vocab, "hello")


def test_a_model_without_vocabulary_reads_and_prints_nothing(load_vocab: LoadVocab) -> None:
    entries = {k: e for k, e in toys.toy_entries("llama-dense").items() if not k.startswith("tokenizer.")}
    vocab = load_vocab(entries | {"tokenizer.ggml.model": ([STRING], "none")})
    assert vocab.num_tokens == 128
    assert vocab.piece(5) == b""
    assert vocab.special_tokens == {}
    assert vocab.end_tokens == frozenset()
    assert not vocab.strips_left(5)
    with pytest.raises(LlamaError, match="no tokenizer"):
        plain(vocab, "hello")


def test_a_sentencepiece_vocabulary_takes_unknown_characters_as_bytes(load_vocab: LoadVocab) -> None:
    vocab = load_vocab(sentencepiece_entries(with_bytes=True))
    assert vocab.detokenize(plain(vocab, "aé")) == " aé".encode()
    # A run is not cut here: each piece would get a space in front.
    assert vocab.detokenize(plain(vocab, "a" * 3 * MAX_RUN)) == b" " + b"a" * 3 * MAX_RUN


def test_a_sentencepiece_vocabulary_without_bytes_is_refused(load_vocab: LoadVocab) -> None:
    with pytest.raises(LlamaError, match="no byte tokens"):
        plain(load_vocab(sentencepiece_entries(with_bytes=False)), "é")


def test_a_vocabulary_ends_with_its_model(smollm2_path: Path) -> None:
    with Model.load_vocab(smollm2_path) as model:
        vocab = model.vocab
    with pytest.raises(LlamaError, match="closed"):
        plain(vocab, "hello")
