"""The clients: which packages they are, how their tools are called, and how a session is held with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.clients.packages import FromNpm, FromPyPI
from tests.clients.script import (
    CHECKED_RIGHT,
    CHECKED_WRONG,
    MEAN_RIGHT,
    MEAN_WRONG,
    NOTE,
    Say,
    Tools,
    Turn,
    long_session,
    main_session,
)

Way = Literal["processes", "pipe", "terminal"]
"""One process for each turn; one that reads turns from standard input; one that has a terminal."""

Messages = Sequence[Mapping[str, Any]]


def shell_edit(shell: Callable[[str], Any]) -> Callable[[str, str, str], Any]:
    """How a file is changed by a client that has only a shell."""

    def edit(path: str, old: str, new: str) -> Any:
        code = f"p = {path!r}\ns = open(p).read()\nopen(p, 'w').write(s.replace({old!r}, {new!r}))"
        return shell(f"python3 - <<'PY'\n{code}\nPY")

    return edit


def only_shell(shell: Callable[[str], Any]) -> Tools:
    return Tools(shell, lambda path: shell(f"cat {path}"), shell_edit(shell))


@dataclass(frozen=True)
class RealClient:
    """One client, as `kvstet launch` names it."""

    name: str
    package: FromNpm | FromPyPI
    tools: Tools
    first: tuple[str, ...]
    """Arguments of the first process; PROMPT stands for what the user says."""
    later: tuple[str, ...] = ()
    """Of the others, which go on with the session."""
    way: Way = "processes"
    environment: Mapping[str, str] = field(default_factory=dict)
    end: Callable[[Say], Say] = lambda say: say
    """Makes a reply one that ends the turn."""
    overflow_context: int = 14_000
    """Of the server, in the session that overflows."""
    believed_context: int | None = 131_072
    """What the client is told there; None: the truth, as it would do nothing about a refusal."""
    sums_up: bool = True
    """Whether it has the conversation summed up there; else it drops what is old, or gives up."""
    num_overflow_turns: int = 5
    """How many turns it comes through there."""
    overflow_statuses: tuple[int, ...] = (0, 0, 0, 0, 0)
    """How its processes end there; a client with one process has the first."""
    num_changed: int = 0
    """Replies in the main session that it changes itself before it sends them back."""
    seen: tuple[str, ...] = (CHECKED_WRONG, CHECKED_RIGHT, "Population variance", "stock.py", "took=")
    """What its tools print in the main session."""
    home: Mapping[str, str] = field(default_factory=dict)
    """Files of the user's own: contents by name."""
    open: tuple[bytes, ...] = ()
    """Keys that come before the first prompt, if it has a terminal."""
    leave: tuple[bytes, ...] = ()
    """Keys that end it, if it has a terminal."""

    def commands(self, turn: int) -> tuple[str, ...]:
        """What is typed before a turn, if it reads from a pipe."""
        return ()

    def commands_long(self, turn: int) -> tuple[str, ...]:
        """As `commands`, in the session that overflows."""
        return ()

    @property
    def shell_name(self) -> str:
        return self.tools.shell("")[0]

    def is_main(self, messages: Messages, tools: set[str]) -> bool:
        """Whether a request belongs to the conversation itself."""
        return self.shell_name in tools

    def main_turns(self, project: str) -> list[Turn]:
        return main_session(self.tools, project, self.end)

    def long_turns(self) -> list[Turn]:
        return long_session(self.tools, self.end)


PROMPT = "@prompt@"


class Aider(RealClient):
    """Has no tools: files are given to it, and it reads edits in the text."""

    def is_main(self, messages: Messages, tools: set[str]) -> bool:
        return "SEARCH/REPLACE" in str(messages[0]["content"])

    def commands(self, turn: int) -> tuple[str, ...]:
        return {1: ("/run python3 -c 'print(1)'",)}.get(turn, ())

    def commands_long(self, turn: int) -> tuple[str, ...]:
        return {2: ("/read-only data/events.log",), 3: ("/drop data/events.log",)}.get(turn, ())

    def main_turns(self, project: str) -> list[Turn]:
        fix = edit_block("inventory/stats.py", f"    return {MEAN_WRONG}\n", f"    return {MEAN_RIGHT}\n")
        note = edit_block("NOTES.md", "", NOTE + "\n")
        return [
            Turn("Find the bug in mean() and fix it.", (Say(f"Found it.\n\n{fix}", "The divisor."),)),
            Turn("Good. Now write down what you did in NOTES.md.", (Say(f"Here it is:\n\n{note}"),)),
            Turn("Which component has the most ERROR lines?", (Say("`billing`, *it seems*.\n", "Count.\n"),)),
            Turn("Thanks. Is there anything left to do?", (Say("No."),)),
        ]

    def long_turns(self) -> list[Turn]:
        return [
            Turn("What is mean() for?", (Say("For means."),)),
            Turn("And variance()?", (Say("For variances.", "Easy."),)),
            Turn("Now read data/events.log, which is long.", (Say("It is long."),)),
            Turn("What did you learn from all of it?", (Say("That most is well."),)),
        ]


def edit_block(path: str, old: str, new: str) -> str:
    return f"{path}\n```\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE\n```\n"


def bash(command: str) -> Any:
    return "bash", {"command": command}


def described(name: str, **others: Any) -> Callable[[str], Any]:
    return lambda command: (name, {"command": command, "description": "Run a command", **others})


def submitting(say: Say) -> Say:
    """mini-swe-agent's turns end with a command."""
    return replace(say, calls=(bash("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"),))


def exec_command(command: str) -> Any:
    return "exec_command", {"cmd": command}


def old_and_new(name: str, path: str, old: str, new: str) -> Callable[[str, str, str], Any]:
    """An edit whose arguments have these names."""
    return lambda where, before, after: (name, {path: where, old: before, new: after})


CLIENTS = (
    Aider(
        name="aider",
        package=FromPyPI("aider-chat", "0.86.2"),
        tools=only_shell(bash),
        way="pipe",
        first=(
            *("--yes-always", "--no-pretty", "--no-fancy-input", "--edit-format", "diff", "--no-gitignore"),
            *("--no-detect-urls", "--no-show-release-notes"),
            "inventory/stats.py",
        ),
        # It sends no reasoning back.
        num_changed=2,
        # It says so, and waits for the user to drop files.
        sums_up=False,
        num_overflow_turns=4,
        seen=("inventory/stats.py", "def variance"),
    ),
    RealClient(
        name="mini",
        package=FromPyPI("mini-swe-agent", "2.4.6", ("mcp",)),
        tools=only_shell(bash),
        way="terminal",
        first=("-y", "-o", "trajectory.json", "-t", PROMPT),
        end=submitting,
        leave=(b"\r",),
        # It has no way to shorten a conversation: it ends.
        sums_up=False,
        num_overflow_turns=2,
        overflow_statuses=(1,),
    ),
    RealClient(
        name="pi",
        package=FromNpm("@earendil-works/pi-coding-agent", "0.87.1"),
        tools=Tools(
            bash,
            lambda path: ("read", {"path": path}),
            lambda path, old, new: ("edit", {"path": path, "edits": [{"oldText": old, "newText": new}]}),
        ),
        first=("-p", PROMPT),
        later=("-p", "-c", PROMPT),
        environment={"PI_OFFLINE": "1"},
        # Of itself it keeps the last 20,000 tokens, which is all that there is here.
        home={".pi/agent/settings.json": '{"compaction": {"reserveTokens": 2000, "keepRecentTokens": 2000}}'},
    ),
    RealClient(
        name="claude",
        package=FromNpm("@anthropic-ai/claude-code", "2.1.330", "node_modules/@anthropic-ai/claude-code-linux-x64"),
        tools=Tools(
            described("Bash"),
            lambda path: ("Read", {"file_path": path}),
            old_and_new("Edit", "file_path", "old_string", "new_string"),
        ),
        first=("-p", "--dangerously-skip-permissions", "--verbose", "--output-format", "stream-json", PROMPT),
        later=("-p", "--dangerously-skip-permissions", "--verbose", "--output-format", "stream-json", "-c", PROMPT),
        # It lets root skip permissions in a sandbox only.
        environment={"IS_SANDBOX": "1"},
        overflow_context=25_000,
    ),
    RealClient(
        name="codex",
        package=FromNpm("@openai/codex", "0.169.0"),
        tools=only_shell(exec_command),
        first=("exec", "--dangerously-bypass-approvals-and-sandbox", PROMPT),
        later=("exec", "--dangerously-bypass-approvals-and-sandbox", "resume", "--last", PROMPT),
        overflow_context=26_000,
        believed_context=None,
    ),
    RealClient(
        name="opencode",
        package=FromNpm("opencode-ai", "1.18.33", "node_modules/opencode-linux-x64/bin"),
        tools=Tools(
            bash,
            lambda path: ("read", {"filePath": path}),
            old_and_new("edit", "filePath", "oldString", "newString"),
        ),
        first=("run", PROMPT),
        later=("run", "-c", PROMPT),
        environment={
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
            "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        },
        # It recovers from the refusal, and yet says that there was one.
        overflow_statuses=(0, 0, 1, 0, 0),
        overflow_context=20_000,
    ),
    RealClient(
        name="qwen",
        package=FromNpm("@qwen-code/qwen-code", "0.24.4"),
        tools=Tools(
            described("run_shell_command", is_background=False),
            lambda path: ("read_file", {"file_path": path}),
            old_and_new("edit", "file_path", "old_string", "new_string"),
        ),
        first=("-y", PROMPT),
        later=("-y", "-c", PROMPT),
        overflow_context=30_000,
    ),
    RealClient(
        name="cline",
        package=FromNpm("cline", "3.0.65"),
        tools=Tools(
            lambda command: ("run_commands", {"commands": [command]}),
            lambda path: ("read_files", {"files": [{"path": path}]}),
            old_and_new("editor", "path", "old_text", "new_text"),
        ),
        way="terminal",
        first=("-i",),
        open=(b"\x1b",),
        # It leaves old turns out.
        sums_up=False,
        leave=(b"\x03", b"\x03"),
        overflow_context=18_000,
    ),
)


def client_named(name: str) -> RealClient:
    return next(client for client in CLIENTS if client.name == name)
