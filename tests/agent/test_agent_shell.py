"""Commands: limits, and an end for everything that they start."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from kvstet.agent.confirmation import Yes
from kvstet.agent.toolbox import Toolbox
from kvstet.agent.tools import process
from kvstet.agent.tools.environment import without_secrets
from kvstet.agent.tools.process import run
from kvstet.agent.tools.shell import Bash
from kvstet.agent.tools.workspace import Workspace


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    return Toolbox([Bash(Workspace(tmp_path), {"PATH": os.environ["PATH"]})], Yes())


async def bash(toolbox: Toolbox, command: str, seconds: int = 20) -> str:
    return await toolbox.call("bash", json.dumps({"command": command, "timeout_seconds": seconds}))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_command_runs_in_the_workspace(toolbox: Toolbox, tmp_path: Path) -> None:
    assert await bash(toolbox, "pwd; echo hi >&2") == f"{tmp_path}\nhi"
    assert await bash(toolbox, "true") == "(It wrote nothing.)"
    assert await bash(toolbox, "echo no; exit 3") == "no\n(Exit status 3.)"
    assert await bash(toolbox, "kill -9 $$") == "(It was ended by signal 9.)"


@pytest.mark.timeout(20)
async def test_there_is_no_input(toolbox: Toolbox) -> None:
    assert await bash(toolbox, "cat; read x; echo $?") == "1"


@pytest.mark.timeout(20)
async def test_a_command_is_ended_after_its_time_with_all_its_children(toolbox: Toolbox, tmp_path: Path) -> None:
    begun = time.monotonic()
    answer = await bash(toolbox, "sleep 100 & echo $! > a; setsid sleep 100 & echo $! > b; echo here; sleep 100", 1)
    assert time.monotonic() - begun < 5
    assert answer == "here\n(It was ended after 1 seconds.)"
    for name in ("a", "b"):
        assert not is_running(int((tmp_path / name).read_text()))


@pytest.mark.timeout(20)
async def test_what_a_command_leaves_running_is_ended_with_it(toolbox: Toolbox, tmp_path: Path) -> None:
    begun = time.monotonic()
    answer = await bash(toolbox, "(setsid sleep 100; true) & echo $! > a; nohup sleep 100 & echo $! > b; echo done")
    assert time.monotonic() - begun < 5
    assert answer.endswith("done")
    for name in ("a", "b"):
        assert not is_running(int((tmp_path / name).read_text()))


HOPPER = """
import os, time
beat = os.open("beat", os.O_CREAT | os.O_WRONLY)
end = time.monotonic() + 8
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    os.pwrite(beat, b"%d" % os.getpid(), 0)
"""


@pytest.mark.timeout(20)
async def test_a_child_that_is_another_process_at_every_moment_is_ended(toolbox: Toolbox, tmp_path: Path) -> None:
    """As in a fork bomb, though there is never more than one."""
    (tmp_path / "hopper.py").write_text(HOPPER)
    await bash(toolbox, f"{sys.executable} hopper.py & while [ ! -s beat ]; do sleep 0.05; done")
    await asyncio.sleep(0.2)
    last = (tmp_path / "beat").read_text()
    await asyncio.sleep(0.2)
    assert (tmp_path / "beat").read_text() == last


@pytest.mark.timeout(20)
async def test_a_command_that_may_not_be_ended_is_not_waited_for(
    toolbox: Toolbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of another user: sudo."""

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(process, "_END_SECONDS", 0.1)
    monkeypatch.setattr(os, "killpg", refuse)
    monkeypatch.setattr(psutil.Process, "kill", refuse_of_psutil)
    begun = time.monotonic()
    assert await bash(toolbox, "exec sleep 2", 1) == "(It was ended after 1 seconds.)"
    assert time.monotonic() - begun < 1.8
    await asyncio.sleep(1)


def refuse_of_psutil(child: psutil.Process) -> None:
    raise psutil.AccessDenied(child.pid)


@pytest.mark.timeout(20)
async def test_a_command_whose_agent_is_stopped_is_ended(toolbox: Toolbox, tmp_path: Path) -> None:
    running = asyncio.ensure_future(bash(toolbox, "echo $$ > pid; sleep 100"))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    assert is_running(pid)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not is_running(pid)


@pytest.mark.timeout(20)
async def test_a_child_that_hides_with_the_pipe_open_does_not_hold_up_the_agent(toolbox: Toolbox) -> None:
    """It has left its group and cleared its environment, which is as far as nobody looks."""
    script = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(5)"
    answer = await bash(toolbox, f"env -i {sys.executable} -c '{script}' & sleep 0.4; echo done")
    assert "done" in answer
    psutil.Process(int(answer.split()[0])).kill()


async def test_long_output_keeps_its_head_and_tail(tmp_path: Path) -> None:
    finished = await run(
        ["/bin/sh", "-c", "echo head; yes | head -c 5000000; echo tail"],
        folder=str(tmp_path),
        environment=dict(os.environ),
        max_seconds=20,
        max_bytes=1000,
    )
    assert finished.text.startswith("head\ny\n")
    assert finished.text.endswith("y\ntail\n")
    assert "bytes left out" in finished.text
    assert len(finished.text) < 1100


async def test_output_without_end_is_bounded_in_memory_too(toolbox: Toolbox) -> None:
    before = psutil.Process().memory_info().rss
    answer = await bash(toolbox, "yes 0123456789", 1)
    assert len(answer) < 210_000
    assert "bytes left out" in answer
    assert psutil.Process().memory_info().rss - before < 50_000_000


async def test_bytes_that_are_no_text_are_shown_as_such(toolbox: Toolbox) -> None:
    assert await bash(toolbox, r"printf '\xff\xfe'") == "��"


async def test_a_command_with_a_nul_is_refused(toolbox: Toolbox) -> None:
    assert "NUL" in await bash(toolbox, "echo a\0b")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ANTHROPIC_API_KEY", "x"),
        ("OPENAI_API_KEY", "x"),
        ("MY_TOKEN", "x"),
        ("db_password", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("GOOGLE_APPLICATION_CREDENTIALS", "x"),
        ("SSH_AUTH_SOCK", "x"),
        ("BASH_ENV", "/tmp/x"),
        ("DATABASE_URL", "postgres://me:hunter2@host/db"),
        ("HARMLESS", "sk-proj-abcdef"),
        ("HARMLESS", "ghp_abcdef"),
        ("HARMLESS", "AKIAIOSFODNN7EXAMPLE"),
        ("HARMLESS", "prefix my-very-own-secret suffix"),
    ],
)
def test_what_may_be_a_key_is_not_handed_to_commands(name: str, value: str) -> None:
    assert without_secrets({name: value, "PATH": "/bin"}, ["my-very-own-secret", ""]) == {"PATH": "/bin"}


def test_the_rest_of_the_environment_stays() -> None:
    plain = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "PWD": "/work",
        "OLDPWD": "/",
        "LANG": "C.UTF-8",
        "VIRTUAL_ENV": "/venv",
        "HTTP_PROXY": "http://proxy:3128",
    }
    assert without_secrets(plain) == plain


async def test_a_command_sees_no_key(tmp_path: Path) -> None:
    environment = without_secrets({**os.environ, "OPENAI_API_KEY": "planted-1", "X": "planted-2"}, ["planted-2"])
    toolbox = Toolbox([Bash(Workspace(tmp_path), environment)], Yes())
    answer = await bash(toolbox, "env; cat /proc/self/environ")
    assert "PATH=" in answer
    assert "planted" not in answer
