"""`kvstet launch`: fake clients write down how they were started, and by a fake server."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tests.cli.harness import command, eventually

from kvstet.cli.clients import CLIENTS, Client, Target, client_named
from kvstet.cli.clients.client import FOLDER, MAX_REPLY_TOKENS
from kvstet.cli.clients.server import CannotLaunch, base_url
from kvstet.cli.main import main

KEY = "open sesame's \\ key"
MODEL = "hf:some/Model 8B"
CONTEXT = 65_536

INSTALLED = [client for client in CLIENTS if client.executables]

FAKE = """\
#!{python}
import json, os, re, signal, stat, sys, time
from pathlib import Path

found = re.search({pattern!r}, " ".join([*sys.argv, *os.environ.values()]))
folder = Path(found[0]) if found else None
seen = dict(
    arguments=sys.argv[1:],
    environment=dict(os.environ),
    folder=str(folder) if folder else None,
    mode=stat.S_IMODE(folder.stat().st_mode) if folder else None,
    files={{path.name: path.read_text() for path in folder.iterdir()}} if folder else {{}},
    modes=[stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] if folder else [],
    is_terminal=sys.stdin.isatty(),
)
out = Path(os.environ["FAKE_OUT"])
part = out.with_suffix(".part")
part.write_text(json.dumps(seen))
part.rename(out)
{then}
"""

WAITS = """
caught = []
def note(number, frame):
    caught.append(number)
    Path(os.environ["FAKE_OUT"] + ".caught").write_text(json.dumps(caught))
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, note)
Path(os.environ["FAKE_OUT"] + ".ready").touch()
deadline = time.monotonic() + 100
while not caught and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.3)  # For a second signal that should not come.
sys.exit(7)
"""


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


@dataclass
class Place:
    """A machine of a user's: programs, a home, a folder for temporary files, and what a fake client has seen."""

    root: Path
    out: Path = field(init=False)

    def __post_init__(self) -> None:
        self.out = self.root / "seen.json"
        for path in (self.bin, self.home, self.temporary):
            path.mkdir()

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    def install(self, name: str, then: str = "sys.exit(0)") -> None:
        """A fake client; it finds its folder as the directory of the first path that lies among temporary files."""
        path = self.bin / name
        path.write_text(
            FAKE.format(python=sys.executable, pattern=f"{re.escape(str(self.temporary))}/[^/ ]+", then=then)
        )
        path.chmod(0o755)

    def seen(self) -> dict[str, Any]:
        return json.loads(self.out.read_text())

    def snapshot(self) -> dict[str, tuple[bytes, int]]:
        """Everything in the home, with contents and times."""
        return {
            str(path): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
            for path in sorted(self.home.rglob("*"))
        }


USERS_OWN = {
    ".claude/settings.json": '{"env": {"ANTHROPIC_BASE_URL": "https://elsewhere.example"}}',
    ".claude.json": "{}",
    ".codex/config.toml": 'model = "mine"\n',
    ".codex/auth.json": "{}",
    ".config/opencode/opencode.json": "{}",
    ".pi/agent/settings.json": "{}",
    ".cline/data/settings/providers.json": "{}",
    ".qwen/settings.json": "{}",
    ".aider.conf.yml": "model: mine\n",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    place = Place(tmp_path)
    for name, content in USERS_OWN.items():
        (place.home / name).parent.mkdir(parents=True, exist_ok=True)
        (place.home / name).write_text(content)
    # Nothing of this machine's: proxies and keys would be passed on.
    for name in list(os.environ):
        if not name.startswith("PYTEST_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{place.bin}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(place.home))
    monkeypatch.setenv("TMPDIR", str(place.temporary))
    monkeypatch.setenv("FAKE_OUT", str(place.out))
    monkeypatch.setattr(tempfile, "tempdir", str(place.temporary))
    return place


@dataclass
class Server:
    """What a kvstet says of its models, and the keys it was shown."""

    url: str = ""
    listed: list[dict[str, Any]] = field(default_factory=lambda: [listing(MODEL, CONTEXT), listing("other", 1000)])
    unlisted: tuple[str, ...] = ()
    status: int = 200
    keys: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, Any]:
        if self.status != 200:
            return self.status, {}
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.listed}
        name = path.removeprefix("/v1/models/")
        return (200, listing(name, 2000)) if name in self.unlisted else (404, {})


def listing(name: str, context_length: int | None) -> dict[str, Any]:
    meta = {"n_vocab": 10} if context_length is None else {"n_vocab": 10, "n_ctx": context_length}
    return {"id": name, "object": "model", "meta": meta}


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.keys.append(self.headers["authorization"])
            status, body = state.answer(unquote(self.path))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with closing_server(Handler) as listener:
        state.url = f"http://127.0.0.1:{listener.server_address[1]}"
        yield state


class closing_server(ThreadingHTTPServer):
    """Serves in a thread for as long as the block lasts."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))

    def __enter__(self) -> closing_server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`kvstet launch ARGUMENTS` in this process; the client is one of its own."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["kvstet", "launch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def launched(place: Place, server: Server, run: Run) -> Callable[..., dict[str, Any]]:
    """What a client has seen that was started with the usual key, on the server's first model."""

    def launched(client: str, *words: str) -> dict[str, Any]:
        known = client_named(client)
        assert known is not None
        place.install(known.executables[0])
        ended = run(client, "--url", server.url, "--api-key", KEY, "--", *words)
        assert ended == Ended(0, "", "")
        return place.seen()

    return launched


# What holds for each of them


@pytest.mark.parametrize("client", INSTALLED, ids=lambda client: client.name)
def test_a_client_is_told_address_key_model_and_its_users_words(
    client: Client, launched: Callable[..., dict[str, Any]], server: Server
) -> None:
    seen = launched(client.name, "-p", "what's this?", "--", "--print")

    told = " ".join([*seen["arguments"], *seen["environment"].values(), *seen["files"].values()])
    assert server.url in told
    assert KEY in seen["environment"].values() or json.dumps(KEY) in told
    assert MODEL in told
    assert seen["arguments"][-4:] == ["-p", "what's this?", "--", "--print"]
    assert FOLDER not in told
    assert not any(KEY in word for word in seen["arguments"]), "others on the machine could read it"


@pytest.mark.parametrize("client", [one for one in INSTALLED if one.name != "mini"], ids=lambda client: client.name)
def test_a_client_is_told_how_long_the_context_is(client: Client, launched: Callable[..., dict[str, Any]]) -> None:
    seen = launched(client.name)

    told = " ".join([*seen["arguments"], *seen["environment"].values(), *seen["files"].values()])
    assert str(CONTEXT) in told or str(CONTEXT - CONTEXT // 4) in told


@pytest.mark.parametrize("client", INSTALLED, ids=lambda client: client.name)
def test_nothing_of_the_users_changes_and_nothing_is_left(
    client: Client, launched: Callable[..., dict[str, Any]], place: Place
) -> None:
    before = place.snapshot()

    seen = launched(client.name)

    assert place.snapshot() == before
    assert list(place.temporary.iterdir()) == []
    assert seen["environment"]["HOME"] == str(place.home)
    # Sessions and logins live where these point.
    moved = {"CODEX_HOME", "CLAUDE_CONFIG_DIR", "PI_CODING_AGENT_DIR", "CLINE_DIR", "CLINE_DATA_DIR", "XDG_CONFIG_HOME"}
    assert not moved & set(seen["environment"])


@pytest.mark.parametrize("name", ["claude", "pi", "cline", "qwen", "aider"])
def test_files_are_the_users_alone(name: str, launched: Callable[..., dict[str, Any]]) -> None:
    seen = launched(name)

    assert seen["files"]
    assert seen["mode"] == 0o700
    assert set(seen["modes"]) == {0o600}
    assert not Path(seen["folder"]).exists()


@pytest.mark.parametrize("client", INSTALLED, ids=lambda client: client.name)
def test_the_printed_script_does_the_same(
    client: Client,
    launched: Callable[..., dict[str, Any]],
    place: Place,
    server: Server,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a real one")
    started = launched(client.name, "-p", "what's $HOME?")

    shown = run(client.name, "--print", "--url", server.url, "--api-key", KEY, "--", "-p", "what's $HOME?")
    # Libraries in this process may have put variables into its environment that Python does not know of.
    subprocess.run(["/bin/sh", "-eu", "-c", shown.out], check=True, timeout=120, env=dict(os.environ))

    assert comparable(place.seen()) == comparable(started)


SHELLS_OWN = {"_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES"}


def comparable(seen: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between any two starts."""
    folder = seen["folder"] or "\0"
    kept = {name: value for name, value in seen["environment"].items() if name not in SHELLS_OWN}
    return {
        "arguments": [word.replace(folder, FOLDER) for word in seen["arguments"]],
        "environment": {name: value.replace(folder, FOLDER) for name, value in kept.items()},
        "files": seen["files"],
    }


def test_each_name_means_one_client() -> None:
    names = [name for client in CLIENTS for name in client.names]

    assert len(names) == len(set(names))
    assert all(client_named(name) is client for client in CLIENTS for name in client.names)
    assert client_named("nothing") is None


# Each of them


def test_claude_code_is_told_twice_so_that_the_users_settings_cannot_point_it_elsewhere(
    launched: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a real one")
    monkeypatch.setenv("CLAUDE_CODE_USE_BEDROCK", "1")

    seen = launched("claude")

    environment = seen["environment"]
    assert environment["ANTHROPIC_BASE_URL"] == server.url
    assert environment["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"
    assert environment["CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC"] == "1"
    assert environment["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == str(CONTEXT)
    assert environment["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == str(CONTEXT // 4)
    assert {environment[f"ANTHROPIC_DEFAULT_{size}_MODEL"] for size in ("OPUS", "SONNET", "HAIKU")} == {MODEL}
    assert "ANTHROPIC_API_KEY" not in environment
    assert "CLAUDE_CODE_USE_BEDROCK" not in environment
    settings = json.loads(seen["files"]["settings.json"])["env"]
    assert all(environment[name] == value for name, value in settings.items() if value)
    assert settings["ANTHROPIC_AUTH_TOKEN"] == KEY
    assert settings["ANTHROPIC_API_KEY"] == ""
    assert seen["arguments"] == ["--settings", f"{seen['folder']}/settings.json"]


def test_codex_gets_options_that_are_toml(launched: Callable[..., dict[str, Any]], server: Server) -> None:
    seen = launched("codex", "exec", "go")

    words = seen["arguments"]
    assert words[-2:] == ["exec", "go"]
    assert set(words[:-2:2]) == {"-c"}
    config = tomllib.loads("\n".join(words[1:-2:2]))
    provider = config["model_providers"]["kvstet"]
    assert (config["model"], config["model_provider"]) == (MODEL, "kvstet")
    assert (provider["base_url"], provider["wire_api"]) == (f"{server.url}/v1", "responses")
    assert seen["environment"][provider["env_key"]] == KEY
    assert config["model_auto_compact_token_limit"] < config["model_context_window"] == CONTEXT
    assert seen["files"] == {}


def test_opencode_does_not_prune(launched: Callable[..., dict[str, Any]], server: Server) -> None:
    config = json.loads(launched("opencode")["environment"]["OPENCODE_CONFIG_CONTENT"])

    assert config["compaction"]["prune"] is False
    assert config["autoupdate"] is False
    assert config["model"] == config["small_model"] == f"kvstet/{MODEL}"
    provider = config["provider"]["kvstet"]
    assert provider["options"] == {"baseURL": f"{server.url}/v1", "apiKey": KEY, "timeout": False}
    assert provider["models"][MODEL]["limit"] == {"context": CONTEXT, "output": CONTEXT // 4}
    assert provider["models"][MODEL]["interleaved"] == {"field": "reasoning_content"}


def test_pi_gets_an_extension_without_the_key(launched: Callable[..., dict[str, Any]], server: Server) -> None:
    seen = launched("pi")

    extension = seen["files"]["kvstet.ts"]
    assert f'baseUrl: "{server.url}/v1"' in extension
    assert "apiKey: process.env.KVSTET_API_KEY" in extension
    assert KEY not in extension
    assert seen["environment"]["KVSTET_API_KEY"] == KEY
    assert seen["arguments"] == ["-e", f"{seen['folder']}/kvstet.ts", "--provider", "kvstet", "--model", MODEL]


def test_cline_reads_its_providers_from_the_folder(launched: Callable[..., dict[str, Any]], server: Server) -> None:
    seen = launched("cline")

    environment = seen["environment"]
    assert environment["CLINE_PROVIDER_SETTINGS_PATH"] == f"{seen['folder']}/providers.json"
    assert environment["CLINE_SESSION_BACKEND_MODE"] == "local"
    stored = json.loads(seen["files"]["providers.json"])
    provider = stored["providers"][stored["lastUsedProvider"]]["settings"]
    assert (provider["baseUrl"], provider["apiKey"], provider["model"]) == (f"{server.url}/v1", KEY, MODEL)
    models = json.loads(seen["files"]["models.json"])["providers"][stored["lastUsedProvider"]]["models"]
    assert models[MODEL]["contextWindow"] == CONTEXT


def test_qwen_code_remembers_nothing(launched: Callable[..., dict[str, Any]], server: Server) -> None:
    seen = launched("qwen-code")

    assert seen["environment"]["QWEN_CODE_SYSTEM_SETTINGS_PATH"] == f"{seen['folder']}/settings.json"
    settings = json.loads(seen["files"]["settings.json"])
    assert set(settings["memory"].values()) == {False}
    [provider] = settings["modelProviders"]["openai"]
    assert (
        (provider["id"], provider["baseUrl"])
        == (MODEL, f"{server.url}/v1")
        == (
            settings["model"]["name"],
            seen["environment"]["OPENAI_BASE_URL"],
        )
    )
    assert seen["environment"][provider["envKey"]] == KEY


def test_aiders_key_stands_over_an_env_file_in_the_project(launched: Callable[..., dict[str, Any]]) -> None:
    seen = launched("aider")

    words = seen["arguments"]
    assert words[words.index("--env-file") + 1] == f"{seen['folder']}/env"
    assert words[words.index("--map-refresh") + 1] == "files"
    # What is quoted is as python-dotenv and a shell would read it, but for the escapes.
    escaped = KEY.replace("\\", "\\\\").replace("'", "\\'")
    assert f"OPENAI_API_KEY='{escaped}'\n" in seen["files"]["env"]
    assert f"openai/{MODEL}" in json.loads(seen["files"]["metadata.json"])


def test_the_usual_variables_reach_any_command(place: Place, server: Server, run: Run) -> None:
    place.install("anything")

    ended = run("env-openai", "--url", server.url, "--", "anything", "--help")

    assert ended.status == 0
    seen = place.seen()
    assert seen["arguments"] == ["--help"]
    assert seen["environment"]["OPENAI_BASE_URL"] == f"{server.url}/v1"
    assert seen["environment"]["OPENAI_API_KEY"] == "no-key"
    assert seen["environment"]["OPENAI_MODEL"] == MODEL


def test_without_a_command_the_variables_are_printed_for_eval(server: Server, place: Place, run: Run) -> None:
    shown = run("env-anthropic", "--url", f"{server.url}/v1/", "--api-key", KEY)

    read = 'eval "$1"; printf %s "$ANTHROPIC_BASE_URL $ANTHROPIC_AUTH_TOKEN $ANTHROPIC_MODEL"'
    said = subprocess.run(["/bin/sh", "-euc", read, "-", shown.out], check=True, capture_output=True, text=True)
    assert said.stdout == f"{server.url} {KEY} {MODEL}"


def test_no_shell_gets_variables_of_a_server_that_is_not_there(run: Run, place: Place) -> None:
    ended = run("env-openai", "--url", "127.0.0.1:9")

    assert (ended.status, ended.out) == (1, "")
    assert "No server answers" in ended.err


# What the server is asked


def test_the_server_is_shown_the_key_of_the_environment(
    place: Place, server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.install("pi")
    monkeypatch.setenv("KVSTET_URL", server.url)
    monkeypatch.setenv("KVSTET_API_KEY", "sesame")

    assert run("pi").status == 0
    assert server.keys == ["Bearer sesame"]
    assert place.seen()["environment"]["KVSTET_API_KEY"] == "sesame"


def test_a_model_can_be_named(place: Place, server: Server, run: Run) -> None:
    place.install("codex")

    assert run("codex", "--url", server.url, "--model", "other").status == 0
    assert {'model="other"', "model_context_window=1000"} <= set(place.seen()["arguments"])


def test_a_name_that_is_not_listed_may_be_served(place: Place, server: Server, run: Run) -> None:
    place.install("codex")
    server.unlisted = ("an/alias of it",)

    assert run("codex", "--url", server.url, "--model", "an/alias of it").status == 0
    assert {'model="an/alias of it"', "model_context_window=2000"} <= set(place.seen()["arguments"])


def test_a_model_that_is_not_there_is_told_with_those_that_are(place: Place, server: Server, run: Run) -> None:
    place.install("codex")

    ended = run("codex", "--url", server.url, "--model", "none of them")

    assert ended.status == 1
    assert f"no model 'none of them'. It has: {MODEL}, other." in ended.err
    assert not place.out.exists()


def test_the_context_can_be_set(place: Place, server: Server, run: Run) -> None:
    place.install("codex")

    assert run("codex", "--url", server.url, "--context", 12_345).status == 0
    assert "model_context_window=12345" in place.seen()["arguments"]


def test_a_context_that_the_server_does_not_tell_is_assumed_and_said(place: Place, server: Server, run: Run) -> None:
    place.install("pi")
    server.listed = [listing("unknown", None)]

    ended = run("pi", "--url", server.url)

    assert ended.status == 0
    assert "32,768 tokens are assumed" in ended.err
    assert '"contextWindow": 32768' in place.seen()["files"]["kvstet.ts"]


def test_a_context_in_which_the_client_hardly_fits_is_said(place: Place, server: Server, run: Run) -> None:
    place.install("claude")

    ended = run("claude", "--url", server.url, "--model", "other")

    assert "Claude Code take about 12,000 of the context's 1,000 tokens" in ended.err


def test_where_no_server_answers_nothing_is_started(place: Place, run: Run) -> None:
    place.install("claude")

    ended = run("claude", "--url", "http://127.0.0.1:9")

    assert ended.status == 1
    assert "No server answers at http://127.0.0.1:9. Start one with `kvstet serve MODEL.gguf --port 9`" in ended.err
    assert not place.out.exists()


@pytest.mark.parametrize(("status", "told"), [(401, "wants another API key"), (503, "it answered 503")])
def test_a_server_that_refuses_is_told(status: int, told: str, place: Place, server: Server, run: Run) -> None:
    place.install("claude")
    server.status = status

    ended = run("claude", "--url", server.url)

    assert ended.status == 1
    assert told in ended.err
    assert not place.out.exists()


def test_what_is_no_list_of_models_is_told(place: Place, server: Server, run: Run) -> None:
    place.install("claude")
    server.listed = [{"name": "no id"}]

    assert "is no kvstet" in run("claude", "--url", server.url).err


def test_printing_needs_no_server(run: Run, place: Place) -> None:
    shown = run("claude", "--print", "--url", "127.0.0.1:9")

    assert shown.status == 0
    assert "# Note: No server answers at http://127.0.0.1:9." in shown.out
    assert "export ANTHROPIC_BASE_URL=http://127.0.0.1:9\n" in shown.out
    assert "# Switched off: the billing line" in shown.out


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:8080", "http://localhost:8080"),
        ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
        ("https://box.example/kvstet", "https://box.example/kvstet"),
    ],
)
def test_an_address_is_taken_as_users_write_it(text: str, url: str) -> None:
    assert base_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://box", "http://", "http://box:port"])
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(CannotLaunch, match="is not an address like"):
        base_url(text)


def test_a_proxy_is_not_asked_for_the_server(
    launched: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "intranet.example")

    environment = launched("codex")["environment"]

    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet.example,127.0.0.1"


def test_without_a_proxy_there_is_no_word_of_proxies(launched: Callable[..., dict[str, Any]]) -> None:
    assert "NO_PROXY" not in launched("codex")["environment"]


# What is there


def test_a_client_that_is_not_installed_is_told_with_how_to_get_it(place: Place, server: Server, run: Run) -> None:
    ended = run("opencode", "--url", server.url)

    assert ended.status == 1
    assert "There is no `opencode` in PATH. Install it with `npm install -g opencode-ai`." in ended.err


def test_a_second_executable_will_do(place: Place, server: Server, run: Run) -> None:
    place.install("mini-swe-agent")

    assert run("mini", "--url", server.url).status == 0
    assert place.seen()["arguments"] == ["-m", f"openai/{MODEL}"]


def test_a_client_that_does_not_start_is_told_and_leaves_nothing(place: Place, server: Server, run: Run) -> None:
    place.install("claude")
    (place.bin / "claude").write_text("#!/no/such/interpreter\n")

    ended = run("claude", "--url", server.url)

    assert ended.status == 1
    assert f"{place.bin / 'claude'} cannot be started: No such file or directory." in ended.err
    assert list(place.temporary.iterdir()) == []


@pytest.mark.parametrize("words", [(), ("nonesuch",)])
def test_a_client_that_is_not_known_is_told_with_those_that_are(words: tuple[str, ...], run: Run) -> None:
    ended = run(*words)

    assert ended.status == 2
    assert "claude, codex, opencode" in " ".join(ended.err.replace("│", "").split())


def test_the_list_says_what_is_installed(place: Place, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    place.install("qwen")

    listed = run("--list").out.splitlines()

    assert len(listed) == 1 + len(CLIENTS)
    assert next(line for line in listed if str(place.bin / "qwen") in line).startswith("qwen, qwen-code")
    assert sum("not installed" in line for line in listed) == len(INSTALLED) - 1


def test_a_client_may_ask_for_a_quarter_of_a_short_context() -> None:
    def most(context_length: int) -> int:
        return Target("http://box", KEY, MODEL, context_length).max_reply_tokens

    assert (most(4096), most(1_000_000), most(1)) == (1024, MAX_REPLY_TOKENS, 1)
    assert KEY not in repr(Target("http://box", KEY, MODEL, 1))


# While it runs


def test_the_exit_status_is_the_clients(place: Place, server: Server, run: Run) -> None:
    place.install("claude", "sys.exit(42)")

    assert run("claude", "--url", server.url).status == 42


def test_a_client_that_a_signal_ends_gives_the_shells_status(place: Place, server: Server, run: Run) -> None:
    place.install("claude", "os.kill(os.getpid(), signal.SIGKILL)")

    assert run("claude", "--url", server.url).status == 128 + signal.SIGKILL
    assert list(place.temporary.iterdir()) == []


def test_signal_handlers_are_as_before(launched: Callable[..., dict[str, Any]]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    launched("claude")

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


# Whoever runs these tests may ignore signals, as nohup does, and children would inherit that.
HEARING = (
    "import os, signal, sys;"
    "[signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)];"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_reaches_the_client_and_the_folder_goes(number: int, place: Place, server: Server) -> None:
    place.install("claude", WAITS)
    launch = [sys.executable, "-c", HEARING, *command("launch", "claude", "--url", server.url)]
    with subprocess.Popen(launch, stdin=subprocess.DEVNULL, start_new_session=True) as process:
        assert eventually(Path(f"{place.out}.ready").exists)
        folder = Path(place.seen()["folder"])
        assert stat.S_ISDIR(folder.stat().st_mode)

        process.send_signal(number)

        assert process.wait(120) == 7
    assert json.loads(Path(f"{place.out}.caught").read_text()) == [number]
    assert not folder.exists()


IN_A_TERMINAL = "import os, sys; os.login_tty(0); os.execv(sys.argv[1], sys.argv[1:])"


def test_ctrl_c_in_a_terminal_reaches_the_client_once(place: Place, server: Server) -> None:
    place.install("claude", WAITS)
    ours, theirs = pty.openpty()
    try:
        started = [sys.executable, "-c", IN_A_TERMINAL, *command("launch", "claude", "--url", server.url)]
        with subprocess.Popen(started, stdin=theirs) as process:
            assert eventually(Path(f"{place.out}.ready").exists)
            assert place.seen()["is_terminal"]
            assert f"Claude Code -> {MODEL} at {server.url}" in os.read(ours, 10_000).decode()

            os.write(ours, b"\x03")

            assert process.wait(120) == 7
    finally:
        os.close(ours)
        os.close(theirs)
    assert json.loads(Path(f"{place.out}.caught").read_text()) == [signal.SIGINT]
    assert list(place.temporary.iterdir()) == []
