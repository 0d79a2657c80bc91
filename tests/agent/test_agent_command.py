"""``kvstet agent`` as a user starts it: a process of its own, against a scripted server, and on a real terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import sqlite3
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.agent_upstream import Raw, in_order, upstream
from kvstet.agent.model import saying
from kvstet.cli.agent import with_latest
from kvstet.cli.agent_model import Choice, chosen
from kvstet.cli.main import app, main
from kvstet.dialects.reply import Failure
from kvstet.types import Usage

USAGE = Usage(num_input_tokens=1_000, num_cache_read_tokens=900, num_output_tokens=10)
WRITE = ("w", "write", '{"path": "made.txt", "content": "made\\n"}')
KEY = "planted-key-123"

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(slots=True)
class Home:
    """A user's folders, and what they have in their environment."""

    folder: Path

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if "KVSTET" not in name and "KEY" not in name}
        return {
            **plain,
            "HOME": str(self.folder),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "KVSTET_LEDGER": str(self.folder / "ledger" / "ledger.sqlite"),
            "KVSTET_API_KEY": KEY,
            "ANTHROPIC_API_KEY": KEY,
        }

    def run(self, *words: str, typed: str = "", key: str = KEY) -> Finished:
        """In this process, since starting one takes longer than most of what is tested."""
        output, notes = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(notes):
            patch.setattr(os, "environ", {**self.environment, "KVSTET_API_KEY": key})
            patch.setattr(sys, "argv", ["kvstet", "agent", *words])
            patch.setattr(sys, "stdin", io.StringIO(typed))
            patch.chdir(self.work)
            with pytest.raises(SystemExit) as ended:
                main()
        return Finished(int(ended.value.code or 0), output.getvalue(), notes.getvalue())

    def ledger(self) -> list[dict[str, object]]:
        with sqlite3.connect(self.folder / "ledger" / "ledger.sqlite") as database:
            database.row_factory = sqlite3.Row
            rows = [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY id")]
        database.close()
        return rows


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "README.md").write_text("# Work\n")
    return Home(tmp_path)


def session_of(finished: Finished) -> str:
    found = re.search(r"session (\d{8}-[0-9a-f]{8})", finished.stderr)
    assert found, finished.stderr
    return found[1]


def test_a_task_is_done_and_its_answer_is_all_of_standard_output(home: Home) -> None:
    script = in_order(saying("I write.", WRITE, usage=USAGE), saying("Done.", usage=USAGE))
    with upstream(script) as server:
        finished = home.run("Make it.", "--url", server.url, "--model", "m", "--yes")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "I write.\nDone.\n"
    assert (home.work / "made.txt").read_text() == "made\n"
    for line in (
        "● write {",
        "step 1: prompt 1,000, cached 900 (90.0%), written ?, output 10",
        "total of 2 requests: prompt 2,000, cached 1,800 (90.0%)",
    ):
        assert line in finished.stderr
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert server.bodies[0]["max_tokens"] == 16_000


def test_each_request_is_in_the_ledger_and_no_text_is(home: Home) -> None:
    with upstream(in_order(saying("A secret plan.", WRITE, usage=USAGE), saying("Done."))) as server:
        finished = home.run("Secret task.", "--url", server.url, "--model", "m", "--yes")
    rows = home.ledger()
    assert [(row["source"], row["model"], row["num_cache_read_tokens"]) for row in rows] == [
        ("agent", "m", 900),
        ("agent", "m", None),
    ]
    assert {row["session"] for row in rows} == {session_of(finished)}
    for path in (home.folder / "ledger").iterdir():
        assert b"ecret" not in path.read_bytes()


def test_without_a_yes_nothing_is_written_where_nobody_can_be_asked(home: Home) -> None:
    with upstream(in_order(saying("", WRITE), saying("Well."))) as server:
        finished = home.run("Make it.", "--url", server.url, "--model", "m")
    assert finished.returncode == 0
    assert not (home.work / "made.txt").exists()
    assert "declined" in server.requests[1].messages[-1]["content"]


def test_read_only_offers_and_does_nothing_that_writes(home: Home) -> None:
    calls = [WRITE, ("b", "bash", '{"command": "touch x"}'), ("e", "edit", "{}")]
    with upstream(in_order(saying("", *calls), saying("Well."))) as server:
        home.run("Make it.", "--url", server.url, "--model", "m", "--yes", "--read-only")
    names = [tool["function"]["name"] for tool in server.requests[0].tools]
    assert names == ["list", "read", "search", "use_tool"]
    assert sorted(path.name for path in home.work.iterdir()) == ["README.md"]


def test_no_key_is_in_what_is_stored_shown_or_handed_on(home: Home) -> None:
    calls = [("b", "bash", '{"command": "env"}')]
    script = in_order(saying("", *calls), Failure(401, "no"), saying("", *calls), saying("Done."))
    with upstream(script) as server:
        first = home.run("Look.", "--url", server.url, "--model", "m", "--yes")
        second = home.run("Look.", "--url", server.url, "--model", "m", "--yes")
    assert first.returncode == 1
    assert "HOME=" in str(server.bodies[1])
    assert KEY not in str(server.bodies)
    assert KEY not in first.stdout + first.stderr + second.stdout + second.stderr
    stored = [path for path in home.folder.rglob("*") if path.is_file()]
    assert any(path.name == "sessions.sqlite" for path in stored)
    assert not [path for path in stored if KEY.encode() in path.read_bytes()]


def test_a_session_is_resumed_forked_and_listed(home: Home) -> None:
    script = in_order(saying("One."), saying("Two."), saying("Other two."), saying("Three."))
    with upstream(script) as server:
        options = ("--url", server.url, "--model", "m", "--yes")
        first = home.run("First task.", *options)
        session = session_of(first)
        again = home.run("Second task.", *options, "--resume", session)
        fork = home.run("Another second task.", *options, "--fork", f"{session}@1")
        latest = home.run("Third task.", *options, "--resume")
        listed = home.run("--list")
    assert session_of(again) == session
    assert session_of(fork) not in (session, "")
    assert session_of(latest) == session_of(fork)
    said = [[str(message["content"]) for message in request.messages] for request in server.requests]
    for index, before in ((1, 0), (2, 0), (3, 2)):
        assert said[index][: len(said[before])] == said[before]
        assert server.bodies[index]["tools"] == server.bodies[before]["tools"]
    assert said[2][2] == "One."
    assert "Second" not in "".join(said[3][:4])
    assert said[2][-1].endswith("Another second task.")
    lines = listed.stdout.splitlines()
    assert len(lines) == 3
    assert f"{session}@1" in lines[1]
    assert all("First task." in line for line in lines[1:])


def test_what_changed_around_a_session_is_told_when_it_is_resumed(home: Home) -> None:
    with upstream(in_order(saying("One."), saying("Two."))) as server:
        options = ("--url", server.url, "--model", "m", "--yes")
        home.run("First.", *options)
        (home.work / "AGENTS.md").write_text("Use tabs.")
        home.run("Second.", *options, "--resume")
    first, second = (request.messages for request in server.requests)
    assert f"workspace: {home.work}" in first[1]["content"]
    assert "Use tabs." not in str(first)
    assert "AGENTS.md: Use tabs." in second[-1]["content"]
    assert str(home.work) not in second[-1]["content"]


@pytest.mark.parametrize("key", [KEY, ""])
def test_the_model_and_its_context_are_asked_of_a_local_server(home: Home, key: str) -> None:
    with upstream(in_order(saying("Hi."))) as server:
        server.models = [{"id": "tiny", "meta": {"n_ctx": 8_000}}]
        home.run("Hello.", "--url", server.url, "--provider", "kvstet", key=key)
    assert server.bodies[0]["model"] == "tiny"
    assert server.bodies[0]["max_tokens"] == 2_000


def test_a_task_may_come_through_a_pipe(home: Home) -> None:
    with upstream(in_order(saying("Hi."))) as server:
        finished = home.run("--url", server.url, "--model", "m", typed="Piped task.")
    assert finished.stdout == "Hi.\n"
    assert server.requests[0].messages[-1]["content"].endswith("Piped task.")


def test_an_mcp_server_is_started_and_its_tools_are_offered(home: Home) -> None:
    command = f"{sys.executable} {Path(__file__).parent / 'mcp_server.py'}"
    with upstream(in_order(saying("", ("a", "mcp__calc__add", '{"a": 2, "b": 3}')), saying("Done."))) as server:
        finished = home.run("Add.", "--url", server.url, "--model", "m", "--yes", "--mcp", f"calc={command}")
    assert finished.returncode == 0, finished.stderr
    assert server.requests[1].messages[-1]["content"] == "5"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("x", "--provider", "nowhere"), "There is no provider 'nowhere'"),
        (("x", "--provider", "openai"), "name one with --model"),
        (("x", "--provider", "openai", "--model", "gpt-5"), "put it into the variable OPENAI_API_KEY"),
        (("x", "--provider", "anthropic", "--model", "m", "--dialect", "responses"), "does not speak 'responses'"),
        (("x", "--url", "http://127.0.0.1:9", "--model", "m", "--resume"), "There is no session yet"),
        (("x", "--url", "http://127.0.0.1:9", "--model", "m", "--mcp", "x=no-such-program"), "does not start"),
        (("x", "--url", "ftp://x", "--model", "m"), "is not an address"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(home: Home, words: Sequence[str], told: str) -> None:
    finished = home.run(*words)
    assert finished.returncode == 1
    lines = [line for line in finished.stderr.splitlines() if line.startswith("kvstet:")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in finished.stderr


def test_options_that_contradict_each_other_are_refused() -> None:
    for words in (["x", "--read-only", "--mcp", "a=b"], ["x", "--resume", "2026", "--fork", "2026"]):
        assert CliRunner().invoke(app, ["agent", *words]).exit_code == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--resume"], ["--resume", "latest"]),
        (["--resume", "--yes"], ["--resume", "latest", "--yes"]),
        (["--resume", "do it"], ["--resume", "latest", "do it"]),
        (["do it", "--resume", "20261122-0a1b2c3d"], ["do it", "--resume", "20261122-0a1b2c3d"]),
        (["--fork", "20261122-0a1b2c3d@3"], ["--fork", "20261122-0a1b2c3d@3"]),
        (["--fork", "latest@3", "x"], ["--fork", "latest@3", "x"]),
        (["x"], ["x"]),
    ],
)
def test_an_id_may_be_left_out(args: list[str], expected: list[str]) -> None:
    assert with_latest(args) == expected


def test_no_other_servers_key_goes_to_the_address_in_the_environment(home: Home) -> None:
    """KVSTET_URL is of kvstet's own servers: a key for Anthropic is not sent there."""
    with upstream(in_order()) as server:
        environment = {**home.environment, "KVSTET_URL": server.url}
        hosted = chosen(Choice(provider="anthropic", model="claude-opus-5"), environment)
        own = chosen(Choice(model="m"), environment)
    assert hosted.endpoint.url == "https://api.anthropic.com/v1/messages"
    assert own.endpoint.url == f"{server.url}/v1/chat/completions"


# On a terminal.


@dataclass(slots=True)
class Terminal:
    """What a user sees, and what they type."""

    descriptor: int
    pid: int
    seen: str = ""

    def until(self, text: str, seconds: float = 40.0) -> None:
        """Wait for it; what came before is behind."""
        assert self.comes(text, seconds), f"no {text!r} in {self.seen!r}"

    def comes(self, text: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.descriptor, 4096).decode(errors="replace")
                except OSError:
                    break
        before, found, behind = self.seen.partition(text)
        self.seen = behind if found else before
        return bool(found)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def interrupt_until(self, text: str) -> None:
        """Ctrl-C, and again if nothing comes of it: `input` misses a signal between its prompt and its read."""
        for _ in range(10):
            self.type("\x03")
            if self.comes(text, 4.0):
                return
        raise AssertionError(f"no {text!r} in {self.seen!r}")

    def status(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def terminal(home: Home, *words: str) -> Generator[Terminal, None, None]:
    command = [sys.executable, "-m", "kvstet", "agent", *words]
    pid, descriptor = pty.fork()
    if pid == 0:
        os.chdir(home.work)
        os.execve(sys.executable, command, {**home.environment, "TERM": "dumb", "COLUMNS": "200"})
    try:
        yield Terminal(descriptor, pid)
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(descriptor)


def test_a_user_is_asked_and_their_no_counts(home: Home) -> None:
    hostile = ("b", "bash", json.dumps({"command": "echo \x1b[2Jhidden\rtouch owned"}))
    script = in_order(saying("", WRITE, hostile), saying("Fine."), saying("Bye."))
    with upstream(script) as server, terminal(home, "--url", server.url, "--model", "m") as screen:
        screen.until("> ")
        screen.type("Make it.\n")
        screen.until("create made.txt")
        screen.until("+made")
        screen.until("May it? y/n (a: always allow write)")
        screen.type("y\n")
        screen.until("? run echo ␛[2Jhidden␍touch owned")
        screen.until("  echo ␛[2Jhidden␍touch owned")
        screen.until("May it? y/n")
        screen.type("n\n")
        screen.until("Fine.")
        screen.until("> ")
        screen.type("/exit\n")
        screen.until("total of 2 requests")
        assert screen.status() == 0
    assert (home.work / "made.txt").read_text() == "made\n"
    results = [message["content"] for message in server.requests[1].messages if message["role"] == "tool"]
    assert results[0].startswith("Created made.txt")
    assert "declined" in results[1]


def test_ctrl_c_stops_a_command_and_the_session_goes_on(home: Home) -> None:
    script = in_order(saying("", ("b", "bash", '{"command": "echo $$ > pid; sleep 100"}')), saying("Still here."))
    with upstream(script) as server, terminal(home, "--url", server.url, "--model", "m", "--yes") as screen:
        screen.until("> ")
        screen.type("Wait.\n")
        while not (home.work / "pid").exists() or not (home.work / "pid").read_text():
            time.sleep(0.05)
        screen.type("\x03")
        screen.until("Stopped.")
        screen.until("> ")
        screen.type("Go on.\n")
        screen.until("Still here.")
        screen.until("> ")
        screen.type("\x03")
        assert screen.status() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((home.work / "pid").read_text()), 0)
    messages = server.requests[1].messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "tool", "user"]
    assert messages[3]["content"].startswith("Interrupted")


def test_ctrl_c_in_a_reply_ends_a_single_task_with_its_session_kept(home: Home) -> None:
    def slow(_: object) -> Raw:
        time.sleep(3)
        return Raw(b"")

    with upstream(slow) as server, terminal(home, "Wait.", "--url", server.url, "--model", "m") as screen:
        screen.until("session ")
        while not server.bodies:
            time.sleep(0.05)
        screen.type("\x03")
        screen.until("Stopped. `kvstet agent --resume ")
        assert screen.status() == 130
    assert "Wait." in home.run("--list").stdout


def test_ctrl_c_at_a_question_stops_the_turn_and_writes_nothing(home: Home) -> None:
    script = in_order(saying("", WRITE), saying("Never said."))
    with upstream(script) as server, terminal(home, "--url", server.url, "--model", "m") as screen:
        screen.until("> ")
        screen.type("Make it.\n")
        screen.until("May it? y/n (a: always allow write) ")
        screen.interrupt_until("> ")
        screen.type("\x04")
        assert screen.status() == 0
    assert not (home.work / "made.txt").exists()
    assert len(server.bodies) == 1


def test_a_prompt_shows_what_upstream_said(home: Home) -> None:
    with upstream(in_order(Failure(400, "This model is asleep."))) as server:
        finished = home.run("Hi.", "--url", server.url, "--model", "m")
    assert finished.returncode == 1
    assert "This model is asleep." in finished.stderr
    assert f"--resume {session_of(finished)}" in finished.stderr
