"""Who may come in, as it is set on the command line and in the environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import typer
from tests.cli.harness import Body, serving, user

from kvstet.api.access import BadAccess
from kvstet.cli.main import app
from kvstet.config import ApiKey, ServerOptions
from kvstet.errors import InvalidRequest

SECRET = "xyzzy-plugh"

Serve = Callable[..., ServerOptions]


@pytest.fixture
def options_of(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs ``kvstet serve`` with arguments, but for the serving; returns what would be served."""
    served: list[ServerOptions] = []

    async def note(models: object, server: ServerOptions, **_: object) -> None:
        served.append(server)

    monkeypatch.setattr(import_module("kvstet.cli.serve"), "run", note)
    monkeypatch.delenv("KVSTET_API_KEY", raising=False)
    monkeypatch.delenv("KVSTET_API_KEY_FILE", raising=False)

    def serve(*arguments: str) -> ServerOptions:
        typer.main.get_command(app).main(["serve", "model.gguf", *arguments], standalone_mode=False)
        return served[-1]

    return serve


def key_file(folder: Path) -> Path:
    path = folder / "keys.toml"
    path.write_text('[keys.ali]\nkey = "sesame"\nmax_concurrent = 1\n')
    path.chmod(0o600)
    return path


def test_all_doors_are_as_said_by_default(options_of: Serve):
    options = options_of()
    assert (options.api_keys, options.allowed_hosts, options.cors_origins) == ((), (), ())


def test_options_of_access_can_be_repeated(options_of: Serve):
    options = options_of(
        *("--api-key", "one", "--api-key", "two"),
        *("--allowed-host", "Box.example:8080", "--allowed-host", "::1"),
        *("--cors-origin", "http://localhost:3000/", "--cors-origin", "https://app.example"),
    )
    assert options.api_keys == (ApiKey("key-1", "one"), ApiKey("key-2", "two"))
    assert options.allowed_hosts == ("box.example", "[::1]")
    assert options.cors_origins == ("http://localhost:3000", "https://app.example")


def test_the_environment_may_hold_keys(options_of: Serve, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KVSTET_API_KEY", "one two")
    assert options_of().api_keys == (ApiKey("key-1", "one"), ApiKey("key-2", "two"))
    assert options_of("--api-key", "three").api_keys == (ApiKey("key-1", "three"),)


def test_a_file_holds_named_keys(options_of: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    ali = ApiKey("ali", "sesame", max_concurrent=1)
    assert options_of("--api-key-file", str(key_file(tmp_path))).api_keys == (ali,)
    monkeypatch.setenv("KVSTET_API_KEY_FILE", str(key_file(tmp_path)))
    assert options_of("--api-key", "one").api_keys == (ali, ApiKey("key-1", "one"))


def test_prompts_are_read_exactly_by_default(options_of: Serve):
    options = options_of()
    assert (options.fidelity, options.no_substitute) == ("exact", ())


def test_server_and_key_say_how_faithfully_prompts_are_read(options_of: Serve, tmp_path: Path):
    keys = key_file(tmp_path)
    keys.write_text('[keys.ali]\nkey = "sesame"\nfidelity = "approximate"\n')
    file = tmp_path / "options.toml"
    file.write_text('[server]\nfidelity = "equivalent"\nno-substitute = ["date", "Clock"]\n')
    options = options_of("--config", str(file), "--api-key-file", str(keys))
    assert (options.fidelity, options.no_substitute) == ("equivalent", ("clock", "date"))
    assert options.api_keys == (ApiKey("ali", "sesame", fidelity="approximate"),)
    options = options_of("--fidelity", "exact", "--no-substitute", "counter", "--config", str(file))
    assert (options.fidelity, options.no_substitute) == ("exact", ("counter",))


def test_what_cannot_be_substituted_cannot_be_switched_off(options_of: Serve):
    with pytest.raises(InvalidRequest, match="no substitution named 'weather'"):
        options_of("--no-substitute", "weather")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", ""],
        ["--api-key", "one "],
        ["--api-key-file", "none.toml"],
        ["--allowed-host", "http://box.example"],
        ["--cors-origin", "localhost:3000"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_used_is_told_before_anything_is_loaded(arguments: list[str], options_of: Serve):
    with pytest.raises(BadAccess):
        options_of(*arguments)


def test_a_served_model_holds_to_them_and_logs_nothing_of_what_is_asked(tmp_path: Path):
    path = key_file(tmp_path)
    path.chmod(0o644)
    options = ("--api-key-file", str(path), "--allowed-host", "box.example", "--cors-origin", "http://localhost:3000")
    with serving(tmp_path, *options) as served, served.http() as client:
        assert client.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert client.get("/v1/models", headers={"host": "box.example"}).status_code == 200
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        response = client.get("/v1/models", headers={"origin": "http://localhost:3000"})
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        statuses = [client.post("/v1/chat/completions", content=body).status_code for body in bodies()]
        assert statuses == [200, 200, 400, 400, 400]
        assert served.metric('kvstet_key_requests_total{admission="admitted",key="ali"}') == len(statuses)
    assert "can be read by others than its owner" in served.text
    assert "length: 4 tokens" in served.text
    for secret in (SECRET, "sesame"):
        assert secret not in served.text


def bodies() -> list[bytes]:
    """Requests with a secret in all places: two good ones, two of which libllama could make nothing, and no JSON."""
    schema = {"type": "object", "properties": {SECRET: {"type": "string"}}, "required": [SECRET]}
    tool = {"type": "function", "function": {"name": SECRET, "description": SECRET, "parameters": schema}}
    fields: list[Body] = [
        {"tools": [tool]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": SECRET, "schema": schema}}},
        {"grammar": f"root ::= {SECRET} ("},
        {"json_schema": {"$ref": f"#/{SECRET}"}},
    ]
    good = [json.dumps({"messages": user(SECRET), "max_tokens": 4, **more}).encode() for more in fields]
    return [*good, f'{{"messages": "{SECRET}'.encode()]
