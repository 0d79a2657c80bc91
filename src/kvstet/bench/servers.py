"""Servers that run: those that were started here, and those that others have started somewhere."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import httpx2
import msgspec
import psutil

from kvstet.bench.software import ENVIRONMENT, Endpoint, Limits, Settings, Software
from kvstet.errors import ServerGone

START_SECONDS = 300.0
"""A large model on a slow disk takes this long to load."""

STOP_SECONDS = 10.0
"""For a server to write what it has; then it is killed."""

LOOK_SECONDS = 1.0
"""How often the processes of a server are looked for: it may start further ones."""

_LAST_WORDS_CHARACTERS = 300


class Server(Protocol):
    """One side of a comparison."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def command(self) -> str:
        """As a user would type it; of one that runs elsewhere, its address."""
        ...

    @property
    def endpoint(self) -> Endpoint: ...
    @property
    def model(self) -> str:
        """The name that it is asked for."""
        ...

    @property
    def url(self) -> str: ...

    async def fit(self, limits: Limits | None) -> None:
        """Run with so much room, None: as usual; where it does not, it is stopped and started again. ServerGone: it
        does not start, or others have started it."""
        ...

    async def restart(self) -> float:
        """Kill it (SIGKILL) and start it again; how long that took, seconds. ServerGone as above."""
        ...

    def memory_bytes(self) -> int | None:
        """Resident memory of all its processes; None where that cannot be seen. Cheap, so ask often."""
        ...

    def rest(self) -> None:
        """Stand still, and leave the machine to another one."""
        ...

    def wake(self) -> None: ...


class Local:
    """Implements `Server`: one that was started here, and of which nothing is left when it is closed."""

    def __init__(self, software: Software, settings: Settings) -> None:
        """Starts nothing yet: see `start`."""
        self.software = software
        self._usual = self._settings = settings
        self._leash: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._log = settings.folder / f"{software.name}.log"
        self._members: list[psutil.Process] = []
        self._looked = -LOOK_SECONDS

    def __repr__(self) -> str:
        return f"Local({self.name}, {self.url if self._leash else 'not running'})"

    @property
    def name(self) -> str:
        return self.software.name

    @property
    def version(self) -> str:
        return self.software.version

    @property
    def command(self) -> str:
        return self.software.shown(self._usual)

    @property
    def endpoint(self) -> Endpoint:
        return self.software.endpoint

    @property
    def model(self) -> str:
        return self.software.model or self._usual.model.stem

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Returns once it answers. ServerGone: it ended, or did not answer in `START_SECONDS`."""
        assert self._leash is None, "it runs"
        self._port = free_port()
        command = [sys.executable, "-m", "kvstet.bench.leash", *self.software.command(self._settings, self._port)]
        with self._log.open("wb") as log:
            self._leash = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=ENVIRONMENT | os.environ,
                start_new_session=True,
            )
        try:
            await self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    async def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=START_SECONDS) as client:
            while time.monotonic() < deadline:
                if not self.is_running:
                    raise ServerGone(f"{self.name} does not start: {self.last_words()}")
                if await _is_ready(client):
                    self._looked = -LOOK_SECONDS
                    return
                await asyncio.sleep(0.1)
        raise ServerGone(f"{self.name} did not answer within {START_SECONDS:.0f} seconds: {self.last_words()}")

    @property
    def is_running(self) -> bool:
        return self._leash is not None and self._leash.poll() is None

    def last_words(self) -> str:
        """The end of what it has written."""
        text = self._log.read_text(encoding="utf-8", errors="replace").strip() if self._log.exists() else ""
        return text[-_LAST_WORDS_CHARACTERS:] or "it has said nothing"

    async def fit(self, limits: Limits | None) -> None:
        settings = self._usual if limits is None else self._usual.limited(limits)
        if settings != self._settings or not self.is_running:
            await self._change(settings)

    async def _change(self, settings: Settings) -> None:
        await self.stop()
        self._settings = settings
        await self.start()

    async def restart(self) -> float:
        begun = time.monotonic()
        self.kill()
        await self.start()
        return time.monotonic() - begun

    def kill(self) -> None:
        """SIGKILL to all of it; none of it is left afterwards. Nothing happens where none runs."""
        if self._leash is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._leash.pid, signal.SIGKILL)
        self._leash.wait()
        if self._leash.stdin is not None:
            self._leash.stdin.close()
        self._leash = None

    async def stop(self) -> None:
        """Let it end by itself, and kill what is left after `STOP_SECONDS`."""
        self.wake()
        for process in self._processes()[:1]:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        while self.is_running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.kill()

    def memory_bytes(self) -> int | None:
        """Of the processes that it had lately: to look for them each time would take time from it."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._members, self._looked = self._processes(), now
        total = 0
        for process in self._members:
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total or None

    def rest(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def wake(self) -> None:
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def _processes(self) -> list[psutil.Process]:
        """The server itself, and those that it has started; the leash is none of them."""
        if self._leash is None:
            return []
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._leash.pid).children(recursive=True)
        return []


class Remote:
    """Implements `Server`: one that others have started."""

    def __init__(self, url: str, model: str, version: str = "not told") -> None:
        self.name = self.command = self.url = url
        self.model = model
        self.version = version
        self.endpoint: Endpoint = "chat"

    def __repr__(self) -> str:
        return f"Remote({self.url}, {self.model})"

    async def fit(self, limits: Limits | None) -> None:
        if limits is not None:
            raise ServerGone(f"{self.name} was started by others: its memory cannot be limited from here.")

    async def restart(self) -> float:
        raise ServerGone(f"{self.name} was started by others: it cannot be killed from here.")

    def memory_bytes(self) -> int | None:
        return None

    def rest(self) -> None:
        """It is not ours."""

    def wake(self) -> None:
        """It is not ours."""


async def remote(address: str) -> Remote:
    """The server at ``http://HOST:PORT``, and of several models the one named behind ``#``; else its first.

    ServerGone: nobody answers there, or no server of OpenAI's API.
    """
    url, _, model = address.partition("#")
    url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")
    try:
        async with httpx2.AsyncClient(base_url=url, trust_env=False, timeout=10.0) as client:
            answer = await client.get("/v1/models")
            listed = msgspec.json.decode(answer.raise_for_status().content, type=_Listed)
    except (httpx2.HTTPError, httpx2.InvalidURL, msgspec.MsgspecError) as error:
        raise ServerGone(f"No server of OpenAI's API answers at {url}: {error}") from error
    return Remote(url, model or (listed.data[0].id if listed.data else "default"))


class _ListedModel(msgspec.Struct):
    id: str


class _Listed(msgspec.Struct):
    data: list[_ListedModel]


@asynccontextmanager
async def running(*servers: Local) -> AsyncGenerator[None, None]:
    """Start them, one after the other; nothing of them is left afterwards."""
    try:
        for server in servers:
            await server.start()
        yield
    finally:
        for server in servers:
            server.kill()


def free_port() -> int:
    """One that nobody listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def _is_ready(client: httpx2.AsyncClient) -> bool:
    """llama-server lists its model while it still loads; others have no ``/health``."""
    try:
        health, models = await client.get("/health"), await client.get("/v1/models")
    except httpx2.TransportError:
        return False
    return models.is_success and health.status_code in (httpx2.codes.OK, httpx2.codes.NOT_FOUND)
