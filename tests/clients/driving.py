"""A session with a real client: started by `kvstet launch`, in a home and a copy of a project of its own."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.clients import PROMPT, RealClient
from tests.clients.script import Script, Turn
from tests.clients.server import Site, running

TURN_SECONDS = 150.0
START_SECONDS = 10.0
"""Until a client with a terminal listens to keys."""
GATEWAY_SECONDS = 30.0
REST_SECONDS = 1.5
"""Between a turn's last reply and the next turn."""

TEMPLATE = Path(__file__).parent / "project"

ROWS_AND_COLUMNS = (50, 160)
CONTROLLING = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the terminal that keys like Ctrl-C come from, and becomes the command."""

NOWHERE = "http://127.0.0.1:9"
"""A proxy that does not exist: who asks for anything but the server, asks in vain."""


@dataclass
class Held:
    """A session that was held."""

    client: RealClient
    site: Site
    project: Path
    temporary: Path
    statuses: list[int]
    """Of the processes."""
    output: str = field(repr=False)

    def file(self, name: str) -> str:
        return (self.project / name).read_text(encoding="utf-8")


class Driver:
    """Starts a client's processes, and lets them find nothing but what is meant for them."""

    def __init__(
        self, client: RealClient, site: Site, folder: Path, believed_context: int | None, url: str | None = None
    ) -> None:
        self.client, self.site, self._url = client, site, url or site.url
        self.home, self.temporary = folder / "home", folder / "tmp"
        self.project = self.home / "project"
        self.temporary.mkdir(parents=True)
        shutil.copytree(TEMPLATE, self.project)
        self._context = believed_context
        for name, content in client.home.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.environment = self._environment(client.package.place())
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "Begin"]):
            subprocess.run(["git", *command], cwd=self.project, env=self.environment, check=True)
        self.statuses: list[int] = []
        self.log = folder / "output.txt"
        self.log.touch()

    def _environment(self, folders: Sequence[Path]) -> dict[str, str]:
        usual = [str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]
        named = ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")
        return {
            "PATH": os.pathsep.join([*map(str, folders), *usual]),
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "http_proxy": NOWHERE,
            "https_proxy": NOWHERE,
            **dict.fromkeys(named, "dev@example.com"),
            **self.client.environment,
        }

    def command(self, arguments: Sequence[str], prompt: str) -> list[str]:
        context = () if self._context is None else ("--context", str(self._context))
        launch = ["launch", "--url", self._url, "--model", "coder", *context, self.client.name, "--"]
        words = [prompt if word == PROMPT else word for word in arguments]
        return [sys.executable, "-m", "kvstet", *launch, *words]

    def hold(self, turns: Sequence[Turn], commands: Callable[[int], Sequence[str]]) -> None:
        """All of the turns. ``commands`` are what is typed before one, where a client has such."""
        match self.client.way:
            case "processes":
                for number, turn in enumerate(turns):
                    arguments = self.client.later if number else self.client.first
                    self._run(self.command(arguments, turn.prompt), "")
            case "pipe":
                lines = [line for number, turn in enumerate(turns) for line in (*commands(number), turn.prompt)]
                self._run(self.command(self.client.first, ""), "".join(f"{line}\n" for line in [*lines, "/exit"]))
            case "terminal":
                Terminal(self).hold(turns)

    def _run(self, command: list[str], given: str) -> None:
        with self.log.open("a") as log:
            log.write(f"\n=== {command[3:]}\n")
            log.flush()
            options = {"cwd": self.project, "env": self.environment, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)
            try:
                process.communicate(given.encode(), timeout=TURN_SECONDS)
            except subprocess.TimeoutExpired:
                log.write("=== took too long\n")
            finally:
                end_group(process)
            self.statuses.append(process.returncode)


class Terminal:
    """A client that is typed to."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def hold(self, turns: Sequence[Turn]) -> None:
        driver = self._driver
        is_given = PROMPT in driver.client.first
        ours, theirs = pty.openpty()
        command = driver.command(driver.client.first, turns[0].prompt)
        termios.tcsetwinsize(theirs, ROWS_AND_COLUMNS)
        options = {"stdin": theirs, "stdout": theirs, "stderr": theirs, "start_new_session": True}
        command = [sys.executable, "-c", CONTROLLING, *command]
        process = subprocess.Popen(command, cwd=driver.project, env=driver.environment, **options)
        os.close(theirs)
        reader = threading.Thread(target=self._read, args=(ours,))
        reader.start()
        try:
            if not is_given:
                time.sleep(START_SECONDS)
                press(ours, driver.client.open)
            for number, turn in enumerate(turns):
                if number or not is_given:
                    type_in(ours, turn.prompt)
                if not self._wait(number + 1, process):
                    break
            press(ours, driver.client.leave)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20.0)
        finally:
            end_group(process)
            os.close(ours)
            reader.join(5.0)
        driver.statuses.append(process.returncode)

    def _wait(self, num_turns: int, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + TURN_SECONDS
        while self._driver.site.script.num_turns_done < num_turns:
            if time.monotonic() > deadline or process.poll() is not None:
                return False
            time.sleep(0.1)
        time.sleep(REST_SECONDS)
        return True

    def _read(self, ours: int) -> None:
        with self._driver.log.open("ab", buffering=0) as log, suppress(OSError):
            while data := os.read(ours, 65536):
                log.write(data)


def press(terminal: int, keys: Sequence[bytes]) -> None:
    for key in keys:
        os.write(terminal, key)
        time.sleep(1.0)


def type_in(terminal: int, text: str) -> None:
    os.write(terminal, text.encode())
    time.sleep(0.7)
    os.write(terminal, b"\r")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """The process, and all that it started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL if process.poll() is None else signal.SIGTERM)
    process.wait()


def end_strays(home: Path) -> None:
    """Daemons that a client has left behind in sessions of their own; they have its home."""
    ours = f"HOME={home}".encode()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # Others' processes, and such as have just ended.
            if ours in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


@contextmanager
def gateway_before(url: str, options: Sequence[str], log: Path) -> Generator[str]:
    """`kvstet gateway` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "kvstet", "gateway", "--upstream", url, "--port", "0", "--no-ledger", *options]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + GATEWAY_SECONDS
        while (found := re.search(r"http://127\.0\.0\.1:\d+(?=/v1)", log.read_text())) is None:
            assert time.monotonic() < deadline and process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found[0]
    finally:
        end_group(process)


def held(
    client: RealClient,
    model: Path,
    folder: Path,
    *,
    is_overflowing: bool = False,
    echoes: bool = True,
    context_length: int = 131_072,
    gateway: Sequence[str] | None = None,
) -> Held:
    """``gateway`` are options of one that stands before the server; None: there is none."""
    project = folder / "home" / "project"
    turns = client.long_turns() if is_overflowing else client.main_turns(str(project))
    script = Script(turns, client.is_main)
    length = client.overflow_context if is_overflowing else context_length
    with ExitStack() as stack:
        site = stack.enter_context(running(model, script, context_length=length, echoes=echoes))
        url = (
            None if gateway is None else stack.enter_context(gateway_before(site.url, gateway, folder / "gateway.txt"))
        )
        driver = Driver(client, site, folder, client.believed_context if is_overflowing else None, url)
        try:
            driver.hold(turns, client.commands_long if is_overflowing else client.commands)
        finally:
            end_strays(driver.home)
    output = driver.log.read_text(encoding="utf-8", errors="replace")
    return Held(client, site, project, driver.temporary, driver.statuses, output)
