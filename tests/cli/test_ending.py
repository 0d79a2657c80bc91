"""How a real server ends: by signals, in time, with nothing left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from tests.cli.harness import Served, eventually, is_running, serving

END_SECONDS = 60.0
NUM_TESTS = 3

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """A server for each test, since it does not survive; started together, which takes half the time."""
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        folders = [tmp_path_factory.mktemp("served") for _ in range(NUM_TESTS)]
        yield list(pool.map(stack.enter_context, map(serving, folders)))


@pytest.fixture
def served(fleet: list[Served]) -> Served:
    return fleet.pop()


def check_clean_end(served: Served, engine_pid: int) -> None:
    assert served.process.wait(END_SECONDS) == 0
    assert eventually(lambda: not is_running(engine_pid))
    assert served.text.rstrip().endswith("Stopped.")
    assert "ERROR" not in served.text
    assert "Traceback" not in served.text


def test_ctrl_c_lets_the_running_reply_finish_and_ends_the_server(served: Served):
    """Ctrl-C in a terminal reaches the server and its engine alike."""
    engine_pid = served.engine_pid
    with served.http() as client:
        body = {"prompt": "1, 2, 3, 4,", "max_tokens": 16, "temperature": 0, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            os.killpg(served.process.pid, signal.SIGINT)
            rest = list(lines)
    assert first.startswith("data: {")
    assert [line for line in rest if line][-1] == "data: [DONE]"
    check_clean_end(served, engine_pid)


def test_a_service_manager_stops_the_server_with_an_idle_connection(served: Served):
    """systemd and `timeout` send SIGTERM to the whole group."""
    engine_pid = served.engine_pid
    with served.http() as client:
        assert client.get("/health").status_code == 200
        os.killpg(served.process.pid, signal.SIGTERM)
        check_clean_end(served, engine_pid)


def test_a_server_that_is_killed_takes_its_engine_along(served: Served):
    engine_pid = served.engine_pid
    served.process.kill()
    served.process.wait()
    assert eventually(lambda: not is_running(engine_pid), END_SECONDS)
