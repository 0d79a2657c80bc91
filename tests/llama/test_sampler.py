from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest
from numpy.typing import NDArray

import toys
from kvstet.config import ModelOptions
from kvstet.errors import GrammarError, InvalidRequest, LlamaError, MemoryMisuse
from kvstet.llama.chain import NUM_SEEDS, Windows, check_sampling, make_chain
from kvstet.llama.model import Model
from kvstet.llama.sampler import GrammarSampler, Sampler
from kvstet.llama.schema import schema_grammar
from kvstet.llama.vocab import Vocab
from kvstet.types import GREEDY, Sampling, Tokens

HOT = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=7)
"""Every token has a chance."""
NO_TOKENS = np.empty(0, np.int32)

Make = Callable[..., Sampler]


@pytest.fixture(scope="module")
def toy(toy_path: Callable[..., Path]) -> Iterator[Model]:
    with Model.load(ModelOptions(toy_path("llama-dense"))) as model:
        yield model


@pytest.fixture
def context(toy: Model, decode: Any) -> Any:
    return decode(toy, [1, 2, 3])


@pytest.fixture
def make(toy: Model, context: Any) -> Iterator[Make]:
    """A sampler at the toy's output -1, which stays as it is however often it is sampled from."""
    samplers: list[Sampler] = []

    def sampler(sampling: Sampling, prompt: object = ()) -> Sampler:
        samplers.append(Sampler(context, toy.vocab, sampling, np.array(prompt, np.int32)))
        return samplers[-1]

    yield sampler
    for each in samplers:
        each.close()


@pytest.fixture
def ranking(toy: Model, context: Any) -> list[int]:
    """Token ids by their logits, best first."""
    logits = np.array(lib.llama_get_logits_ith(context, -1)[: toy.vocab.num_tokens])
    return np.argsort(-logits).tolist()


def draws(sampler: Sampler, count: int = 16) -> list[int]:
    return [sampler.sample_at(-1) for _ in range(count)]


# The chain


def test_greedy_takes_the_best_token(make: Make, ranking: list[int]) -> None:
    assert draws(make(GREEDY), 3) == ranking[:1] * 3


def test_a_token_is_sampled_by_its_place_in_the_batch(make: Make, ranking: list[int]) -> None:
    assert make(GREEDY).sample_at(2) == ranking[0]  # the third of three tokens is the only output


@pytest.mark.parametrize(
    "narrow",
    [
        {"top_k": 1},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"temperature": 1e-30},
        {"temperature": 0.01},
        {"temperature": -1.0},
    ],
)
def test_a_narrow_sampler_takes_the_best_token(narrow: dict[str, float], make: Make, ranking: list[int]) -> None:
    assert set(draws(make(replace(HOT, **narrow)))) == {ranking[0]}


def test_a_wide_sampler_takes_others(make: Make, ranking: list[int]) -> None:
    assert len(set(draws(make(replace(HOT, temperature=8.0))))) > 4
    assert set(draws(make(replace(HOT, top_k=3)), 64)) == set(ranking[:3])


def test_typical_sampling_keeps_few(make: Make) -> None:
    assert len(set(draws(make(replace(HOT, typical_p=0.02)), 64))) < 4


def test_xtc_takes_the_best_away(make: Make, ranking: list[int]) -> None:
    cut = replace(HOT, top_k=2, temperature=1.0, xtc_probability=1.0, xtc_threshold=0.01)
    assert set(draws(make(cut))) == {ranking[1]}


@pytest.mark.parametrize("seed", [0, 7, NUM_SEEDS, 2**63, -1])
def test_a_seed_decides_the_draws(seed: int, make: Make) -> None:
    assert draws(make(replace(HOT, seed=seed))) == draws(make(replace(HOT, seed=seed)))
    assert draws(make(replace(HOT, seed=seed))) != draws(make(replace(HOT, seed=seed + 1)))


def test_without_a_seed_draws_differ(make: Make) -> None:
    assert draws(make(replace(HOT, seed=None))) != draws(make(replace(HOT, seed=None)))


def test_a_bias_moves_tokens(make: Make, ranking: list[int]) -> None:
    best, second, last = ranking[0], ranking[1], ranking[-1]
    assert draws(make(replace(GREEDY, logit_bias=((best, -math.inf),))), 1) == [second]
    assert draws(make(replace(GREEDY, logit_bias=((last, 100.0),))), 1) == [last]


def test_tokens_that_the_model_file_suppresses_are_not_sampled(tmp_path: Path, decode: Any, ranking: list[int]) -> None:
    entries = toys.toy_entries("llama-dense") | {"tokenizer.ggml.suppress_tokens": ([9, 5], ranking[:2])}
    toys.build("llama-dense", toys.gguf.GGUFWriter(tmp_path / "toy.gguf", "llama"), entries)
    with Model.load(ModelOptions(tmp_path / "toy.gguf")) as model:
        sampler = Sampler(decode(model, [1, 2, 3]), model.vocab, GREEDY, NO_TOKENS)
        assert sampler.sample_at(-1) == ranking[2]
        sampler.close()


def test_penalties_see_the_prompt_and_the_reply(make: Make, ranking: list[int]) -> None:
    sampler = make(replace(GREEDY, presence_penalty=100.0), prompt=ranking[:2])
    assert draws(sampler, 2) == ranking[2:4]


def test_penalties_forget_what_is_outside_of_their_window(make: Make, ranking: list[int]) -> None:
    sampler = make(replace(GREEDY, presence_penalty=100.0, repeat_last_n=1), prompt=ranking[:2])
    assert draws(sampler, 3) == [ranking[0], ranking[1], ranking[0]]


def test_a_window_of_minus_one_is_the_whole_context(make: Make, ranking: list[int]) -> None:
    prompt = [ranking[0], *([ranking[-1]] * 100)]
    assert draws(make(replace(GREEDY, presence_penalty=100.0), prompt), 1) == [ranking[0]]
    assert draws(make(replace(GREEDY, presence_penalty=100.0, repeat_last_n=-1), prompt), 1) == [ranking[1]]


def test_dry_refuses_to_go_on_repeating(make: Make, ranking: list[int]) -> None:
    best, a, b = ranking[0], ranking[-1], ranking[-2]
    prompt = [a, b, best, a, b]
    assert draws(make(replace(GREEDY, dry_multiplier=100.0), prompt), 1) == [ranking[1]]
    assert draws(make(replace(GREEDY, dry_multiplier=100.0, dry_allowed_length=3), prompt), 1) == [best]


def test_windows_are_off_where_the_penalties_are() -> None:
    assert Windows.of(Sampling(), 512) == Windows(penalties=0, dry=0)
    assert Windows.of(Sampling(repeat_penalty=1.1, dry_multiplier=0.5), 512) == Windows(penalties=64, dry=512)
    assert Windows.of(Sampling(repeat_penalty=1.1, repeat_last_n=10**6), 512).longest == 512


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", 2**31),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("typical_p", math.nan),
        ("repeat_penalty", 0.0),
        ("repeat_last_n", -2),
        ("frequency_penalty", math.inf),
        ("presence_penalty", math.nan),
        ("dry_multiplier", -1.0),
        ("dry_base", math.inf),
        ("dry_allowed_length", -1),
        ("dry_penalty_last_n", -5),
        ("dry_sequence_breakers", ("",)),
        ("dry_sequence_breakers", ("a\0",)),
        ("dry_sequence_breakers", ("a" * 100,)),
        ("dry_sequence_breakers", ("a",) * 100),
        ("xtc_probability", 2.0),
        ("xtc_threshold", math.nan),
        ("logit_bias", ((128, 1.0),)),
        ("logit_bias", ((-1, 1.0),)),
        ("logit_bias", ((5, math.nan),)),
        ("logit_bias", ((5, math.inf),)),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(field: str, value: Any, toy: Model) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(replace(Sampling(), **{field: value}), toy.vocab)
    assert caught.value.param == field


def test_the_defaults_are_within_their_limits(toy: Model) -> None:
    check_sampling(Sampling(), toy.vocab)
    check_sampling(GREEDY, toy.vocab)


def test_a_closed_sampler_says_so(make: Make) -> None:
    sampler = make(GREEDY)
    sampler.close()
    sampler.close()
    with pytest.raises(LlamaError, match="closed"):
        sampler.sample_at(-1)


def test_dry_needs_no_tokenizer(make: Make) -> None:
    assert draws(make(replace(HOT, dry_multiplier=1.0, dry_sequence_breakers=("\n", "é")), [1, 2]), 1)


# Grammars


@pytest.fixture(scope="module")
def vocab(smollm2: Model) -> Vocab:
    return smollm2.vocab


@pytest.fixture(scope="module")
def chain(vocab: Vocab) -> Iterator[Any]:
    pointer = make_chain(vocab, replace(HOT, temperature=1.0), Windows(0, 0))
    yield pointer
    lib.llama_sampler_free(pointer)


def written(vocab: Vocab, chain: Any, grammar: str, logits: Callable[[], NDArray[np.float32]], limit: int) -> str:
    """What is sampled under the grammar, to its end or to the limit."""
    sampler = GrammarSampler(vocab, grammar)
    tokens: list[int] = []
    while len(tokens) < limit and not (tokens and vocab.is_end(tokens[-1])):
        tokens.append(sampler.sample(chain, logits()))
    sampler.close()
    return vocab.detokenize(np.array(tokens, np.int32), special=False).decode("utf-8", "strict")


def random_logits(vocab: Vocab, seed: int) -> Callable[[], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    return lambda: random.standard_normal(vocab.num_tokens).astype(np.float32)


def test_a_reply_under_a_grammar_fits_it(smollm2: Model, decode: Any) -> None:
    prompt = smollm2.vocab.tokenize("The sky is", add_special=False, parse_special=False)
    grammar = replace(GREEDY, grammar='root ::= "\\u00fcber " ("blue" | "green") "!"')
    sampler = Sampler(decode(smollm2, prompt.tolist()), smollm2.vocab, grammar, prompt)
    tokens: list[int] = []
    while not tokens or not smollm2.vocab.is_end(tokens[-1]):
        tokens.append(sampler.sample_at(-1))
    assert smollm2.vocab.is_end(sampler.sample_at(-1))
    sampler.close()
    text = smollm2.vocab.detokenize(np.array(tokens, np.int32), special=False).decode()
    assert text in ("über blue!", "über green!")


def test_a_token_that_fits_is_taken_as_it_is(smollm2: Model, decode: Any) -> None:
    context = decode(smollm2, [19556])
    free, bound = (
        Sampler(context, smollm2.vocab, replace(GREEDY, grammar=grammar), NO_TOKENS)
        for grammar in (None, "root ::= .*")
    )
    assert draws(free, 3) == draws(bound, 3)
    free.close()
    bound.close()


@pytest.mark.parametrize("seed", range(3))
def test_any_object_is_json(seed: int, vocab: Vocab, chain: Any) -> None:
    bias = np.zeros(vocab.num_tokens, np.float32)
    bias[[token for token in range(vocab.num_tokens) if vocab.piece(token) in (b"}", b'"', b":")]] = 9
    bias[list(vocab.end_tokens)] = 20
    logits = random_logits(vocab, seed)
    text = written(vocab, chain, schema_grammar({"type": "object"}), lambda: logits() + bias, limit=60)
    assert isinstance(json.loads(text), dict)


def test_text_under_a_grammar_is_valid_utf8(vocab: Vocab, chain: Any) -> None:
    text = written(vocab, chain, "root ::= [\\u3040-\\U0001ffff]{8}", random_logits(vocab, 1), limit=40)
    assert len(text) == 8
    assert min(text) >= "\u3040"


def test_a_token_that_would_make_libllama_throw_is_not_taken(smollm2: Model, tmp_path: Path, chain: Any) -> None:
    # E0 may begin a character of the range. 80 80 would complete it to U+0000, at which libllama stops to compare the
    # token with the grammar, but which it does not accept.
    entries = toys.toy_entries("llama-dense", vocabulary=smollm2.path)
    tokens = list(entries["tokenizer.ggml.tokens"][1])
    zero = tokens.index("\u0120world")
    tokens[zero] = "\u0122\u0122"  # how byte-level BPE writes 80 80
    toys.change(entries, {"tokenizer.ggml.tokens": tokens})
    with Model.load_vocab(toys.write_vocabulary(tmp_path / "v.gguf", entries)) as model:
        vocab = model.vocab
        first = next(token for token in range(vocab.num_tokens) if vocab.piece(token) == b"\xe0")
        assert vocab.piece(zero) == b"\x80\x80"
        sampler = GrammarSampler(vocab, "root ::= [\\u0800-\\u0fff]")
        logits = np.zeros(vocab.num_tokens, np.float32)
        logits[first] = 100
        assert sampler.sample(chain, logits) == first
        logits[first], logits[zero] = 0, 100
        second = sampler.sample(chain, logits)
        assert second != zero
        assert (b"\xe0" + vocab.piece(second) + b"\x80")[:3].decode()
        sampler.close()


@pytest.mark.parametrize("grammar", ["root ::= [z-a]", 'root ::= "a" [z-a]'])
def test_a_grammar_that_leads_nowhere_is_an_error(grammar: str, vocab: Vocab, chain: Any) -> None:
    with pytest.raises(GrammarError, match="No token"):
        written(vocab, chain, grammar, random_logits(vocab, 2), limit=3)


@pytest.mark.parametrize("grammar", ['root ::= ("a" |)*', "root ::= ()*"])
def test_a_grammar_that_only_libllama_refuses_is_an_error(grammar: str, vocab: Vocab) -> None:
    with pytest.raises(GrammarError, match="left recursion detected"):
        GrammarSampler(vocab, grammar)


@pytest.mark.parametrize("grammar", ["", "root ::= root", 'root ::= "a'])
def test_a_bad_grammar_is_refused_before_libllama_sees_it(grammar: str, vocab: Vocab) -> None:
    with pytest.raises(GrammarError):
        check_sampling(Sampling(grammar=grammar), vocab)


def test_a_grammar_needs_a_model_with_text(make: Make) -> None:
    with pytest.raises(GrammarError, match="no text"):
        make(Sampling(grammar='root ::= "a"'))


def test_sampling_where_there_are_no_logits_is_refused(smollm2: Model, decode: Any) -> None:
    sampler = Sampler(decode(smollm2, [5, 6]), smollm2.vocab, Sampling(grammar="root ::= .*"), NO_TOKENS)
    with pytest.raises(MemoryMisuse, match="no logits at 0"):
        sampler.sample_at(0)
    sampler.close()


def test_penalties_count_only_the_token_that_was_taken(smollm2: Model, decode: Any) -> None:
    context = decode(smollm2, [19556])
    free = Sampler(context, smollm2.vocab, GREEDY, NO_TOKENS)
    sampling = replace(GREEDY, presence_penalty=100.0, grammar='root ::= "a" .*')
    bound = Sampler(context, smollm2.vocab, sampling, NO_TOKENS)
    favourite = free.sample_at(-1)
    # The favourite is refused once, for the grammar's sake, and must not be penalised for that.
    first, second = draws(bound, 2)
    assert smollm2.vocab.piece(first).startswith(b"a")
    assert (first != favourite, second) == (True, favourite)
    free.close()
    bound.close()


def test_the_prompt_is_not_held_against_the_grammar(smollm2: Model, decode: Any) -> None:
    prompt: Tokens = smollm2.vocab.tokenize("1, 2, 3", add_special=False, parse_special=False)
    sampling = replace(GREEDY, presence_penalty=0.1, grammar='root ::= "yes"')
    sampler = Sampler(decode(smollm2, prompt.tolist()), smollm2.vocab, sampling, prompt)
    assert smollm2.vocab.piece(sampler.sample_at(-1)) in (b"y", b"ye", b"yes")
    sampler.close()
