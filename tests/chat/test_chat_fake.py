from __future__ import annotations

from kvstet.chat.fake import ByteTokenizer
from kvstet.types import Tokenizer

TOKENIZER = ByteTokenizer(["<s>", "</s>", "<s>>"], bos="<s>", eos="</s>", prefix=["<s>"], suffix=["</s>"])


def tokens(text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
    return TOKENIZER.tokenize(text, add_special=add_special, parse_special=parse_special).tolist()


def test_it_is_a_tokenizer() -> None:
    tokenizer: Tokenizer = TOKENIZER
    assert (tokenizer.num_tokens, tokenizer.special_tokens) == (259, {"<s>": 256, "</s>": 257, "<s>>": 258})
    assert (tokenizer.token_text("bos"), tokenizer.token_text("eos")) == ("<s>", "</s>")


def test_text_becomes_bytes_and_special_tokens() -> None:
    assert tokens("é<s>a") == [0xC3, 0xA9, 256, 97]
    assert tokens("<s>", parse_special=False) == list(b"<s>")
    assert tokens("") == []


def test_longer_special_tokens_are_taken_first() -> None:
    assert tokens("<s>><s>") == [258, 256]


def test_a_prefix_and_a_suffix_are_added_when_asked_for() -> None:
    assert tokens("a", add_special=True) == [256, 97, 257]


def test_pieces_spell_the_text() -> None:
    text = "é<s>a"
    assert b"".join(map(TOKENIZER.piece, tokens(text))) == text.encode()
    assert TOKENIZER.piece(256, special=False) == b""
