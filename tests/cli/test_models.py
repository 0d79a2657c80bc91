"""The pool of models: what is loaded when, what must go for it, and who is told what. Nothing real is loaded."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import pytest
from tests.api.harness import eventually, reply, running_models, served_by

from kvstet.api.ports import Served
from kvstet.cli.models.memory import MachineMemory
from kvstet.cli.models.pool import ModelPool
from kvstet.config import MIB, ModelOptions, ServedOptions
from kvstet.engine.fake_client import TINY_MODEL, Hang, Say, ScriptedEngine
from kvstet.errors import ModelLoadError, ModelUnavailable, ShuttingDown, UnknownModel

USER = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@dataclass
class FakeLoaded:
    served: Served
    num_closings: int = 0

    async def close(self) -> None:
        await self.served.engine.close()
        self.num_closings += 1


@dataclass
class Machine:
    """Loads scripted engines, and has as much memory as a test says; implements `Memory` too."""

    needs: dict[str, int] = field(default_factory=dict[str, int])
    """MiB of each model."""
    total: int | None = None
    """MiB."""
    load_seconds: float = 0.0
    may_load: threading.Event = field(default_factory=threading.Event)
    """Until it is set, no load ends."""
    failures: deque[Exception] = field(default_factory=deque[Exception])
    """Raised by the next loads."""
    loads: list[str] = field(default_factory=list[str])
    loaded: dict[str, FakeLoaded] = field(default_factory=dict[str, FakeLoaded])
    """The latest of each name."""
    news: list[str] = field(default_factory=list[str])

    async def load(self, options: ServedOptions) -> FakeLoaded:
        self.loads.append(options.label)
        await asyncio.sleep(self.load_seconds)
        while not self.may_load.is_set():
            await asyncio.sleep(0.002)
        if self.failures:
            raise self.failures.popleft()
        engine = ScriptedEngine(reply(f"I am {options.label}."), replace(TINY_MODEL, name=f"file {options.label}"))
        served = served_by(engine, given_name=options.name, aliases=options.aliases)
        self.loaded[options.label] = loaded = FakeLoaded(served)
        return loaded

    def needed_bytes(self, options: ServedOptions) -> int | None:
        return self.needs.get(options.label, 0) * MIB

    def free_bytes(self, taken_bytes: int) -> int | None:
        return None if self.total is None else self.total * MIB - taken_bytes

    def pool(self, *names: str, unload_after_seconds: float | None = None) -> ModelPool:
        """``NAME`` or ``NAME/ALIAS``."""
        split = [name.split("/") for name in names]
        models = [ServedOptions(ModelOptions(Path(f"{n}.gguf")), name=n, aliases=tuple(more)) for n, *more in split]
        return ModelPool(models, self.load, self, unload_after_seconds=unload_after_seconds, say=self.news.append)


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.may_load.set()
    return made


def loaded_names(pool: ModelPool) -> list[str]:
    return [status.names[0] for status in pool.statuses() if status.engine is not None]


async def use(pool: ModelPool, name: str | None) -> str:
    """Use a model for a moment; the name it goes by."""
    async with pool.use(name) as served:
        return served.names[0]


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


# Loading


async def test_a_model_is_loaded_when_it_is_first_asked_for(machine: Machine):
    pool = machine.pool("a", "b")
    assert (loaded_names(pool), machine.loads) == ([], [])
    assert await use(pool, "b") == "b"
    assert (loaded_names(pool), machine.loads) == (["b"], ["b"])


async def test_it_is_loaded_once_for_all_who_ask(machine: Machine):
    machine.load_seconds = 0.02
    pool = machine.pool("a", "b")
    assert await asyncio.gather(*(use(pool, "b") for _ in range(5))) == ["b"] * 5
    assert await use(pool, "b") == "b"
    assert machine.loads == ["b"]


async def test_no_name_is_the_first_and_an_alias_is_its_model(machine: Machine):
    pool = machine.pool("a", "b/gpt-4o")
    assert [await use(pool, name) for name in (None, "", "gpt-4o")] == ["a", "a", "b"]


async def test_ollamas_tag_is_no_part_of_a_name_that_has_none(machine: Machine):
    pool = machine.pool("a", "b", "c", "c:latest")
    assert [await use(pool, name) for name in ("b:latest", "c", "c:latest")] == ["b", "c", "c:latest"]


async def test_an_unknown_name_is_told_the_known_ones(machine: Machine):
    pool = machine.pool("a", "b/gpt-4o")
    with pytest.raises(UnknownModel, match=r"'c'.*: a, b, gpt-4o\."):
        await use(pool, "c")
    assert machine.loads == []


async def test_of_a_single_model_any_name_is_its_own(machine: Machine):
    assert await use(machine.pool("a"), "gpt-99") == "a"


async def test_a_model_without_a_given_name_is_called_what_its_file_says(machine: Machine):
    pool = ModelPool([ServedOptions(ModelOptions(Path("a.gguf")))], machine.load, machine, unload_after_seconds=None)
    assert pool.status(None).names == ("a",)
    assert await use(pool, None) == "file a"
    assert pool.status(None).names == ("file a",)


@pytest.mark.parametrize("error", [ModelLoadError("It is damaged."), OSError("No such disk")])
async def test_a_load_that_fails_is_told_and_tried_again(machine: Machine, error: Exception):
    pool = machine.pool("a", "b")
    machine.failures.append(error)
    assert pool.is_ready
    with pytest.raises(ModelUnavailable, match=r"'a' could not be loaded: (It is damaged|No such disk)"):
        await use(pool, "a")
    assert pool.is_ready, "the other one may still be loaded"
    assert await use(pool, "a") == "a"
    assert machine.loads == ["a", "a"]


async def test_a_server_whose_only_model_cannot_be_loaded_is_not_ready(machine: Machine):
    pool = machine.pool("a")
    machine.failures.append(ModelLoadError("It is damaged."))
    with pytest.raises(ModelLoadError, match="damaged"):
        await pool.preload([None])
    assert not pool.is_ready
    await pool.preload([None])
    assert pool.is_ready


async def test_loading_goes_on_when_the_one_who_waits_hangs_up(machine: Machine):
    machine.load_seconds = 0.02
    pool = machine.pool("a", "b", unload_after_seconds=0.01)
    waiting = asyncio.create_task(use(pool, "b"))
    await until(lambda: machine.loads)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: "b" in machine.loaded)
    await until(lambda: machine.loaded["b"].num_closings == 1)  # nobody uses it, so its rest begins at once
    assert loaded_names(pool) == []


# Unloading


async def test_a_model_is_unloaded_after_its_rest(machine: Machine):
    pool = machine.pool("a", unload_after_seconds=0.02)
    await use(pool, None)
    await until(lambda: loaded_names(pool) == [])
    assert machine.loaded["a"].num_closings == 1
    assert pool.status(None).info is not None, "what was found out is still told"
    assert pool.is_ready
    assert await use(pool, None) == "a"
    assert machine.loads == ["a", "a"]


async def test_a_model_that_was_preloaded_rests_too(machine: Machine):
    pool = machine.pool("a", "b", unload_after_seconds=0.01)
    await pool.preload(["a", "b"])
    assert list(machine.loaded) == ["a", "b"]
    await until(lambda: loaded_names(pool) == [])
    assert [loaded.num_closings for loaded in machine.loaded.values()] == [1, 1]


async def test_no_model_is_unloaded_while_it_is_used(machine: Machine):
    pool = machine.pool("a", unload_after_seconds=0.01)
    async with pool.use(None):
        await use(pool, None)  # a shorter use begins no rest for the longer one
        await asyncio.sleep(0.05)
        assert loaded_names(pool) == ["a"]
    await until(lambda: loaded_names(pool) == [])


async def test_each_use_begins_the_rest_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    pool = machine.pool("a", unload_after_seconds=0.1)
    for _ in range(6):
        await use(pool, None)
        now += 0.09
        await turns()
        assert loaded_names(pool) == ["a"]
    now += 0.02
    await turns()
    assert loaded_names(pool) == []
    assert machine.loads == ["a"]


async def turns() -> None:
    """Let everything happen that is due."""
    for _ in range(20):
        await asyncio.sleep(0)


# Memory


async def test_who_was_unused_longest_makes_room(machine: Machine):
    machine.total, machine.needs = 10, {"a": 4, "b": 4, "c": 4}
    pool = machine.pool("a", "b", "c")
    for name in ("a", "b", "a", "c"):
        await use(pool, name)
    assert loaded_names(pool) == ["a", "c"]
    assert machine.loads == ["a", "b", "c"]
    assert any("unloaded b to make room for c" in text for text in machine.news)


async def test_who_is_used_makes_no_room(machine: Machine):
    machine.total, machine.needs = 10, {"a": 6, "b": 3, "c": 7}
    pool = machine.pool("a", "b", "c")
    await use(pool, "b")
    async with pool.use("a"):
        with pytest.raises(ModelUnavailable, match=r"'c' needs about 7 MiB .* 4 MiB can be had, beside .* \(a\)\."):
            await use(pool, "c")
        assert loaded_names(pool) == ["a", "b"], "nothing is unloaded in vain"
    assert await use(pool, "c") == "c"
    assert loaded_names(pool) == ["c"]


async def test_a_model_that_never_fits_is_refused_with_numbers(machine: Machine):
    machine.total, machine.needs = 10, {"a": 4, "b": 40}
    pool = machine.pool("a", "b")
    await use(pool, "a")
    with pytest.raises(ModelUnavailable, match="'b' needs about 40 MiB of memory, and 10 MiB can be had"):
        await use(pool, "b")
    assert loaded_names(pool) == ["a"]


async def test_a_single_model_is_loaded_whatever_the_estimate(machine: Machine, caplog: pytest.LogCaptureFixture):
    machine.total, machine.needs = 10, {"a": 40}
    assert await use(machine.pool("a"), None) == "a"
    assert "needs about 40 MiB" in caplog.text


async def test_two_that_fit_one_at_a_time_are_not_loaded_at_once(machine: Machine):
    machine.total, machine.needs, machine.load_seconds = 10, {"a": 6, "b": 6}, 0.02
    pool = machine.pool("a", "b")
    async with AsyncExitStack() as stack:
        first = asyncio.create_task(stack.enter_async_context(pool.use("a")))
        await until(lambda: machine.loads)
        with pytest.raises(ModelUnavailable, match="in use now"):
            await use(pool, "b")
        await first
    assert await use(pool, "b") == "b"


# The end


async def test_closing_stops_engines_at_once_and_frees_what_nobody_reads_with(machine: Machine):
    pool = machine.pool("a", "b")
    await use(pool, "b")
    async with pool.use("a"):
        await pool.close()
        a, b = machine.loaded["a"], machine.loaded["b"]
        assert a.served.engine.is_closed
        assert (a.num_closings, b.num_closings) == (0, 1)
    await pool.close()
    assert a.num_closings == 1


async def test_who_waits_for_a_model_is_told_that_the_server_stops(machine: Machine):
    machine.load_seconds = 10
    pool = machine.pool("a", "b")
    waiting = asyncio.create_task(use(pool, "b"))
    await until(lambda: machine.loads)
    await pool.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await use(pool, "a")


# Behind a server


@contextmanager
def site(pool: ModelPool) -> Iterator[httpx2.Client]:
    with running_models(pool) as url, httpx2.Client(base_url=url, trust_env=False, verify=False) as client:
        yield client


@contextmanager
def asked(client: httpx2.Client, body: dict[str, object]) -> Iterator[None]:
    """A connection on which a chat request was sent; leaving hangs up."""
    text = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        connection.sendall(head.encode() + text)
        yield


def engine_of(loaded: FakeLoaded) -> ScriptedEngine:
    assert isinstance(loaded.served.engine, ScriptedEngine)
    return loaded.served.engine


def num_users(pool: ModelPool, name: str) -> int:
    return pool._find(name).num_users  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": USER}),
        ("/v1/completions", {"prompt": "Hi"}),
        (MESSAGES, {"messages": USER, "max_tokens": 9}),
        ("/v1/messages/count_tokens", {"messages": USER}),
        ("/v1/responses", {"input": "Hi"}),
        ("/api/chat", {"messages": USER}),
        ("/api/generate", {"prompt": "Hi"}),
        ("/tokenize", {"content": "Hi"}),
        ("/apply-template", {"messages": USER}),
    ],
)
def test_an_unknown_model_is_a_404_in_the_words_of_the_dialect(path: str, fields: dict[str, object], machine: Machine):
    with site(machine.pool("a", "b/gpt-4o")) as client:
        assert client.post(path, json={"model": "gpt-4o", **fields}).status_code == 200
        response = client.post(path, json={"model": "c", **fields})
    assert response.status_code == 404
    error = response.json()["error"]
    assert "a, b, gpt-4o" in (error if path.startswith("/api/") else error["message"])
    if path.startswith(MESSAGES):
        assert error["type"] == "not_found_error"
    elif not path.startswith("/api/"):
        assert error["code"] == "model_not_found"
    assert machine.loads == ["b"]


def test_each_request_is_answered_by_the_model_it_names(machine: Machine):
    with site(machine.pool("a", "b")) as client:
        for name in ("a", "b", "a"):
            answer = client.post(CHAT, json={"model": name, "messages": USER}).json()
            assert (answer["model"], answer["choices"][0]["message"]["content"]) == (name, f"I am {name}.")


def test_all_models_are_listed_with_what_is_known_of_them(machine: Machine):
    with site(machine.pool("a/gpt-4o", "b")) as client:
        client.post(CHAT, json={"messages": USER})
        listed = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
        assert list(listed) == ["a", "gpt-4o", "b"]
        assert listed["gpt-4o"]["meta"]["n_ctx"] == 4096
        assert (listed["a"]["status"], listed["b"]["status"]) == ({"value": "loaded"}, {"value": "unloaded"})
        assert listed["b"]["meta"] is None
        assert client.get("/v1/models/b").json() == listed["b"]
        assert client.get("/v1/models/c").status_code == 404
        assert client.get("/slots?model=b").json() == []
        assert len(client.get("/slots?model=a").json()) == 4
        assert client.get("/props?model=b").json()["model_alias"] == "b"
        assert client.get("/health").status_code == 200


def test_metrics_of_several_models_are_labelled(machine: Machine):
    with site(machine.pool("a", "b", "c")) as client:
        for name in ("a", "b", "b"):
            client.post(CHAT, json={"model": name, "messages": USER})
        lines = client.get("/metrics").text.splitlines()
    assert 'kvstet_ready{model="a"} 1.0' in lines
    assert 'kvstet_ready{model="c"} 0.0' in lines
    assert 'kvstet_generated_tokens_total{model="a"} 8.0' in lines
    assert 'kvstet_generated_tokens_total{model="b"} 16.0' in lines
    assert any(line.startswith('kvstet_prompt_tokens_total{model="b",source="computed"}') for line in lines)
    assert not any(line.startswith("kvstet_generated_tokens_total{") and 'model="c"' in line for line in lines)


def test_a_failing_load_is_a_503_and_the_next_request_tries_again(machine: Machine):
    machine.failures.append(ModelLoadError("It is damaged."))
    with site(machine.pool("a", "b")) as client:
        response = client.post(CHAT, json={"model": "b", "messages": USER})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
        assert "It is damaged" in response.json()["error"]["message"]
        assert "retry-after" in response.headers
        assert client.post(CHAT, json={"model": "b", "messages": USER}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": USER, "stream": True}),
        (MESSAGES, {"messages": USER, "max_tokens": 999, "stream": True}),
        ("/v1/responses", {"input": "Hi", "stream": True}),
        ("/api/chat", {"messages": USER}),
    ],
)
def test_a_stream_holds_its_model_to_the_end(path: str, fields: dict[str, object], machine: Machine):
    pool = machine.pool("a", "b", unload_after_seconds=0.01)
    with site(pool) as client:

        async def slow(options: ServedOptions) -> FakeLoaded:
            loaded = await machine.load(options)
            loaded.served.engine.script = Say(list(b"x" * 20), token_seconds=0.01)
            return loaded

        pool._load = slow  # pyright: ignore[reportPrivateUsage]
        text = client.post(path, json={"model": "b", **fields}).text
        assert "error" not in text.replace('"error":null', "")
        assert machine.loads == ["b"]
        assert eventually(lambda: loaded_names(pool) == [])


def test_a_stream_whose_client_hangs_up_lets_go_of_its_model(machine: Machine):
    pool = machine.pool("a", "b", unload_after_seconds=0.01)
    with site(pool) as client:

        async def hanging(options: ServedOptions) -> FakeLoaded:
            loaded = await machine.load(options)
            loaded.served.engine.script = Hang()
            return loaded

        pool._load = hanging  # pyright: ignore[reportPrivateUsage]
        for stream in (True, False):
            machine.loaded.clear()
            with asked(client, {"model": "b", "messages": USER, "stream": stream}):
                assert eventually(lambda: "b" in machine.loaded and engine_of(machine.loaded["b"]).requests != [])
            assert eventually(lambda: machine.loaded["b"].num_closings == 1)
    assert machine.loads == ["b", "b"]


def test_a_client_that_hangs_up_before_its_model_is_loaded_asks_nothing(machine: Machine):
    machine.may_load.clear()
    pool = machine.pool("a", "b")
    with site(pool) as client:
        with asked(client, {"model": "b", "messages": USER}):
            assert eventually(lambda: machine.loads == ["b"])
        hung_up = eventually(lambda: num_users(pool, "b") == 0)
        machine.may_load.set()
        assert hung_up
        answer = client.post(CHAT, json={"model": "b", "messages": USER})
        assert answer.status_code == 200
    assert len(engine_of(machine.loaded["b"]).requests) == 1


# The machine's memory


def write_files(root: Path, files: dict[str, str]) -> MachineMemory:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return MachineMemory(root)


MEMINFO = {"proc/meminfo": "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    600 kB\n"}


def test_free_is_what_the_system_calls_available_and_not_promised(tmp_path: Path):
    memory = write_files(tmp_path, MEMINFO)
    assert memory.free_bytes(0) == 600 * 1024
    assert memory.free_bytes(700 * 1024) == 300 * 1024
    assert memory.free_bytes(2000 * 1024) == 0


def test_a_containers_limit_counts(tmp_path: Path):
    limit = {"memory.max": "409600\n", "memory.current": "307200\n", "memory.stat": "anon 1\ninactive_file 51200\n"}
    memory = write_files(tmp_path, MEMINFO | {f"sys/fs/cgroup/{name}": text for name, text in limit.items()})
    assert memory.free_bytes(0) == 409600 - 307200 + 51200
    assert memory.free_bytes(309600) == 100000


def test_a_container_without_a_limit_has_the_machines(tmp_path: Path):
    limit = {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/memory.current": "5\n"}
    assert write_files(tmp_path, MEMINFO | limit).free_bytes(0) == 600 * 1024
