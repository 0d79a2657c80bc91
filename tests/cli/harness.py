"""A real `kvstet serve` in a process of its own: what a user starts, with nothing faked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, OpenAI

from kvstet.cli.main import main

LIGHT = ("--no-cache-disk", "--ctx-size", "2048", "--parallel", "4", "--threads", "1", "--prefill-chunk", "64")
"""A small context on one thread, in small steps, so that what happens within a step happens soon."""

START_SECONDS = 120.0
"""A busy machine may take this long to import, load and listen."""

PATIENCE_SECONDS = 120.0
"""For whatever should come soon, and on a busy machine comes late."""

KEY = "sesame"

Body = dict[str, Any]


def eventually(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> bool:
    """Whether the condition becomes true within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ended(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    """A command in this process: its exit status, and all that it said."""
    monkeypatch.setattr("sys.argv", ["kvstet", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    said = capsys.readouterr()
    return int(ending.value.code or 0), said.out + said.err


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kvstet", *arguments]


def children(pid: int) -> list[int]:
    """Processes that ``pid`` has started and that still run; zombies do not."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The command's name comes second, in parentheses, and may hold anything; state and parent follow it.
        with suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == pid and state != "Z":
                found.append(int(stat.parent.name))
    return found


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile, so that it wins no race."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_running(pid: int) -> bool:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    log: Path
    """What it writes to standard error."""
    url: str

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    @property
    def engine_pid(self) -> int:
        (pid,) = children(self.process.pid)
        return pid

    @contextmanager
    def http(self, **options: Any) -> Iterator[httpx2.Client]:
        headers = {"authorization": f"Bearer {KEY}"}
        client = httpx2.Client(
            base_url=self.url, trust_env=False, verify=False, timeout=PATIENCE_SECONDS, headers=headers, **options
        )
        with client:
            yield client

    @contextmanager
    def sdk(self, api_key: str = KEY) -> Iterator[OpenAI]:
        with OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=PATIENCE_SECONDS) as client:
            yield client

    def async_sdk(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_SECONDS)

    def get(self, path: str) -> httpx2.Response:
        with self.http() as client:
            return client.get(path)

    def post(self, path: str, body: Body | bytes) -> httpx2.Response:
        """``body`` is sent as JSON, unless it is bytes already."""
        with self.http() as client:
            return client.post(path, content=body) if isinstance(body, bytes) else client.post(path, json=body)

    def ask(self, path: str, **fields: Any) -> Body:
        """The JSON answer to a request that must succeed; greedy, and short."""
        response = self.post(path, {"temperature": 0, "max_tokens": 8, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, text: str, **fields: Any) -> Body:
        return self.ask("/v1/chat/completions", messages=user(text), **fields)

    def complete(self, prompt: str, **fields: Any) -> Body:
        return self.ask("/v1/completions", prompt=prompt, **fields)

    def metrics(self) -> dict[str, float]:
        """Name, with labels, -> value."""
        lines = [line for line in self.get("/metrics").text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def metric(self, name: str) -> float:
        return self.metrics()[name]

    @property
    def num_running(self) -> int:
        return int(self.metric("kvstet_running_requests"))

    @contextmanager
    def asked(self, path: str, **fields: Any) -> Iterator[socket.socket]:
        """A bare connection on which a request was sent; leaving hangs up."""
        body = json.dumps(fields).encode()
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(head_of(path, host, len(body)) + body)
            yield connection


def head_of(path: str, host: str, num_body_bytes: int) -> bytes:
    """A request's head."""
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {KEY}")
    return "\r\n".join((*lines, f"Content-Length: {num_body_bytes}", "", "")).encode()


@contextmanager
def serving(folder: Path, *options: str) -> Generator[Served, None, None]:
    """``kvstet serve --port 0`` with `LIGHT` and ``options``; nothing of it is left afterwards."""
    log = folder / "stderr.txt"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("serve", "--port", "0", *LIGHT, *options),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"COLUMNS": "160"},
        )
    try:
        yield Served(process, log, url_told(process, log))
    finally:
        # The engine is in the server's process group, whether the server still lives or not.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def url_told(process: subprocess.Popen[bytes], log: Path) -> str:
    """The address in the start-up text."""
    told: list[re.Match[str]] = []

    def has_told() -> bool:
        match = re.search(r"^address +(http://\S+)/v1 *$", log.read_text(), re.MULTILINE)
        told.extend([match] if match else [])
        return bool(match) or process.poll() is not None

    assert eventually(has_told, START_SECONDS), f"it never listened: {log.read_text()}"
    assert told, f"it ended: {log.read_text()}"
    return told[0][1]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
