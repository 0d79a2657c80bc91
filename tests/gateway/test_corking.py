"""What is written at once leaves at once."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from tests.gateway.gateway_harness import Answer, Recorder, gateway_to, serving

from kvstet.gateway.corking import Corked


class Noting:
    """A transport that notes what becomes of it."""

    def __init__(self) -> None:
        self.noted: list[bytes | str] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.noted.append(bytes(data))

    def close(self) -> None:
        self.noted.append("closed")
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


@pytest.fixture
async def noting() -> Noting:
    return Noting()


@pytest.fixture
async def corked(noting: Noting) -> Corked:
    return Corked(cast("asyncio.Transport", noting))


async def test_what_is_written_in_one_turn_leaves_together(noting: Noting, corked: Corked):
    for piece in (b"head", b"body", b"end"):
        corked.write(piece)
    assert noting.noted == []
    await asyncio.sleep(0)
    assert noting.noted == [b"headbodyend"]
    corked.write(b"next")
    await asyncio.sleep(0)
    assert noting.noted == [b"headbodyend", b"next"]


async def test_much_does_not_wait(noting: Noting, corked: Corked):
    corked.write(b"head")
    corked.write(b"x" * 65536)
    assert noting.noted == [b"head" + b"x" * 65536]
    corked.write(b"end")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert noting.noted[1:] == [b"end"]


async def test_all_is_sent_before_the_end(noting: Noting, corked: Corked):
    corked.write(b"last words")
    corked.close()
    await asyncio.sleep(0)
    assert noting.noted == [b"last words", "closed"]


async def test_nothing_is_sent_to_a_client_that_is_gone(noting: Noting, corked: Corked):
    corked.write(b"too late")
    noting.close()
    await asyncio.sleep(0)
    assert noting.noted == ["closed"]


async def test_all_else_is_the_transports(corked: Corked):
    name: Any = corked.get_extra_info("peername")
    assert name == "the peername"


def test_a_response_of_any_size_is_whole():
    pieces = tuple(bytes([65 + number % 26]) * 7919 * number for number in range(20))
    recorder = Recorder(Answer(pieces=pieces))
    with serving(recorder) as url, gateway_to(url) as gate:
        assert gate.post("/v1/chat/completions", b"{}").content == b"".join(pieces)
