"""The engine's process is killed under a real server: nobody waits in vain, and the next request is served."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from openai import APIError
from tests.cli.harness import Body, Served, children, eventually, is_running, serving, standing_still, user

pytestmark = pytest.mark.timeout(400)

GENERATED = "kvstet_generated_tokens_total"
COMPUTED = 'kvstet_prompt_tokens_total{source="computed"}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as served:
        yield served


def kill_engine(served: Served) -> int:
    """The pid of what is dead now."""
    pid = served.engine_pid
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_running(pid))
    return pid


def starting_engine(served: Served, dead: int) -> int:
    """The pid of the engine that comes after a dead one, as soon as it runs its own program."""

    def found() -> list[int]:
        return [pid for pid in children(served.process.pid) if pid != dead and is_engine(pid)]

    assert eventually(found)
    (pid,) = found()
    return pid


def is_engine(pid: int) -> bool:
    """Before that it is a copy of the server, which waits for it to become something else."""
    with suppress(OSError):
        return b"kvstet.engine" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    return False


def test_a_stream_ends_with_an_error_and_the_next_request_is_served(served: Served):
    with (
        served.sdk() as client,
        client.chat.completions.create(
            model="m",
            messages=user("Tell a long story."),
            max_tokens=1000,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream,
    ):
        texts = [chunk.choices[0].delta.content for chunk, _ in zip(stream, range(5), strict=False)]
        dead = kill_engine(served)
        with pytest.raises(APIError, match="The engine crashed while it worked on this request") as crash:
            list(stream)
    assert any(texts)
    assert crash.value.code == "engine_crashed"
    assert served.num_running == 0

    answer = served.complete("1, 2, 3, 4,", max_tokens=2)  # It waits for the new engine.
    assert answer["choices"][0]["text"] == " 5"
    assert answer["kvstet"]["reused"] == 0
    assert served.engine_pid != dead
    assert served.get("/health").status_code == 200
    assert "The engine process died (exit status -9); it is started again." in served.text


def test_while_the_engine_starts_health_says_so(served: Served):
    for _ in range(5):  # An engine that was ready before we could hold it proves nothing.
        served.complete("Hi", max_tokens=1)
        with standing_still(starting_engine(served, kill_engine(served))):
            health = served.get("/health")
            if health.status_code == 200:
                continue
            assert (health.status_code, health.json()["error"]["code"]) == (503, "engine_not_ready")
            assert served.metric("kvstet_ready") == 0
            assert served.get("/v1/models").status_code == 200
            break
    else:
        raise AssertionError("it was always healthy")
    assert eventually(lambda: served.get("/health").status_code == 200)
    assert served.metric("kvstet_ready") == 1


def test_requests_that_had_streamed_nothing_are_run_again_unseen(served: Served):
    before = served.metric(COMPUTED)
    # Many steps long, so that the engine dies within it however fast the machine is.
    body = {"prompt": "1, 2, 3, 4.\n" * 120, "max_tokens": 4, "temperature": 0}
    with ThreadPoolExecutor() as pool:
        asked = [pool.submit(served.post, "/v1/completions", body | {"stream": stream}) for stream in (False, True)]
        assert eventually(lambda: served.metric(COMPUTED) > before)
        kill_engine(served)
        whole, streamed = (answer.result() for answer in asked)
    assert whole.json()["choices"][0]["text"] == "1, 2"
    assert streamed.status_code == 200
    assert "error" not in streamed.text
    assert streamed.text.count('"computed":') == 1
    assert streamed.text.endswith("data: [DONE]\n\n")


def test_a_reply_that_is_not_streamed_is_begun_anew(served: Served):
    before = served.metric(GENERATED)
    body = {"prompt": "1, 2, 3, 4,", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(served.post, "/v1/completions", body)
        assert eventually(lambda: served.metric(GENERATED) > before + 3)
        kill_engine(served)
        answer = asked.result().json()
    assert answer["choices"][0]["text"].startswith(" 5, 6, 7")
    assert answer["usage"]["completion_tokens"] == 200


def test_a_killed_engine_forgets_its_state_but_not_how_to_reuse(served: Served):
    messages = user("Name the capital of France.")
    kill_engine(served)
    costs: list[Body] = [served.ask("/v1/chat/completions", messages=messages)["kvstet"] for _ in range(2)]
    assert (costs[0]["reused"], costs[1]["computed"]) == (0, 1)
