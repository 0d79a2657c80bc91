"""``kvstet launch``: starts a coding agent against a server, and changes nothing of the user's."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.markup import escape
from rich.table import Table

from kvstet.cli.clients import CLIENTS, KEY_VARIABLE, Client, Setup, Target, client_named
from kvstet.cli.clients.running import past_proxies, run
from kvstet.cli.clients.server import DEFAULT_PORT, CannotLaunch, Served, ask, base_url
from kvstet.cli.clients.shell import script
from kvstet.cli.console import stderr_console
from kvstet.cli.listing import stdout_console

DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
NO_KEY = "no-key"
"""Clients want one, even if the server does not."""

DEFAULT_CONTEXT_LENGTH = 32_768
"""Where the server does not say."""
PLACEHOLDER_MODEL = "MODEL"

console = stdout_console()
errors = stderr_console()


@dataclass(frozen=True, slots=True)
class Launch:
    """What is to be started, how, and what the user should know of it."""

    client: Client
    target: Target
    setup: Setup
    command: tuple[str, ...]
    """With the setup's arguments; empty: nothing is started."""
    remarks: tuple[str, ...]


def launch(
    name: Annotated[str | None, typer.Argument(metavar="CLIENT", help="Which; --list shows them.")] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="-- ARGS", help="For the client, as they are.")
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="The server.", envvar="KVSTET_URL")] = DEFAULT_URL,
    api_key: Annotated[str, typer.Option(help="Key for the server.", envvar=KEY_VARIABLE, show_default=False)] = NO_KEY,
    model: Annotated[str | None, typer.Option(help="Name of a model on it; none: its first.")] = None,
    context: Annotated[
        int | None, typer.Option(help="Tokens the client may use; none: what the server says.", min=1)
    ] = None,
    print_only: Annotated[bool, typer.Option("--print", help="Show what would be done, as a shell script.")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="Show the clients that are known.")] = False,
) -> None:
    """Start a coding agent against the server, with what breaks its cache switched off. Your settings stay as they are.

    With env-openai or env-anthropic, ARGS are any command; without one, the variables are printed for `eval`.
    """
    if list_all:
        show_clients()
        return
    client = known(name)
    words = tuple(arguments or ())
    is_shown = print_only or not (client.executables or words)
    server = base_url(url)
    served, remarks = asked(server, api_key, model, is_needed=not print_only)
    target = Target(
        url=server,
        api_key=api_key,
        model=served.model,
        context_length=context or served.context_length or DEFAULT_CONTEXT_LENGTH,
    )
    if not (context or served.context_length or remarks):
        remarks += (f"the server does not say how long its context is; {DEFAULT_CONTEXT_LENGTH:,} tokens are assumed",)
    remarks += small_context(client, target)
    plan = planned(client, target, words, remarks)
    if is_shown:
        typer.echo(script(client, target, plan.setup, plan.command, plan.remarks))
        return
    raise typer.Exit(started(plan))


def known(name: str | None) -> Client:
    """The client of this name. BadParameter where there is none."""
    client = client_named(name) if name else None
    if client is None:
        names = ", ".join(one.name for one in CLIENTS)
        wrong = f"There is no client {name!r}; known are" if name else "Name a client:"
        raise typer.BadParameter(f"{wrong} {names}.", param_hint="CLIENT")
    return client


def asked(server: str, api_key: str, model: str | None, *, is_needed: bool) -> tuple[Served, tuple[str, ...]]:
    """What the server says. Where it is not needed and does not answer as it should, a remark says so."""
    try:
        return ask(server, api_key, model), ()
    except CannotLaunch as error:
        if is_needed:
            raise
        return Served(model or PLACEHOLDER_MODEL, None), (f"{error} What only it can say has placeholders below.",)


def small_context(client: Client, target: Target) -> tuple[str, ...]:
    """A remark where the client's own prompt leaves too little."""
    if client.num_own_tokens is None or target.context_length >= 2 * client.num_own_tokens:
        return ()
    return (
        f"the prompt and tools of {client.title} take about {client.num_own_tokens:,} of the context's"
        f" {target.context_length:,} tokens; `kvstet serve --ctx-size` makes it larger",
    )


def planned(client: Client, target: Target, words: tuple[str, ...], remarks: tuple[str, ...]) -> Launch:
    """The setup, past proxies, and the command; without looking for the executable."""
    setup = client.setup(target)
    direct = past_proxies(os.environ, urlsplit(target.url).hostname or "")
    setup = replace(setup, environment={**setup.environment, **direct})
    command = (client.executables[0], *setup.arguments, *words) if client.executables else words
    return Launch(client, target, setup, command, remarks)


def started(plan: Launch) -> int:
    """Run it; the exit status is the client's."""
    executable = found(plan)
    for remark in plan.remarks:
        errors.print(f"[yellow]kvstet:[/yellow] {escape(remark)}", highlight=False, soft_wrap=True)
    if errors.is_terminal:
        what = plan.client.title if plan.client.executables else plan.command[0]
        line = f"{what} -> {plan.target.model} at {plan.target.url}"
        errors.print(f"[dim]kvstet: {escape(line)}[/dim]", highlight=False, soft_wrap=True)
    try:
        return run([executable, *plan.command[1:]], plan.setup, os.environ)
    except OSError as error:
        raise CannotLaunch(f"{executable} cannot be started: {error.strerror or error}.") from error


def found(plan: Launch) -> str:
    """Path of what is started. Raises CannotLaunch."""
    names = plan.client.executables or plan.command[:1]
    paths = [path for name in names if (path := shutil.which(name))]
    if not paths:
        raise CannotLaunch(f"There is no `{names[0]}` in PATH. {plan.client.install}".rstrip())
    return paths[0]


def show_clients() -> None:
    """Which there are, how they speak to the server, and which are installed."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("", "client", "speaks", "found"):
        table.add_column(header, no_wrap=True)
    for client in CLIENTS:
        path = next((path for one in client.executables if (path := shutil.which(one))), None)
        where = escape(path) if path else ("[dim]not installed[/dim]" if client.executables else "any command after --")
        table.add_row(", ".join(client.names), client.title, client.dialect, where)
    console.print(table, highlight=False)
