from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.segments import Encoded, SegmentTokenizer
from kvstet.types import Tokens


class CountingTokenizer(ByteTokenizer):
    """Remembers the texts it was asked for."""

    texts: tuple[str, ...] = ()

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        self.texts = (*self.texts, text)
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)


class SpacingTokenizer(ByteTokenizer):
    """Like SentencePiece: a space comes before text at the start and behind special tokens, and joins the next byte."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        fragments = self._split(text) if parse_special else [text]
        spaced = [f if isinstance(f, int) or not f else f" {f}" for f in fragments]
        tokens = [token for fragment in spaced for token in self._read(fragment)]
        return np.array([*self._prefix, *tokens] if add_special else tokens, dtype=np.int32)


class StrippingTokenizer(ByteTokenizer):
    """Drops the white space before <mask>."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        first, *rest = text.split("<mask>")
        text = "<mask>".join([*(part.rstrip() for part in [first, *rest[:-1]]), rest[-1]]) if rest else first
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)


CHATML = "<|im_start|><|im_end|>"
# Tokens that overlap in every way: one within another, one ending as another begins, one overlapping itself, blanks.
TRICKY = ["<a>", "<a><b", "<b>", "x<", ">>", "aa", "<a>b>>>>>>", "\n\n", "<pad>\n"]


def encode(tokenizer: ByteTokenizer, text: str, *, templates: str = CHATML, **options: object) -> Encoded:
    return SegmentTokenizer(tokenizer, [templates]).encode(text, add_special=False, **options)


def segments(encoded: Encoded) -> list[str]:
    return [segment.text for segment in encoded.segments]


def test_text_is_cut_before_the_special_tokens_of_the_template() -> None:
    assert segments(encode(ByteTokenizer(), "a<|im_start|>b<|im_end|>\n<|endoftext|>")) == [
        "a",
        "<|im_start|>b",
        "<|im_end|>\n<|endoftext|>",
    ]


def test_text_is_cut_where_the_caller_finds_a_special_token() -> None:
    text = "a<|im_start|>b<|im_end|>c"
    encoded = encode(ByteTokenizer(), text, templates="", hints=[0, 1, 3, 14, len(text)])
    assert segments(encoded) == ["a", "<|im_start|>b", "<|im_end|>c"]


def test_a_segment_is_tokenised_once() -> None:
    tokenizer = CountingTokenizer()
    fast = SegmentTokenizer(tokenizer, [CHATML])
    fast.encode("<|im_start|>a<|im_end|>", add_special=False)
    before = len(tokenizer.texts)
    fast.encode("<|im_start|>a<|im_end|><|im_start|>b", add_special=True)
    assert tokenizer.texts[before:] == ("<|im_start|>b",)


def test_segments_are_forgotten_when_there_are_too_many_bytes() -> None:
    tokenizer = CountingTokenizer()
    fast = SegmentTokenizer(tokenizer, [CHATML], cache_bytes=20_000)
    for text in ("a" * 1000, "b" * 1000, "c" * 1000, "b" * 1000, "a" * 1000):
        fast.encode(text, add_special=False)
    assert [text[0] for text in tokenizer.texts if len(text) == 1000] == ["a", "b", "c", "a"]


def test_a_token_that_strips_white_space_is_no_place_to_cut() -> None:
    encoded = encode(StrippingTokenizer(["<mask>", "<s>"]), "<s>a  <mask><s>", templates="<s><mask>")
    assert segments(encoded) == ["<s>a  <mask>", "<s>"]
    assert encoded.tokens.tolist() == [257, 97, 256, 257]


def test_a_special_token_that_a_longer_one_swallows_is_no_place_to_cut_there() -> None:
    tokenizer = SpacingTokenizer(["x<", "<a><b"])
    encoded = encode(tokenizer, "ax<a><bx<", templates="x<")
    assert segments(encoded) == ["ax<a><b", "x<"]
    assert encoded.tokens.tolist() == [*b" ax", 257, 256]


def test_white_space_that_a_token_may_swallow_is_no_place_to_cut() -> None:
    class RightStripping(ByteTokenizer):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
            text = re.sub(r"<pad>\s+", "<pad>", text)
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    encoded = encode(RightStripping(["<pad>", "\n\n"]), "<pad>\n\na", templates="\n\n")
    assert encoded.tokens.tolist() == [256, 97]


def test_a_token_that_could_overlap_itself_is_a_place_to_cut_where_it_does_not() -> None:
    tokenizer = ByteTokenizer(["<a<"])
    assert segments(encode(tokenizer, "x<a<y<a<a<", templates="<a<")) == ["x", "<a<y<a<a<"]


def test_a_special_token_that_another_one_reaches_into_is_no_place_to_cut_there() -> None:
    tokenizer = ByteTokenizer(["<s>", "x<"])
    assert segments(encode(tokenizer, "a<s>x<s>", templates="<s>")) == ["a", "<s>x<s>"]


def test_the_models_own_tokens_stand_around_the_whole() -> None:
    tokenizer = ByteTokenizer(["<s>", "</s>"], prefix=["<s>"], suffix=["</s>"])
    encoded = SegmentTokenizer(tokenizer, ["</s>"]).encode("a</s>b", add_special=True)
    assert encoded.tokens.tolist() == [256, 97, 257, 98, 257]
    assert [encoded.token_at(offset) for offset in (0, 1, 5, 6)] == [0, 2, 3, 4]


def test_no_text_has_no_tokens_but_those_of_the_model() -> None:
    tokenizer = ByteTokenizer(["<s>"], prefix=["<s>"])
    fast = SegmentTokenizer(tokenizer, ["<s>"])
    assert fast.encode("", add_special=True).tokens.tolist() == [256]
    assert fast.encode("", add_special=False).tokens.tolist() == []


def test_a_tokenizer_that_changes_the_text_when_it_adds_tokens_is_asked_for_the_whole() -> None:
    class Shouting(ByteTokenizer):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
            text = text.upper() if add_special else text
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    encoded = SegmentTokenizer(Shouting(), [CHATML]).encode("a<|endoftext|>", add_special=True)
    assert encoded.tokens.tolist() == list(b"A<|ENDOFTEXT|>")


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*TRICKY, "<", ">", "a", "b", "x", "\n", " ", "é"]), max_size=12).map("".join),
    st.sampled_from([ByteTokenizer, SpacingTokenizer, StrippingTokenizer]),
    st.sets(st.sampled_from(TRICKY), min_size=1),
    st.booleans(),
)
def test_tokens_are_those_of_the_whole_text(
    text: str, kind: type[ByteTokenizer], in_template: set[str], add_special: bool
) -> None:
    tokenizer = kind([*TRICKY, "<mask>"], prefix=["<pad>\n"])
    fast = SegmentTokenizer(tokenizer, [" ".join(sorted(in_template)) + "<mask>"])
    encoded = fast.encode(text, add_special=add_special, hints=range(len(text) + 1))
    assert encoded.tokens.tolist() == tokenizer.tokenize(text, add_special=add_special, parse_special=True).tolist()


@settings(deadline=None)
@given(st.text(st.sampled_from("aé🙂\n"), max_size=12), st.integers(0, 12))
def test_a_character_is_found_at_the_token_that_holds_its_first_byte(text: str, offset: int) -> None:
    encoded = encode(ByteTokenizer(), text)
    assert encoded.token_at(offset) == len(text[:offset].encode())


@pytest.mark.parametrize(("offset", "token"), [(0, 0), (1, 3), (2, 4), (3, 4), (5, 5), (6, 7), (9, 8), (10, 10)])
def test_spaces_that_the_tokenizer_adds_belong_to_the_text_behind_them(offset: int, token: int) -> None:
    tokenizer = SpacingTokenizer(["<s>"], prefix=["<s>"])
    encoded = SegmentTokenizer(tokenizer, []).encode("ab<s>c<s>d", add_special=True)
    assert encoded.tokens.tolist() == [256, *b" ab", 256, *b" c", 256, *b" d"]
    assert encoded.token_at(offset) == token


def test_tokens_within_a_character_belong_to_it() -> None:
    encoded = encode(ByteTokenizer(), "é🙂")
    assert [encoded.token_at(offset) for offset in (0, 1, 2)] == [0, 2, 6]
