from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from kvstet.api.body import MAX_DEPTH, decode, in_worker
from kvstet.errors import InvalidRequest


class Form(msgspec.Struct):
    text: str = ""
    items: list[dict[str, Any]] = []


async def test_much_work_is_done_in_a_thread_and_little_is_not():
    here = threading.get_ident()
    assert await in_worker(100, threading.get_ident) == here
    assert await in_worker(100_000, threading.get_ident) != here


def test_unknown_fields_are_ignored():
    assert decode(b'{"text": "a", "more": {"x": [1]}}', Form) == Form("a")


def test_the_message_and_the_param_name_the_place():
    with pytest.raises(InvalidRequest, match=r"^Invalid 'items\[0\]': Expected `object`, got `int`\.$") as caught:
        decode(b'{"items": [1]}', Form)
    assert caught.value.param == "items[0]"


def test_broken_json_tells_where_it_broke():
    with pytest.raises(InvalidRequest, match=r"not valid JSON in UTF-8: .*byte 9"):
        decode(b'{"text": oops}', Form)


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]"), ('[{"a":', "}]")])
def test_a_body_has_so_many_levels_and_no_more(opening: str, closing: str):
    def nested(num_levels: int) -> bytes:
        # Three of them are the body's, the list's and its one item's.
        times = (num_levels - 3) // len(closing)
        return f'{{"items": [{{"x": {opening * times}"leaf"{closing * times}}}]}}'.encode()

    most = MAX_DEPTH - (MAX_DEPTH - 3) % len(closing)
    assert decode(nested(most), Form).items
    for num_levels in (most + len(closing), 500, 5000):
        with pytest.raises(InvalidRequest, match="more than 100 levels deep"):
            decode(nested(num_levels), Form)


def test_brackets_in_a_text_are_no_levels():
    assert decode(b'{"text": "' + b"[" * 5000 + b'"}', Form).text == "[" * 5000


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\ude00", "\ufffd"),
        (rb"\ud83d\ude00", "😀"),
        (rb"\uD83D\uDE00 \uD83D.", "😀 \ufffd."),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\ud83d\n\"\u00e9", '\ufffd\n"é'),
    ],
)
def test_halves_of_surrogate_pairs_become_replacement_characters(sent: bytes, read: str):
    assert decode(b'{"text": "' + sent + b'"}', Form).text == read
