"""Running commands in a shell. Each is confirmed, whatever it is: no rule tells a harmless command from another one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from kvstet.agent.tools.process import Finished, run
from kvstet.agent.tools.tool import Action, Plan, Schema, arguments_of, schema_of
from kvstet.agent.tools.workspace import Workspace
from kvstet.errors import ToolFailed

MAX_SECONDS = 600
_MAX_BYTES = 200_000


class BashArguments(Struct, forbid_unknown_fields=True):
    command: Annotated[str, Meta(min_length=1, description="The command, in bash.")]
    timeout_seconds: Annotated[int, Meta(ge=1, le=MAX_SECONDS, description="It is ended after this time.")] = 120


class Bash:
    """Runs commands in the workspace."""

    only_reads = False
    schema: Schema = schema_of(
        "bash",
        "Run a command in the workspace's folder and give what it writes. There is no input. What it leaves running in"
        " the background is ended with it.",
        BashArguments,
    )

    def __init__(self, workspace: Workspace, environment: Mapping[str, str]) -> None:
        """``environment`` without secrets: `kvstet.agent.tools.environment`."""
        self._workspace = workspace
        self._environment = environment

    async def plan(self, arguments: str) -> Plan:
        wanted = arguments_of(arguments, BashArguments)
        if "\0" in wanted.command:
            raise ToolFailed("A command has no NUL in it.")
        first = wanted.command.strip().partition("\n")[0]
        return Plan(lambda: self._run(wanted), Action("bash", f"run {first}", wanted.command))

    async def _run(self, wanted: BashArguments) -> str:
        finished = await run(
            _shell(wanted.command),
            folder=str(self._workspace.root),
            environment=self._environment,
            max_seconds=wanted.timeout_seconds,
            max_bytes=_MAX_BYTES,
        )
        return _answer(finished, wanted.timeout_seconds)


def _shell(command: str) -> list[str]:
    bash = shutil.which("bash")
    return [bash, "--noprofile", "--norc", "-c", command] if bash else ["/bin/sh", "-c", command]


def _answer(finished: Finished, max_seconds: int) -> str:
    match finished.status:
        case None:
            end = f"(It was ended after {max_seconds} seconds.)"
        case 0:
            end = "" if finished.text else "(It wrote nothing.)"
        case status if status < 0:
            end = f"(It was ended by signal {-status}.)"
        case status:
            end = f"(Exit status {status}.)"
    return "\n".join(part for part in (finished.text.rstrip("\n"), end) if part)
