"""Ollama as a peer: how it is started and given its one model.

Ollama itself is in no registry that tests may use. A program stands in for it that does what its documentation says:
`serve` listens where ``OLLAMA_HOST`` says and knows the models under ``OLLAMA_MODELS``, `create` asks the one that
listens to make a model of a Modelfile.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx2
import pytest

from kvstet.bench import software
from kvstet.bench.servers import Local
from kvstet.bench.software import OLLAMA_MODEL, Settings, found_peers, ollama
from kvstet.errors import ServerGone

PROGRAM = r"""
import http.server, json, os, pathlib, subprocess, sys, urllib.request

host, _, port = os.environ.get("OLLAMA_HOST", "").partition(":")
models = pathlib.Path(os.environ.get("OLLAMA_MODELS", "."))
log = pathlib.Path(__file__).with_name("calls.txt")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        listed = [{"id": path.name} for path in models.glob("*")] if models.exists() else []
        # Nothing is at /health.
        self.send_response(404 if self.path == "/health" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": listed}).encode())

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        models.mkdir(parents=True, exist_ok=True)
        (models / told["name"]).write_text(told["modelfile"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *a):
        pass


if sys.argv[1] == "--version":
    print("ollama version is 0.12.3")
elif sys.argv[1] == "serve":
    with log.open("a") as file:
        print("serve", os.environ["HOME"], os.environ["OLLAMA_KEEP_ALIVE"], file=file)
    http.server.HTTPServer((host, int(port)), Handler).serve_forever()
elif sys.argv[1] == "create":
    with log.open("a") as file:
        print("create", sys.argv[2], file=file)
    text = pathlib.Path(sys.argv[sys.argv.index("-f") + 1]).read_text()
    if not pathlib.Path(text.splitlines()[0].removeprefix("FROM ")).exists():
        sys.exit("no such file")
    body = json.dumps({"name": sys.argv[2], "modelfile": text}).encode()
    urllib.request.urlopen(f"http://{host}:{port}/api/create", body).close()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "ollama"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\n{PROGRAM}")
    path.chmod(0o755)
    return path


def settings(folder: Path) -> Settings:
    model = folder / "tiny model.gguf"
    model.touch()
    return Settings(model, folder / "bench", 4096, threads=3)


def calls(program: Path) -> list[str]:
    return program.with_name("calls.txt").read_text().splitlines()


def test_it_serves_one_model_that_is_made_once_and_touches_nothing_of_the_users(program: Path, tmp_path: Path):
    room = settings(tmp_path)
    room.folder.mkdir()
    server = Local(ollama(str(program)), room)

    async def listed() -> list[str]:
        await server.start()
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False) as client:
            before = (await client.get("/v1/models")).json()["data"]
            await server.restart()
            client.base_url = httpx2.URL(server.url)
            return [*before, *(await client.get("/v1/models")).json()["data"]]

    try:
        assert asyncio.run(listed()) == [{"id": OLLAMA_MODEL}] * 2
        assert server.model == OLLAMA_MODEL and (server.memory_bytes() or 0) > 0
    finally:
        server.kill()
    home = room.folder / "ollama"
    assert calls(program) == [f"serve {home} -1", f"create {OLLAMA_MODEL}", f"serve {home} -1", f"serve {home} -1"]
    made = (home / "models" / OLLAMA_MODEL).read_text().splitlines()
    assert made == [f"FROM {room.model}", "TEMPLATE {{ .Prompt }}", "PARAMETER num_ctx 4096", "PARAMETER num_thread 3"]


def test_why_the_model_cannot_be_made_is_told(program: Path, tmp_path: Path):
    room = settings(tmp_path)
    room.folder.mkdir()
    room.model.unlink()
    server = Local(ollama(str(program)), room)
    with pytest.raises(ServerGone, match=r"(?s)Ollama does not start: .*could not make the model \(exit status 1\)"):
        asyncio.run(server.start())


def test_a_program_that_ends_at_once_is_told(program: Path, tmp_path: Path):
    room = settings(tmp_path)
    room.folder.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys; sys.exit('no GPU')")
    server = Local(ollama(str(program)), room)
    with pytest.raises(ServerGone, match=r"(?s)no GPU.*ollama does not start"):
        asyncio.run(server.start())


def test_it_is_found_on_the_path(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(software.shutil, "which", lambda name: str(program) if name == "ollama" else None)
    monkeypatch.setattr(software.importlib.util, "find_spec", lambda name: None)
    (found,) = found_peers()
    assert (found.name, found.version, found.endpoint) == ("Ollama", "0.12.3", "text")
    shown = found.shown(settings(tmp_path))
    assert "python -m kvstet.bench.ollama ollama -m 'tiny model.gguf' --folder ollama -c 4096 -t 3" in shown
    assert str(tmp_path) not in shown
