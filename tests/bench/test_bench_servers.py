"""Servers that the bench starts (`kvstet.bench.servers`), and what it finds on a machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.bench.bench_fakes import FakeServer, serving
from tests.cli.harness import eventually, is_running

from kvstet.bench import software
from kvstet.bench.servers import Local, remote
from kvstet.bench.software import Limits, Settings, Software, found_peers, kvstet, llama_server, wheel
from kvstet.errors import ServerGone

SERVER = """
import http.server, os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", child.pid, flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def settings(folder: Path) -> Settings:
    return Settings(folder / "model.gguf", folder, 4096)


def server(folder: Path, code: str = SERVER) -> Local:
    def command(settings: Settings, port: int) -> list[str]:
        return [sys.executable, "-c", code, str(port), str(settings.context_length)]

    return Local(Software("toy", "1", command), settings(folder))


def child_of(folder: Path) -> int:
    return int((folder / "toy.log").read_text().split()[-1])


def test_a_server_starts_and_nothing_of_it_is_left_when_it_is_killed(tmp_path: Path):
    toy = server(tmp_path)
    asyncio.run(toy.start())
    child = child_of(tmp_path)
    assert toy.is_running and is_running(child) and (toy.memory_bytes() or 0) > 1_000_000
    toy.kill()
    assert not toy.is_running and eventually(lambda: not is_running(child), 10)


def test_a_server_that_ends_at_once_is_told_with_its_last_words(tmp_path: Path):
    toy = server(tmp_path, "import sys; sys.exit('There is no such model.')")
    with pytest.raises(ServerGone, match=r"toy does not start: There is no such model\."):
        asyncio.run(toy.start())
    assert not toy.is_running


def test_a_server_at_rest_stands_still_and_goes_on_when_it_is_woken(tmp_path: Path):
    toy = server(tmp_path)
    asyncio.run(toy.start())
    try:
        child = psutil.Process(child_of(tmp_path))
        toy.rest()
        assert eventually(lambda: child.status() == psutil.STATUS_STOPPED, 10)
        toy.wake()
        assert eventually(lambda: child.status() != psutil.STATUS_STOPPED, 10)
    finally:
        toy.kill()


def test_a_restart_takes_another_process(tmp_path: Path):
    toy = server(tmp_path)

    async def restarted() -> tuple[str, str]:
        await toy.start()
        before = toy.url
        assert await toy.restart() > 0
        return before, toy.url

    try:
        before, after = asyncio.run(restarted())
        assert before != after and toy.is_running
    finally:
        toy.kill()


def test_it_starts_again_where_its_room_is_another_and_only_there(tmp_path: Path):
    toy = server(tmp_path)

    async def fitted() -> list[str]:
        await toy.start()
        urls = [toy.url]
        for limits in (None, Limits(512, 4), Limits(512, 4), None):
            await toy.fit(limits)
            urls.append(toy.url)
        return urls

    try:
        first, same, small, small_too, usual = asyncio.run(fitted())
        assert first == same and small == small_too and len({first, small, usual}) == 3
    finally:
        toy.kill()


def test_a_server_that_died_is_started_again_when_it_is_to_fit(tmp_path: Path):
    toy = server(tmp_path)

    async def revived() -> None:
        await toy.start()
        os.kill(psutil.Process(toy._leash.pid).children()[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
        assert eventually(lambda: not toy.is_running, 10)
        await toy.fit(None)

    try:
        asyncio.run(revived())
        assert toy.is_running
    finally:
        toy.kill()


def test_servers_die_with_whoever_started_them_even_while_they_stand_still(tmp_path: Path):
    code = (
        "import asyncio, sys, time; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from tests.bench.test_bench_servers import server\n"
        "toy = server(Path(sys.argv[3])); asyncio.run(toy.start()); toy.rest(); print('resting', flush=True)\n"
        "time.sleep(600)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code, str(root), str(root / "tests"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as bench:
        assert bench.stdout is not None and bench.stdout.readline() == b"resting\n"
        child = child_of(tmp_path)
        bench.kill()
        assert eventually(lambda: not is_running(child), 10)


def test_a_server_of_others_is_asked_for_its_model():
    other = FakeServer("other", model="coder")
    with serving(other):
        found = asyncio.run(remote(other.url + "/v1"))
        assert (found.name, found.command, found.model) == (other.url, other.url, "coder")
        assert asyncio.run(remote(f"{other.url}#small")).model == "small"
        assert found.memory_bytes() is None
        asyncio.run(found.fit(None))
        with pytest.raises(ServerGone, match="cannot be limited"):
            asyncio.run(found.fit(Limits(512, 4)))
        with pytest.raises(ServerGone, match="cannot be killed"):
            asyncio.run(found.restart())


def test_where_no_server_is_that_is_said():
    with pytest.raises(ServerGone, match=r"No server of OpenAI's API answers at http://127\.0\.0\.1:9"):
        asyncio.run(remote("http://127.0.0.1:9"))


def test_all_servers_get_the_same_room(tmp_path: Path):
    room = Settings(tmp_path / "model.gguf", tmp_path, 4096, cache_ram_mib=77, parallel=3, threads=5)
    for each in (kvstet(), llama_server("llama-server"), wheel()):
        command = " ".join(each.command(room, 1234))
        assert "-c 4096" in command and "-np 3" in command and "-t 5" in command and "--port 1234" in command
        assert "-cram 77" in command or "--cache-ram 77" in command
        assert "chatml-tools" in command and str(room.model) in command


def test_commands_are_shown_as_a_user_would_type_them(tmp_path: Path):
    shown = [each.shown(settings(tmp_path)) for each in (kvstet(), wheel())]
    assert shown[0].startswith("kvstet serve model.gguf -c 4096 ")
    assert shown[1].startswith("GOMP_SPINCOUNT=1000 python -m kvstet.bench.wheel -m model.gguf -c 4096 ")
    assert not any(str(tmp_path) in each or sys.executable in each for each in shown)


def test_llama_cpps_server_from_path_goes_before_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(software.shutil, "which", lambda name: f"/opt/{name}" if name == "llama-server" else None)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None if "fastapi" in name else object())
    (found,) = found_peers()
    assert found.command(settings(tmp_path), 1)[0] == "/opt/llama-server"
    assert found.name == "llama.cpp" and found.version == "unknown"


def test_where_nothing_is_installed_no_peer_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(software.shutil, "which", lambda name: None)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None)
    assert list(found_peers()) == []


def test_llama_cpp_python_is_found_where_its_server_can_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(software.shutil, "which", lambda name: None)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else object())
    (found,) = found_peers()
    assert (found.name, found.endpoint) == ("llama-cpp-python", "text")
    assert "--n_ctx 4096" in " ".join(found.command(settings(tmp_path), 1))
