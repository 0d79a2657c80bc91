"""The fake engine client keeps the promises of the real one that the server relies on."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from kvstet.engine.fake_client import Hang, Refuse, Say, ScriptedEngine
from kvstet.engine.messages import Event, Finished, Generate, Started, Token
from kvstet.errors import ContextOverflow, QueueFull, ShuttingDown
from kvstet.types import RequestId


def request(num_tokens: int = 3, limit: int | None = None) -> Generate:
    return Generate(RequestId("r"), np.zeros(num_tokens, dtype=np.int32), max_new_tokens=limit)


async def events(engine: ScriptedEngine, asked: Generate) -> list[Event]:
    return [event async for event in engine.generate(asked)]


async def test_a_script_is_played_from_start_to_end():
    started, *tokens, finished = await events(ScriptedEngine(Say([7, 8])), request())
    assert isinstance(started, Started)
    assert started.reuse.num_prompt_tokens == 3
    assert tokens == [Token(RequestId("r"), 7), Token(RequestId("r"), 8)]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.num_new_tokens) == ("stop", 2)


async def test_the_limit_of_the_request_holds():
    finished = (await events(ScriptedEngine(Say([7, 8, 9])), request(limit=2)))[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.num_new_tokens) == ("length", 2)


async def test_queued_scripts_come_before_the_usual_one():
    engine = ScriptedEngine(Say([1]))
    engine.scripts.append(Refuse(QueueFull("Full.")))
    with pytest.raises(QueueFull):
        await events(engine, request())
    assert len(await events(engine, request())) == 3


async def test_a_prompt_over_the_context_is_refused():
    with pytest.raises(ContextOverflow):
        await events(ScriptedEngine(), request(5000))


async def test_closing_the_generator_is_a_cancellation_and_ending_it_is_not():
    engine = ScriptedEngine(Say([7]))
    await events(engine, request())
    assert engine.cancelled == []
    generator = engine.generate(request())
    await anext(generator)
    await generator.aclose()
    assert engine.cancelled == [RequestId("r")]
    assert engine.stats().num_running == 0


async def test_closing_the_engine_ends_requests_in_flight_with_shutting_down():
    engine = ScriptedEngine(Hang())
    waiting = asyncio.create_task(events(engine, request()))
    await asyncio.sleep(0.01)
    await engine.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await events(engine, request())
    assert engine.cancelled == []
