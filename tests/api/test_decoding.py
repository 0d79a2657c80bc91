from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvstet.api.decoding import StopScanner, TextStream
from kvstet.chat.fake import ByteTokenizer
from kvstet.engine.messages import TokenLogprobs

TOKENIZER = ByteTokenizer()
SURE = TokenLogprobs(0.0, ())


class Pieces:
    """A tokenizer whose tokens are the given pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.num_tokens = len(pieces)
        self.special_tokens: dict[str, int] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool):
        raise NotImplementedError

    def piece(self, token: int, *, special: bool = True) -> bytes:
        return self._pieces[token]

    def token_text(self, name: str) -> str:
        return ""


def deltas(stream: TextStream, tokens: list[int]) -> list[str]:
    """The text after each token, and at the end."""
    texts: list[str] = []
    for token in tokens:
        stream.push(token)
        texts.append(stream.take().text)
        if stream.stop_string is not None:
            return texts
    stream.finish()
    return [*texts, stream.take().text]


def test_a_character_of_several_tokens_appears_once_it_is_whole():
    assert deltas(TextStream(TOKENIZER, ()), list("né".encode())) == ["n", "", "é", ""]


def test_a_reply_that_breaks_off_within_a_character_leaves_it_out():
    assert deltas(TextStream(TOKENIZER, ()), list("a😀".encode()[:-1])) == ["a", "", "", "", ""]


def test_bytes_that_are_not_utf8_are_replaced():
    assert deltas(TextStream(TOKENIZER, ()), [0xFF, ord("a")]) == ["\ufffd", "a", ""]


def test_control_tokens_print_nothing():
    end = TOKENIZER.special_tokens["<|im_end|>"]
    assert deltas(TextStream(TOKENIZER, ()), [ord("a"), end, ord("b")]) == ["a", "", "b", ""]


def test_a_stop_string_across_tokens_never_shows():
    stream = TextStream(Pieces(b"Hi\nU", b"ser", b": x"), ("\nUser:",))
    assert deltas(stream, [0, 1, 2]) == ["Hi", "", ""]
    assert stream.stop_string == "\nUser:"


def test_text_that_did_not_become_a_stop_string_is_released():
    assert deltas(TextStream(Pieces(b"a\nUs", b"e it"), ("\nUser:",)), [0, 1]) == ["a", "\nUse it", ""]


def test_what_is_held_back_at_the_end_is_text():
    assert deltas(TextStream(Pieces(b"a\nUs"), ("\nUser:",)), [0]) == ["a", "\nUs"]


def test_the_stop_string_that_comes_first_wins():
    scanner = StopScanner(("late", "arly"))
    assert scanner.push("early, late") == "e"
    assert scanner.found == "arly"


def test_only_the_longest_possible_beginning_is_held_back():
    scanner = StopScanner(("aab",))
    assert (scanner.push("xaaa"), scanner.held) == ("xa", "aa")


@given(text=st.text("ab\né", max_size=30), stops=st.lists(st.text("ab\né", min_size=1, max_size=4)), data=st.data())
def test_any_split_of_a_text_gives_what_the_whole_text_gives(text: str, stops: list[str], data: st.DataObject):
    encoded = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(encoded)))))
    pieces = [encoded[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]
    stream = TextStream(Pieces(*pieces), tuple(stops))
    shown = "".join(deltas(stream, list(range(len(pieces)))))
    if stream.stop_string is None:
        assert shown == text
        assert not any(stop in text for stop in stops)
    else:
        assert text.startswith(shown + stream.stop_string)
        assert not any(stop in shown for stop in stops)


def test_tokens_wait_for_their_text():
    stream = TextStream(Pieces(b"a", b"\nUs", b"e"), ("\nUser:",))
    taken: list[list[int]] = []
    for token in range(3):
        stream.push(token, SURE)
        taken.append([kept.token for kept in stream.take().tokens])
    assert taken == [[0], [], []]
    stream.finish()
    assert [(kept.token, kept.start, kept.stop) for kept in stream.take().tokens] == [(1, 1, 4), (2, 4, 5)]


def test_tokens_of_a_stop_string_are_left_out_but_the_one_it_begins_in():
    stream = TextStream(Pieces(b"Hi", b"!\n", b"U:"), ("\nU:",))
    for token in range(3):
        stream.push(token, SURE)
    delta = stream.take()
    assert delta.text == "Hi!"
    assert [kept.token for kept in delta.tokens] == [0, 1]


def test_all_tokens_of_a_character_come_with_it():
    stream = TextStream(TOKENIZER, ())
    for token in "é".encode():
        stream.push(token, SURE)
    assert [kept.data for kept in stream.take().tokens] == [b"\xc3", b"\xa9"]


def test_its_repr_tells_how_far_it_is():
    stream = TextStream(Pieces(b"ab\n"), ("\nU",))
    stream.push(0)
    assert repr(stream) == "TextStream(2 of 3 characters released, stop=None)"
