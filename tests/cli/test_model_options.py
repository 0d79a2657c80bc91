"""Which models are served with which options: the command line, the file of options, and what both say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.exceptions import TyperException

from kvstet.cli.main import app
from kvstet.cli.models.configuration import BadModels
from kvstet.config import MIB, Lora, ModelOptions, ServedOptions, ServerOptions
from kvstet.traces.recorder import Recorder

FILE = """
[server]
port = 8000
cache-ram = 100
cors-origin = ["http://localhost:3000"]
exact-echo = false
unload-after = 60

[models.coder]
path = "coder.gguf"
aliases = ["gpt-4o", "claude"]
ctx-size = 4096
flash_attn = "on"
lora = ["style.gguf:0.5", "more.gguf"]
mlock = true
mmap = false
cache-ram = 200

[models.small]
path = "/models/small.gguf"
"""


@dataclass
class Run:
    """What would be served."""

    models: list[ServedOptions]
    server: ServerOptions
    preload: tuple[str, ...]
    unload_after_seconds: float | None
    recorder: Recorder | None

    @property
    def names(self) -> list[str | None]:
        return [model.name for model in self.models]


Serve = Callable[..., Run]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    runs: list[Run] = []

    async def note(models: list[ServedOptions], server: ServerOptions, **options: object) -> None:
        runs.append(Run(models, server, **options))

    module = import_module("kvstet.cli.serve")
    monkeypatch.setattr(module, "run", note)
    monkeypatch.setattr(module, "fetch", lambda name: Path("/hub", name.rpartition("/")[2]))
    monkeypatch.setenv("KVSTET_CACHE_DIR", "/cache")

    def run(*arguments: str) -> Run:
        typer.main.get_command(app).main(["serve", *arguments], standalone_mode=False)
        return runs[-1]

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kvstet.toml"
    path.write_text(FILE)
    return path


def test_one_model_is_called_what_its_file_says(serve: Serve):
    run = serve("a.gguf", "--alias", "gpt-4o", "--ctx-size", "0", "--lora", "x.gguf:0.25", "--lora", "y.gguf")
    (options,) = run.models
    assert (options.name, options.aliases) == (None, ("gpt-4o",))
    assert options.model == ModelOptions(Path("a.gguf"), lora=(Lora(Path("x.gguf"), 0.25), Lora(Path("y.gguf"))))
    assert options.engine.cache_folder == Path("/cache")
    assert (run.preload, run.unload_after_seconds) == ((), None)


def test_several_are_called_by_their_files_or_as_the_user_says(serve: Serve):
    named = ("a.gguf", "--model", "dir/b-00001-of-00002.gguf", "--model", "c=d=e.gguf", "--model", "hf:o/r.gguf")
    run = serve(*named, "--preload", "c", "--unload-after", "0")
    assert run.names == ["a", "b", "c", "r"]
    assert [str(model.model.path) for model in run.models[2:]] == ["d=e.gguf", "/hub/r.gguf"]
    assert (run.preload, run.unload_after_seconds) == (["c"], 0)


def test_a_file_sets_options_of_the_server_and_of_each_model(serve: Serve, file: Path):
    run = serve("--config", str(file))
    assert (run.server.port, run.server.cors_origins, run.server.echoes) == (8000, ("http://localhost:3000",), False)
    assert run.unload_after_seconds == 60
    coder, small = run.models
    assert (coder.name, coder.aliases) == ("coder", ("gpt-4o", "claude"))
    beside = file.parent
    assert coder.model == ModelOptions(
        beside / "coder.gguf",
        ctx_size=4096,
        flash_attn="on",
        mlock=True,
        mmap=False,
        lora=(Lora(beside / "style.gguf", 0.5), Lora(beside / "more.gguf")),
    )
    assert small.model == ModelOptions(Path("/models/small.gguf"))
    assert [model.engine.cache_ram_bytes for model in run.models] == [200 * MIB, 100 * MIB]


def test_the_command_line_prevails(serve: Serve, file: Path, monkeypatch: pytest.MonkeyPatch):
    options = ("--port", "1", "--ctx-size", "512", "--cache-ram", "2048", "--model", "small=other.gguf", "--mmap")
    run = serve("--config", str(file), *options)
    assert run.server.port == 1
    assert run.names == ["small", "coder"]
    assert run.models[0].model.path == Path("other.gguf")
    assert [model.model.ctx_size for model in run.models] == [512, 512]
    # Said aloud, a default prevails too.
    assert {model.engine.cache_ram_bytes for model in run.models} == {2048 * MIB}
    assert all(model.model.mmap for model in run.models)
    monkeypatch.setenv("KVSTET_API_KEY", "one")
    file.write_text('[server]\napi-key = ["two"]\n')
    assert [key.secret for key in serve("a.gguf", "--config", str(file)).server.api_keys] == ["one"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = 1", "known are"),
        ("[server]\nprot = 1", r"\[server\] knows no 'prot'"),
        ("[server]\nmodel = 'a.gguf'", "knows no 'model'"),
        ("[server]\nport = 99999", r"\[server\], port: .*65535"),
        ("[server]\nport = true", "port"),
        ("[server]\nport = [1, 2]", "one value"),
        ("[server]\nexact-echo = 1", "true or false"),
        ("[models.a]\npath = 'a.gguf'\nparalel = 2", r"\[models.a\] knows no 'paralel'"),
        ("[models.a]\npath = 'a.gguf'\nport = 2", "knows no 'port'"),
        ("[models.a]\npath = 'a.gguf'\nctx-size = 'many'", "ctx_size"),
        ("[models.a]\npath = 'a.gguf'\nflash-attn = 'maybe'", "maybe"),
        ("[models.a]\nctx-size = 2", "needs path"),
        ("models = 3", "to be a table"),
        ("[server", "not TOML"),
        ("[models.a]\npath='a.gguf'\naliases=['x']\n[models.b]\npath='b.gguf'\naliases=['x']", "Two models.*'x'"),
        ("[models.a]\npath='a.gguf'\naliases=['b']\n[models.b]\npath='b.gguf'", "Two models.*'b'"),
    ],
)
def test_what_the_file_says_wrongly_is_named(text: str, words: str, serve: Serve, file: Path):
    file.write_text(text)
    with pytest.raises(BadModels, match=words):
        serve("--config", str(file))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "x/a.gguf", "--model", "y/a.gguf"), "Two models.*'a'"),
        (("a.gguf", "--model", "b.gguf", "--alias", "c"), "--alias is for one"),
        (("a.gguf", "--model", "b.gguf", "--lora", "c"), "--lora is for one"),
        (("--config", "none.toml"), "Cannot read none.toml"),
    ],
)
def test_what_does_not_go_together_is_told(arguments: tuple[str, ...], words: str, serve: Serve):
    with pytest.raises(BadModels, match=words):
        serve(*arguments)


def test_a_negative_rest_is_refused(serve: Serve):
    with pytest.raises(TyperException):
        serve("a.gguf", "--unload-after", "-1")
