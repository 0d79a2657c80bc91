from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.dialects.sse import SseDecoder, SseEvent

STREAM = (
    b"\xef\xbb\xbf: a comment\n\n"
    b'event: one\ndata: {"text": "\xf0\x9f\x99\x82"}\n\n'
    b"data: two\r\ndata:  lines\r\n\r\n"
    b"id: 7\nretry: 10\n\n"
    b"data\n\n"
    b"data: by returns\r\r"
    b"event: nothing\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = [
    SseEvent('{"text": "🙂"}', "one"),
    SseEvent("two\n lines"),
    SseEvent(""),
    SseEvent("by returns"),
    SseEvent("[DONE]"),
]


def decoded(*pieces: bytes) -> list[SseEvent]:
    decoder = SseDecoder()
    return [*(event for piece in pieces for event in decoder.feed(piece)), *decoder.finish()]


def test_a_stream_with_every_oddity_is_read() -> None:
    assert decoded(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_the_same_events_come_however_the_bytes_are_cut(places: list[int]) -> None:
    pieces = [STREAM[start:stop] for start, stop in zip([0, *places], [*places, len(STREAM)], strict=True)]
    assert decoded(*pieces) == EVENTS


def test_the_same_events_come_byte_by_byte() -> None:
    assert decoded(*(bytes([byte]) for byte in STREAM)) == EVENTS


def test_an_event_comes_with_its_empty_line_and_not_later() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\n") == [SseEvent("a")]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r", b"\r\n"])
def test_a_last_event_without_its_empty_line_is_read(end: bytes) -> None:
    assert decoded(b"event: x\ndata: last" + end) == [SseEvent("last", "x")]


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert decoded(b"data: a\xffb\n\n") == [SseEvent("a�b")]


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert decoded(b"\xef\xbb", b"\xbfdata: a\n\n") == [SseEvent("a")]


def test_a_long_line_in_small_pieces_costs_its_length_once() -> None:
    decoder = SseDecoder()
    for _ in range(50_000):
        assert decoder.feed(b"x" * 20) == []
    decoder = SseDecoder()
    decoder.feed(b"data: ")
    for _ in range(50_000):
        decoder.feed(b"x" * 20)
    (event,) = decoder.feed(b"\n\n")
    assert len(event.data) == 1_000_000


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_taken(data: bytes) -> None:
    for event in decoded(data):
        assert isinstance(event.data, str)
