"""What the engine's process does with messages that come together, in this process."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.test_supervisor import generate

from kvstet.config import EngineOptions, ModelOptions
from kvstet.engine import wire
from kvstet.engine.fake import FakeModel
from kvstet.engine.fake_client import TINY_MODEL
from kvstet.engine.messages import Finished
from kvstet.engine.process import Loaded, Ready, Report, Start, Stop, run

loaded: list[ModelOptions] = []


def load_counted(options: ModelOptions, on_progress: Callable[[float], None]) -> Loaded:
    loaded.append(options)
    return Loaded(FakeModel(), TINY_MODEL)


START = Start(load_counted, ModelOptions(Path("fake")), EngineOptions(), logging.INFO)


@pytest.fixture
def ends() -> Generator[tuple[socket.socket, wire.Channel]]:
    """The server's and the engine's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, wire.Channel(theirs)


def test_who_is_stopped_at_once_loads_nothing(ends: tuple[socket.socket, wire.Channel]):
    server, channel = ends
    loaded.clear()
    server.sendall(wire.encode(START) + wire.encode(Stop()))
    run(channel)
    assert loaded == []
    assert wire.Channel(server).receive(0.0) == []


def test_a_request_that_comes_with_the_start_is_served(ends: tuple[socket.socket, wire.Channel]):
    server, channel = ends
    server.sendall(wire.encode(START) + wire.encode(generate("a", [1, 2, 3])))
    engine = threading.Thread(target=run, args=(channel,))
    engine.start()
    heard: list[Any] = []
    listening = wire.Channel(server)
    while not any(
        isinstance(event, Finished) for report in heard if isinstance(report, Report) for event in report.events
    ):
        heard += listening.receive(None)
    server.sendall(wire.encode(Stop()))
    engine.join()
    assert isinstance(heard[0], Ready)
