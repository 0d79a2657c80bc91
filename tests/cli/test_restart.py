"""A real server is killed without warning, and started again on the same folder: its sessions are still there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.cli.harness import Body, Served, children, command, eventually, is_running, url_told
from tests.toys import toy_path

WORDS = ("the", "tree", "keeps", "every", "span", "that", "an", "agent", "sent", "and", "forks", "it", "where")
ROLES = ("user", "assistant")

TOYS = ("llama-dense", "gemma3-dense", "qwen35-dense")

SMALL = ("--threads", "1", "--parallel", "2")

SPARE_TOKENS = 32
"""What a turn may compute beyond its new text."""


@contextmanager
def keeping(folder: Path, model: Path, *options: str) -> Generator[Served, None, None]:
    """`kvstet serve` on a cache folder within ``folder``; nothing of it runs afterwards."""
    log = folder / "stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command("serve", str(model), "--port", "0", "--cache-dir", str(folder / "cache")), *SMALL, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"COLUMNS": "160"},
        )
    try:
        yield Served(process, log, url_told(process, log))
    finally:
        kill_all(process)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the server and to its engine, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Session:
    """A conversation that a client keeps, and sends whole each time."""

    seed: int = 0
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    num_seen: int = 0
    """Tokens that the server has seen of it, prompts and replies."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def text(self, num_words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=num_words))

    def remember(self, num_messages: int, num_words: int) -> None:
        """A past that was never asked for: a system prompt, and messages in turn."""
        self.messages.append({"role": "system", "content": self.text(num_words)})
        for number in range(num_messages):
            self.messages.append({"role": ROLES[number % 2], "content": self.text(num_words)})

    def say(self, served: Served, num_words: int = 60) -> int:
        """One turn; how many tokens it computed beyond those that the server had not seen."""
        self.messages.append({"role": "user", "content": self.text(num_words)})
        answer = ask(served, self.messages)
        self.messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        usage: Body = answer["usage"]
        excess = answer["kvstet"]["computed"] - (usage["prompt_tokens"] - self.num_seen)
        self.num_seen = usage["total_tokens"]
        return excess


def ask(served: Served, messages: list[dict[str, str]]) -> Body:
    """The answer to a prompt that may take minutes to compute."""
    with served.http() as client:
        client.timeout = 300
        response = client.post("/v1/chat/completions", json={"messages": messages, "temperature": 0, "max_tokens": 8})
    assert response.status_code == 200, response.text
    return response.json()


def wait_until_written(served: Served) -> None:
    """Until a kill would lose nothing."""
    assert eventually(lambda: served.metric("kvstet_unwritten_blobs") == 0), served.metrics()


def survive(folder: Path, model: Path, num_messages: int, num_words: int) -> dict[str, Any]:
    """A session before and after a kill; what the metrics say of the second server in the end."""
    session = Session()
    session.remember(num_messages, num_words)
    with keeping(folder, model) as served:
        for _ in range(3):
            session.say(served)
        wait_until_written(served)
        pids = [served.process.pid, *children(served.process.pid)]
        assert len(pids) == 2
        kill_all(served.process)
        assert eventually(lambda: not any(map(is_running, pids)))
    with keeping(folder, model) as served:
        # The engine tells its counters just after it has told that it is ready.
        assert eventually(lambda: served.metric("kvstet_cache_nodes") > 0)
        for _ in range(3):
            assert session.say(served) <= SPARE_TOKENS
        assert served.metric("kvstet_damaged_blobs_total") == 0
        wait_until_written(served)
        metrics = served.metrics()
        assert metrics["kvstet_cache_disk_bytes"] > metrics["kvstet_disk_written_bytes_total"] > 0
        return metrics | {"tokens": session.num_seen}


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "toy", ["qwen35-dense", *(pytest.param(toy, marks=pytest.mark.slow) for toy in TOYS if toy != "qwen35-dense")]
)
def test_a_session_goes_on_after_the_server_was_killed(tmp_path: Path, smollm2_path: Path, toy: str):
    model = toy_path(toy, context_length=4096, vocabulary=smollm2_path)
    metrics = survive(tmp_path, model, num_messages=6, num_words=200)
    assert metrics["tokens"] > 1500
    assert metrics['kvstet_prompt_tokens_total{source="loaded"}'] > 1500


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("toy", TOYS)
def test_a_session_of_30000_tokens_goes_on_after_the_server_was_killed(tmp_path: Path, smollm2_path: Path, toy: str):
    model = toy_path(toy, context_length=40960, vocabulary=smollm2_path)
    metrics = survive(tmp_path, model, num_messages=50, num_words=600)
    assert metrics["tokens"] > 30_000
    assert metrics['kvstet_prompt_tokens_total{source="loaded"}'] > 30_000
