from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from tests.api import source

from kvstet.api.errors import ClientGone
from kvstet.api.sse import EventStream


class Client:
    """The other side of an ASGI application."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.gone = asyncio.Event()
        self.was_pinged_twice = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.body.count(b": ping") == 2:
            self.was_pinged_twice.set()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def read(self, stream: EventStream) -> None:
        await stream({"type": "http"}, self.receive, self.send)


class Source(source.Source):
    """Chunks of bytes."""

    def stream(self, ping_seconds: float = 15.0) -> EventStream:
        return EventStream(
            self.events(), encode_error=lambda error: f"error {error}\n\n".encode(), ping_seconds=ping_seconds
        )


def test_events_are_sent_as_they_come():
    async def run() -> list[Any]:
        client = Client()
        await client.read(Source(b"a", b"b").stream())
        return client.sent

    start, *bodies = asyncio.run(run())
    assert (start["type"], start["status"]) == ("http.response.start", 200)
    assert (b"cache-control", b"no-cache") in start["headers"]
    assert [(body["body"], body["more_body"]) for body in bodies] == [(b"a", True), (b"b", True), (b"", False)]


def test_silence_is_filled_with_comments():
    async def run() -> bytes:
        client = Client()
        await client.read(Source(client.was_pinged_twice, b"a").stream(ping_seconds=0.02))
        return client.body

    # Where the machine is busy, more pings fit in before the event.
    assert re.fullmatch(rb"(: ping\n\n){2,}a(: ping\n\n)*", asyncio.run(run()))


def test_an_error_before_the_first_event_is_raised():
    async def run() -> list[Any]:
        client = Client()
        with pytest.raises(ValueError, match="bad"):
            await client.read(Source(ValueError("bad")).stream())
        return client.sent

    assert asyncio.run(run()) == []


@pytest.mark.parametrize("begins_with", ["event", "ping"])
def test_an_error_after_the_first_event_or_ping_is_an_event(begins_with: str):
    async def run() -> Client:
        client = Client()
        begin = b"a" if begins_with == "event" else client.was_pinged_twice
        await client.read(Source(begin, ValueError("bad")).stream(ping_seconds=0.02))
        return client

    client = asyncio.run(run())
    assert client.body.endswith(b"error bad\n\n")
    assert not client.sent[-1]["more_body"]


@pytest.mark.parametrize("steps", [(5.0,), (b"a", 5.0)])
def test_a_client_that_goes_closes_the_source(steps: tuple[bytes | float, ...]):
    async def run() -> bool:
        client, source = Client(), Source(*steps)
        reading = asyncio.create_task(client.read(source.stream()))
        while source.num_begun_steps < len(steps):
            await asyncio.sleep(0)
        client.gone.set()
        with pytest.raises(ClientGone):
            await reading
        return source.is_closed

    assert asyncio.run(run())


def test_a_client_that_goes_while_the_server_sends_closes_the_source():
    class Deaf(Client):
        is_sent_to = False

        async def send(self, message: Any) -> None:
            self.is_sent_to = True
            await asyncio.Event().wait()

    async def run() -> bool:
        client, source = Deaf(), Source(b"a")
        reading = asyncio.create_task(client.read(source.stream()))
        while not client.is_sent_to:
            await asyncio.sleep(0)
        client.gone.set()
        with pytest.raises(ClientGone):
            await reading
        return source.is_closed

    assert asyncio.run(run())
