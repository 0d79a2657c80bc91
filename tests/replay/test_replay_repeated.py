"""Recorded sessions of real clients, against real servers on a toy model: the counts are the same each time, and the
least that they could be."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from tests.api.traces import FOLDER
from tests.cli.harness import serving
from tests.replay.replay_harness import AT_ONCE, replayed

from kvstet.chat.builtin import builtin_template
from kvstet.replay.results import Run
from kvstet.replay.session import read_session

pytestmark = pytest.mark.timeout(3000)

MakeToy = Callable[..., Path]


@pytest.fixture
def toy(toy_path: MakeToy, smollm2_path: Path) -> Path:
    """An attention model with a real tokenizer and a chat template."""
    return toy_path("llama-dense", context_length=131_072, vocabulary=smollm2_path)


def run_fresh(folder: Path, model: Path, name: str, context_length: int) -> Run:
    """Against a server of its own, which keeps nothing and guesses nothing."""
    options = ("--no-cache-disk", "--anticipate", "off", "--ctx-size", str(context_length), "--threads", "2")
    options += ("--prefill-chunk", "512")
    with serving(folder, str(model), *options) as served:
        return replayed(served.url, read_session(FOLDER / f"{name}.jsonl.xz"), AT_ONCE)


@pytest.mark.parametrize(
    ("name", "context_length"),
    [
        ("pi-err", 8192),
        pytest.param("pi", 98_304, marks=pytest.mark.slow),
        pytest.param("opencode", 98_304, marks=pytest.mark.slow),
    ],
)
def test_a_recorded_session_replays_to_the_same_computed_tokens_twice(
    name: str, context_length: int, toy: Path, tmp_path: Path
):
    runs = [run_fresh(tmp_path, toy, name, context_length) for _ in range(2)]
    computed = [[asked.num_computed_tokens for asked in run.asked] for run in runs]
    assert [asked.error for asked in runs[0].asked] == [None] * len(runs[0].asked)
    assert computed[0] == computed[1]
    assert computed[0] == [asked.num_bound_tokens for asked in runs[0].asked]
    assert not runs[0].values
    assert 0 < (runs[0].num_computed_tokens or 0) < 0.7 * (runs[0].num_prompt_tokens or 0)


@contextmanager
def llama_server(model: Path, template: Path) -> Generator[str, None, None]:
    """llama.cpp's own, out of the xllamacpp wheel."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "kvstet.bench.wheel", "-m", str(model), "-c", "8192", "-np", "1", "-t", "2"]
    command += ["--chat-template-file", str(template), "--jinja", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _is_ready(url):
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health", trust_env=False).is_success
    except httpx2.TransportError:
        return False


@pytest.mark.slow
def test_a_session_is_replayed_against_llama_cpps_own_server(toy: Path, tmp_path: Path):
    pytest.importorskip("xllamacpp")
    template = tmp_path / "template.jinja"
    template.write_text(builtin_template("chatml-tools"))
    with llama_server(toy, template) as url:
        run = replayed(url, read_session(FOLDER / "pi-err.jsonl.xz"), AT_ONCE)
    assert [asked.error for asked in run.asked] == [None] * len(run.asked)
    for asked in run.asked:
        assert asked.num_prompt_tokens == (asked.num_reused_tokens or 0) + (asked.num_computed_tokens or 0)
        assert asked.num_bound_tokens is not None
        assert (asked.num_computed_tokens or 0) >= asked.num_bound_tokens >= 1
        assert (asked.first_token_seconds or 0) > 0
    assert run.asked[0].num_bound_tokens == run.asked[0].num_prompt_tokens == run.asked[0].num_computed_tokens
