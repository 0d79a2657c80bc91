from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.api import source

from kvstet.api.feed import Feed
from kvstet.engine.messages import Token
from kvstet.errors import EngineCrashed
from kvstet.types import RequestId

ID = RequestId("r")


class Source(source.Source):
    """Numbers come as tokens."""

    def event(self, step: object) -> object:
        return Token(ID, step)


async def batches_of(*sources: Source, gates: Sequence[asyncio.Event] = ()) -> list[list[tuple[int, int]]]:
    """All batches; after each of the first ones the next of ``gates`` is opened."""
    batches: list[list[tuple[int, int]]] = []
    async with Feed([source.events() for source in sources]) as feed:
        async for batch in feed.batches():
            batches.append([(i, e.token) for i, e in batch if isinstance(e, Token)])
            for gate in gates[len(batches) - 1 : len(batches)]:
                gate.set()
    return batches


async def test_what_is_ready_together_comes_together():
    gate = asyncio.Event()
    assert await batches_of(Source(1, 2, gate, 3), gates=[gate]) == [[(0, 1), (0, 2)], [(0, 3)]]


async def test_sources_are_merged_as_they_come():
    first, second = asyncio.Event(), asyncio.Event()
    batches = await batches_of(Source(1, first, 2), Source(second, 7), gates=[second, first])
    assert batches == [[(0, 1)], [(1, 7)], [(0, 2)]]


async def test_an_empty_source_ends_at_once():
    assert await batches_of(Source(), Source(1)) == [[(1, 1)]]


async def test_an_error_comes_after_what_was_ready_and_closes_the_others():
    failing, other = Source(1, EngineCrashed("It died.")), Source(5.0)
    async with Feed([failing.events(), other.events()]) as feed:
        batches = feed.batches()
        assert await anext(batches) == [(0, Token(ID, 1))]
        with pytest.raises(EngineCrashed):
            await anext(batches)
    assert other.is_closed


async def test_one_source_can_be_stopped_alone():
    first, second = Source(1, 5.0), Source(0.01, 2)
    tokens: list[int] = []
    async with Feed([first.events(), second.events()]) as feed:
        async for batch in feed.batches():
            tokens.extend(event.token for _, event in batch if isinstance(event, Token))
            feed.stop(0)
    assert tokens == [1, 2]
    assert first.is_closed


async def test_leaving_closes_all_sources():
    sources = [Source(1, 5.0), Source(5.0)]
    async with Feed([source.events() for source in sources]) as feed:
        await anext(feed.batches())
    assert all(source.is_closed for source in sources)
