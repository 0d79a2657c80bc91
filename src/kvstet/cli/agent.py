"""``kvstet agent``: a small coding agent on the context layer, for any model."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import platformdirs
import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperCommand

from kvstet.cli.console import stderr_console
from kvstet.cli.listing import stdout_console
from kvstet.errors import ModelFailed, SessionError

if TYPE_CHECKING:
    from kvstet.agent.confirmation import Confirmation
    from kvstet.agent.loop import Agent
    from kvstet.agent.meter import Meter
    from kvstet.agent.sessions import Session, SessionStore
    from kvstet.agent.tools.workspace import Workspace
    from kvstet.cli.agent_model import Choice, Chosen
    from kvstet.cli.agent_screen import Screen
    from kvstet.context.conversation import Context

T = TypeVar("T")

LATEST = "latest"
_SESSION_ID = re.compile(r"\d{1,8}(-[0-9a-f]*)?(@\d+)?|latest(@\d+)?")
_INTERRUPTED_STATUS = 130
_FAILED_STATUS = 1
_UNFINISHED_STATUS = 2


class AgentCommand(TyperCommand):
    """``--resume`` and ``--fork`` take an id or none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_latest(args))


def with_latest(args: list[str]) -> list[str]:
    """With the word for the latest session behind an option that has no id."""
    words: list[str] = []
    for word, after in zip(args, [*args[1:], ""], strict=True):
        words.append(word)
        if word in ("--resume", "--fork") and not _SESSION_ID.fullmatch(after):
            words.append(LATEST)
    return words


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says."""

    task: str | None
    choice: Choice
    workspace: Path | None
    is_confirmed: bool
    is_read_only: bool
    servers: tuple[str, ...]
    server_variables: tuple[str, ...]
    context_length: int | None
    max_steps: int
    resume: str | None
    fork: str | None
    environment: Mapping[str, str] = field(repr=False)


def agent(
    task: Annotated[str | None, typer.Argument(help="What to do; none: ask, again and again.")] = None,
    *,
    provider: Annotated[str | None, typer.Option(help="anthropic, openai, ...: see docs/providers.md.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A server's address; none: the provider's, or KVSTET_URL, or a kvstet here."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model; none: a local server's first.")] = None,
    dialect: Annotated[
        str | None, typer.Option(help="chat, messages or responses; none: what the provider speaks first.")
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Variable that holds the key; none: the provider's own.")] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="Folder to work in; none: this one.", exists=True, file_okay=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Run and write without asking.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Only look: no tool that changes anything.")] = False,
    mcp: Annotated[list[str] | None, typer.Option(metavar="NAME=COMMAND", help="Start an MCP server; repeat.")] = None,
    mcp_env: Annotated[
        list[str] | None, typer.Option(metavar="VARIABLE", help="Hand it on to the MCP servers; repeat.")
    ] = None,
    context_length: Annotated[int | None, typer.Option(help="Tokens that a request may have.", min=2_000)] = None,
    max_steps: Annotated[int, typer.Option(help="Replies of the model for one task.", min=1)] = 100,
    resume: Annotated[
        str | None, typer.Option(metavar="[ID]", help="Go on with a session; without an id: with the latest.")
    ] = None,
    fork: Annotated[
        str | None, typer.Option(metavar="[ID][@STEP]", help="A new session that goes on from a step of another.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show the sessions.")] = False,
) -> None:
    """Let a model work on a folder. Nothing is written or run unasked, unless with --yes."""
    from kvstet.cli.agent_model import Choice

    if list_all:
        show_sessions()
        return
    if read_only and mcp:
        raise typer.BadParameter("--read-only has no tools of MCP servers: nobody knows what they change.")
    if resume and fork:
        raise typer.BadParameter("Either --resume or --fork.")
    wanted = Wanted(
        task=task if task is not None or sys.stdin.isatty() else sys.stdin.read(),
        choice=Choice(provider=provider, url=url, model=model, dialect=dialect, key_variable=key_env),
        workspace=workspace,
        is_confirmed=yes,
        is_read_only=read_only,
        servers=tuple(mcp or ()),
        server_variables=tuple(mcp_env or ()),
        context_length=context_length,
        max_steps=max_steps,
        resume=resume,
        fork=fork,
        environment=dict(os.environ),
    )
    raise typer.Exit(asyncio.run(conversation(wanted)))


async def conversation(wanted: Wanted) -> int:
    """From the first task to the last; the exit status."""
    from kvstet.agent.meter import total_line
    from kvstet.cli.agent_model import chosen
    from kvstet.cli.agent_screen import Screen

    # What a tool server writes to its log is not the user's concern.
    if not logging.getLogger().isEnabledFor(logging.INFO):
        logging.getLogger("mcp").setLevel(logging.CRITICAL)
    screen = Screen(stdout_console(), stderr_console())
    one = chosen(wanted.choice, wanted.environment)
    async with AsyncExitStack() as stack:
        running = await _Running.begun(wanted, one, screen, stack)
        screen.note(f"{one.model} at {one.endpoint.title}, session {running.session.id}", "dim")
        try:
            return await running.tasks()
        finally:
            screen.note(total_line(running.meter.steps), "dim")


@dataclass(frozen=True, slots=True)
class _Running:
    """An agent at work."""

    wanted: Wanted
    agent: Agent
    session: Session
    meter: Meter
    screen: Screen

    @staticmethod
    async def begun(wanted: Wanted, one: Chosen, screen: Screen, stack: AsyncExitStack) -> _Running:
        """Starts the tool servers, which the stack ends."""
        from kvstet.agent.instructions import SYSTEM
        from kvstet.agent.loop import Agent
        from kvstet.agent.model import HttpModel
        from kvstet.agent.surroundings import around
        from kvstet.agent.toolbox import Toolbox, reading, workspace_tools
        from kvstet.agent.tools.environment import without_secrets
        from kvstet.context.conversation import Context
        from kvstet.dialects.request import Terms
        from kvstet.money.ledger import Ledger

        store, origin = session_store(), None
        if name := wanted.resume or wanted.fork:
            origin = _Origin.of(name, store)
        workspace = _workspace(wanted, origin)
        bare = without_secrets(wanted.environment, one.secrets)
        tools = workspace_tools(workspace, bare)
        servers = await _servers(wanted, workspace, stack)
        toolbox = Toolbox(
            reading(tools) if wanted.is_read_only else tools, _confirmation(wanted, screen), source=servers
        )
        budget = one.budget(wanted.context_length)
        schemas = await toolbox.refresh()
        if origin is None:
            context, step = Context(SYSTEM, schemas, budget=budget, takes_late_tools=True), 0
            session = store.create(workspace=workspace.root, model=one.name)
        else:
            session, context, step = origin.context(store, is_fork=bool(wanted.fork), model=one.name)
            context.budget = budget
        model = HttpModel(one.endpoint, cache_key=session.id)
        stack.push_async_callback(model.close)
        meter = one.meter(session.id, stack.enter_context(Ledger()))
        agent = Agent(
            model,
            context,
            toolbox,
            model_name=one.model,
            terms=Terms(is_streamed=True, includes_usage=True, max_output_tokens=budget.num_reserved_tokens),
            rates=one.rates,
            surroundings=around(workspace, bare),
            journal=session,
            meter=meter,
            watch=screen.watch,
            max_steps=wanted.max_steps,
            step=step,
        )
        return _Running(wanted, agent, session, meter, screen)

    async def tasks(self) -> int:
        """The one that was given, or what the user types, until there is no more."""
        if self.wanted.task is not None:
            return await self._turn(self.wanted.task)
        from kvstet.cli.agent_screen import typed

        while True:
            try:
                task = typed(input, "\n> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.screen.note("")
                return 0
            if task in ("/exit", "/quit"):
                return 0
            if task:
                await self._turn(task)

    async def _turn(self, task: str) -> int:
        """The exit status that it would have."""
        try:
            outcome = await interruptible(self.agent.run(task))
        except asyncio.CancelledError:
            self.screen.note(f"Stopped. `kvstet agent --resume {self.session.id}` goes on.", "yellow")
            return _INTERRUPTED_STATUS
        except ModelFailed as error:
            self.screen.note(f"{error} `kvstet agent --resume {self.session.id}` goes on.", "red")
            return _FAILED_STATUS
        self.screen.end_line()
        match outcome.reason:
            case "done":
                return 0
            case "max_steps":
                self.screen.note(f"Stopped after {self.wanted.max_steps} steps; say more to go on.", "yellow")
            case "length":
                self.screen.note("The reply was cut off: it has as many tokens as it may.", "yellow")
            case "filtered":
                self.screen.note("The provider's filter ended the reply.", "yellow")
        return _UNFINISHED_STATUS


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Ctrl-C cancels the work, and nothing else."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@dataclass(frozen=True, slots=True)
class _Origin:
    """The session that is gone on with."""

    id: str
    step: int | None
    workspace: str

    @staticmethod
    def of(name: str, store: SessionStore) -> _Origin:
        """Of ``ID`` or ``ID@STEP``. SessionError."""
        id, _, step = name.partition("@")
        info = store.named(None if id in ("", LATEST) else id)
        return _Origin(info.id, int(step) if step.isdigit() else None, info.workspace)

    def context(self, store: SessionStore, *, is_fork: bool, model: str) -> tuple[Session, Context, int]:
        if is_fork:
            return store.forked(self.id, self.step, model=model)
        return store.resumed(self.id)


def _workspace(wanted: Wanted, origin: _Origin | None) -> Workspace:
    """The one that is named, else the session's, else this folder. OSError."""
    from kvstet.agent.tools.workspace import Workspace

    folder = wanted.workspace or (Path(origin.workspace) if origin else Path.cwd())
    if not folder.is_dir():
        raise SessionError(f"The session's workspace {folder} is gone; name another with --workspace.")
    return Workspace(folder)


async def _servers(wanted: Wanted, workspace: Workspace, stack: AsyncExitStack) -> Any:
    """The tool servers, started; None where none is wanted."""
    from kvstet.agent.tool_servers import ToolServers, server_command

    if not wanted.servers:
        return None
    names = set(wanted.server_variables)
    variables = {name: value for name, value in wanted.environment.items() if name in names}
    commands = [server_command(text, variables) for text in wanted.servers]
    return await stack.enter_async_context(ToolServers(commands, workspace.root))


def _confirmation(wanted: Wanted, screen: Screen) -> Confirmation:
    from kvstet.agent.confirmation import Asking, No, Yes
    from kvstet.cli.agent_screen import typed

    if wanted.is_confirmed:
        return Yes()
    if sys.stdin.isatty():
        return Asking(screen.ask_about, lambda question: typed(input, question))
    return No()


def session_store() -> SessionStore:
    """All sessions of this user."""
    from kvstet.agent.sessions import SessionStore

    return SessionStore(platformdirs.user_data_path("kvstet") / "agent" / "sessions.sqlite")


def show_sessions() -> None:
    """The latest first."""
    from kvstet.agent.shown import one_line

    console = stdout_console()
    found = session_store().sessions()
    if not found:
        console.print("There is no session yet.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("session", "saved", "steps", "model", "from", "workspace", "task"):
        table.add_column(header, no_wrap=True)
    for info in found:
        saved = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.saved))
        row = (info.id, saved, str(info.num_steps), info.model, info.parent or "", info.workspace, info.title)
        table.add_row(*(escape(one_line(cell)) for cell in row))
    console.print(table)
