"""Clients that hang up. What must follow is that the engine's generator is closed, which frees the tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from openai import APITimeoutError
from tests.api.harness import Site, asked, eventually, freed, patiences, tokens_of

from kvstet.engine.fake_client import Hang, Say
from kvstet.engine.messages import Event, Finished, Generate, TokenLogprobs

USER = [{"role": "user", "content": "Hi"}]
ENDLESS = Say(tokens_of("x" * 10_000), token_seconds=0.005)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_while_the_prompt_is_computed_frees_it(site: Site, stream: bool):
    site.engine.script = Hang()
    with asked(site, stream=stream):
        assert site.engine.cancelled == []
    assert freed(site.engine)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_while_the_reply_is_written_frees_it(site: Site, stream: bool):
    site.engine.script = ENDLESS
    with asked(site, stream=stream) as connection:
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: site.engine.stats().num_generated_tokens > 3)
    assert freed(site.engine)


def test_hanging_up_frees_all_choices(site: Site):
    site.engine.script = ENDLESS
    with asked(site, stream=True, n=3) as connection:
        connection.recv(1000)
    assert eventually(lambda: len(site.engine.cancelled) == 3)


def test_closing_an_sdk_stream_frees_its_tokens(site: Site):
    site.engine.script = ENDLESS
    with site.sdk() as client, client.chat.completions.create(model="m", messages=USER, stream=True) as stream:
        next(iter(stream))
    assert freed(site.engine)


def test_an_sdk_timeout_frees_its_tokens(site: Site):
    site.engine.script = Hang()
    with site.sdk() as client:
        for seconds in patiences(site.engine):
            with pytest.raises(APITimeoutError):
                client.chat.completions.create(model="m", messages=USER, timeout=seconds)
    assert freed(site.engine)


def test_a_cancelled_task_of_the_async_sdk_frees_its_tokens(site: Site):
    site.engine.script = Hang()

    async def give_up() -> None:
        async with site.async_sdk() as client:
            for seconds in patiences(site.engine):
                asking = client.chat.completions.create(model="m", messages=USER)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asking, seconds)

    asyncio.run(give_up())
    assert freed(site.engine)


def test_a_client_that_does_not_read_still_frees_its_tokens_when_it_goes(site: Site):
    """The server is then blocked in sending, not in waiting for the engine."""
    num_batches, batch = 10, [ord("x")] * 500
    sure = [TokenLogprobs(-0.5, ())] * len(batch)

    async def chatter(request: Generate) -> AsyncGenerator[Event, None]:
        for _ in range(num_batches):
            async for event in Say(batch, logprobs=sure)(request):
                if not isinstance(event, Finished):
                    yield event
            await asyncio.sleep(0.001)
        await asyncio.Event().wait()

    site.engine.script = chatter
    with asked(site, stream=True, logprobs=True):
        assert eventually(lambda: site.engine.stats().num_generated_tokens == num_batches * len(batch))
    assert freed(site.engine)


def test_the_server_serves_on_after_a_hundred_hangups(site: Site):
    site.engine.script = Hang()
    for _ in range(100):
        with asked(site):
            pass
    assert eventually(lambda: len(site.engine.cancelled) == len(site.engine.requests))
    assert site.get("/health").status_code == 200


def test_hanging_up_in_the_middle_of_the_body_asks_nothing_of_the_engine(site: Site):
    with site.connect() as connection:
        connection.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"prompt')
    assert site.get("/health").status_code == 200
    assert site.engine.requests == []
